// Device primitives, included by cuda/device.h: threads, barriers, and the shared memory of a
// cluster.
#pragma once

#include <cstdint>
#include <cstdio>

namespace rnnfast::dev {

// ---- where a thread is ----

extern __shared__ __align__(128) uint8_t dynamic_smem[];

DEVICE int tid() { return static_cast<int>(threadIdx.x); }
DEVICE int threads() { return static_cast<int>(blockDim.x); }
DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
DEVICE uint8_t* smem() { return dynamic_smem; }

// Rank of this CTA in its cluster; 0 without one.
DEVICE int cluster_rank() {
#if HAS_CLUSTER
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// Ends the kernel with an error. The reason is printed only in builds that look for hangs: a printf
// costs every kernel a stack.
DEVICE void trap([[maybe_unused]] const char* reason) {
#ifdef RNNFAST_WAIT_CYCLES
  printf("rnnfast: block (%d, %d), thread %d: %s\n", block_x(), block_y(), tid(), reason);
#endif
  __trap();
}

// ---- waiting ----

// Inside every loop that waits for other threads.
DEVICE void pause() { __nanosleep(20); }

// Bounds a wait: with RNNFAST_WAIT_CYCLES (of the 32-bit clock), a lost signal ends the kernel with
// an error where it would hang.
class Deadline {
 public:
  DEVICE void check([[maybe_unused]] const char* reason) const {
#ifdef RNNFAST_WAIT_CYCLES
    if (static_cast<uint32_t>(clock()) - start_ > static_cast<uint32_t>(RNNFAST_WAIT_CYCLES))
      trap(reason);
#endif
  }

#ifdef RNNFAST_WAIT_CYCLES
 private:
  uint32_t start_ = static_cast<uint32_t>(clock());
#endif
};

// The loop around a flag that another CTA of the grid sets.
template <class Condition>
DEVICE void wait_until(Condition condition) {
  Deadline deadline;
  while (!condition()) {
    pause();
    deadline.check("no signal");
  }
}

// ---- barriers ----

DEVICE void cta_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }

// Keeps the compiler from moving accesses of memory over it; orders nothing that others see.
DEVICE void keep_order() { __syncwarp(); }

// Barrier of the `threads` threads, whole warps, that name it; ids 1 to 15.
DEVICE void group_sync(int id, int threads) {
  __syncwarp();  // bar.sync wants the warp together
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Barrier of all threads of the cluster. What they stored before, they all see after.
DEVICE void cluster_sync() {
#if HAS_CLUSTER
  __syncwarp();  // .aligned wants the warp together
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#else
  trap("clusters need compute capability 9.0");
#endif
}

// ---- shared memory of the cluster ----

DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// An mbarrier (8 bytes of shared memory) whose phases end after `arrivals` calls of mbar_expect and
// all the bytes these announce. A cluster_sync() must follow before a peer may send to it.
DEVICE void mbar_init(uint64_t* bar, int arrivals) {
#if HAS_CLUSTER
  asm volatile("mbarrier.init.shared.b64 [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(
                   shared_address(bar)),
               "r"(arrivals)
               : "memory");
#else
  trap("mbarriers need compute capability 9.0");
#endif
}

// One arrival, which also announces `bytes` of asynchronous stores.
DEVICE void mbar_expect(uint64_t* bar, uint32_t bytes) {
#if HAS_CLUSTER
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
               "r"(bytes)
               : "memory");
#else
  trap("mbarriers need compute capability 9.0");
#endif
}

// Waits for the end of the phase of that parity: 0 for the first one, then 1, 0, 1...
DEVICE void mbar_wait(uint64_t* bar, uint32_t parity) {
#if HAS_CLUSTER
  Deadline deadline;
  for (;;) {
    uint32_t done;
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
    if (done) return;
    deadline.check("no end of an mbarrier phase");
  }
#else
  trap("mbarriers need compute capability 9.0");
#endif
}

// An address in the shared memory of a CTA of the cluster. That of one CTA is linear, so an offset
// may be added.
struct Remote {
  uint32_t address;
};
DEVICE Remote operator+(Remote r, int bytes) { return {r.address + static_cast<uint32_t>(bytes)}; }

// The address, in CTA `rank`, of what `p` is here.
DEVICE Remote remote(const void* p, int rank) {
#if HAS_CLUSTER
  Remote r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r.address) : "r"(shared_address(p)), "r"(rank));
  return r;
#else
  trap("clusters need compute capability 9.0");
  return {0};
#endif
}

// Asynchronous 16-byte store that counts its bytes on the mbarrier `bar` of the same CTA as `to`.
DEVICE void st_async16(Remote to, uint4 v, Remote bar) {
#if HAS_CLUSTER
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to.address),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(bar.address)
      : "memory");
#else
  trap("clusters need compute capability 9.0");
#endif
}

// The same with 4 bytes.
DEVICE void st_async4(Remote to, uint32_t v, Remote bar) {
#if HAS_CLUSTER
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to.address),
      "r"(v), "r"(bar.address)
      : "memory");
#else
  trap("clusters need compute capability 9.0");
#endif
}

}  // namespace rnnfast::dev
