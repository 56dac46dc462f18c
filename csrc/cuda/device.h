// The device primitives that the kernels are written in. Everything that is specific to a GPU,
// inline PTX above all, is in this file; with RNNFAST_SIMT the emulator in tests/simt stands in for
// it and the kernels run on a CPU. In a kernel every name below is one of dev::.
#pragma once

#ifdef RNNFAST_SIMT
#include "simt/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <type_traits>

#define DEVICE __device__ __forceinline__
#define KERNEL __global__ void
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#define LAUNCH_BOUNDS_FOR(threads, ctas) __launch_bounds__(threads, ctas)
#define UNROLL _Pragma("unroll")

// What the architecture being compiled for has, for #if and if constexpr in kernel bodies: clusters
// with distributed shared memory and mbarriers, and m16n8k16 tensor core instructions. The
// primitives that need them trap elsewhere.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HAS_CLUSTER 0
#else
#define HAS_CLUSTER 1
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define HAS_MMA 0
#else
#define HAS_MMA 1
#endif

namespace rnnfast::dev {

using Bf16 = __nv_bfloat16;
using Half = __half;

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

// ---- copies into shared memory that go on while the thread does ----

// kSize bytes of global memory, of which only the first `bytes` are read: zeros follow. Until this
// thread has waited for the group that the copy is in, nobody may touch `to`.
template <int kSize>
DEVICE void cp_async(void* to, const void* from, int bytes = kSize) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16);
#if HAS_MMA
  if constexpr (kSize == 16)  // past the L1 cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                 "l"(from), "n"(kSize), "r"(bytes)
                 : "memory");
#else
  trap("asynchronous copies need compute capability 8.0");
#endif
}

// Ends a group: the copies of this thread since the last one.
DEVICE void cp_commit() {
#if HAS_MMA
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of this thread but the last `kPending`. Their copies are then visible to it.
template <int kPending>
DEVICE void cp_wait() {
#if HAS_MMA
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// The place so many bytes beyond p, and the one `count` times `bytes` beyond it, by one
// instruction.
template <class T>
DEVICE T* advance(T* p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + bytes);
}
template <class T>
DEVICE T* advance(T* p, int count, int bytes) {
  T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(count), "r"(bytes), "l"(p));
  __builtin_assume(__isGlobal(result));
  return result;
}

// Asks for the 128 bytes around an address to be brought into the L2 cache.
DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// ---- global memory that the CTAs of a grid share ----

DEVICE uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Publishes what this thread stored before, and what it knows of through a barrier.
DEVICE void store_release(uint32_t* p, uint32_t v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Four words that other CTAs may be writing: each is an old one or a new one, in no order with any
// other. Orders between words come from fence_words().
DEVICE uint4 load_words(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
DEVICE void store_word(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
DEVICE void store_words(uint2* p, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y)
               : "memory");
}
// What this thread stored before is seen by who sees what it stores after, once that thread has
// called this in its turn.
DEVICE void fence_words() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// The loop around words: until all lanes of the warp are `ready`. A read takes long enough.
template <class Ready>
DEVICE void poll_until(Ready ready) {
  Deadline deadline;
  while (__any_sync(0xffffffffu, !ready())) deadline.check("no data");
}

// Past the L1 cache, which may hold an old line. What other CTAs read with load_l2 goes out with
// store_l2 (a plain store is as good on the device, but the emulator cannot delay it).
DEVICE uint4 load_l2(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
DEVICE uint2 load_l2(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
DEVICE uint32_t load_l2(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEVICE uint16_t load_l2(const uint16_t* p) {
  uint16_t v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
}
DEVICE void store_l2(uint4* p, uint4 v) {
  asm volatile("st.global.cg.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Whether 16 bytes can be loaded at once.
DEVICE bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// ---- kernels that begin before the one before them in the stream has ended ----
// A launch that is `dependent` may begin as soon as all CTAs of the kernel before it have called
// let_next_start() or ended. Between other kernels, and where the architecture cannot do it, both
// do nothing.

// All kernels before this one have ended, and what they stored is seen. Before it a thread may
// store nothing, and read nothing that they may have stored.
DEVICE void wait_for_previous() {
#if HAS_CLUSTER
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// After wait_for_previous() only: so that whoever begins while this kernel runs can rely on all
// that came before this one.
DEVICE void let_next_start() {
#if HAS_CLUSTER
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// As load_l2, of memory that no kernel near this one stores to: may come before
// wait_for_previous().
template <class T>
DEVICE T load_settled(const T* p) {
  return load_l2(p);
}

// ---- numbers ----

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(Bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(Half x) { return __half2float(x); }

// Two values, rounded to nearest even, `low` in the low 16 bits.
template <class E>
DEVICE uint32_t pack2(float low, float high) {
  static_assert(std::is_same_v<E, Bf16> || std::is_same_v<E, Half>);
  std::conditional_t<std::is_same_v<E, Half>, __half2, __nv_bfloat162> both;
  if constexpr (std::is_same_v<E, Half>)
    both = __floats2half2_rn(low, high);
  else
    both = __floats2bfloat162_rn(low, high);
  uint32_t pair;
  memcpy(&pair, &both, sizeof pair);
  return pair;
}

// The two values of such a pair.
template <class E>
DEVICE float low_float(uint32_t pair) {
  if constexpr (std::is_same_v<E, Half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair)));
  else
    return __uint_as_float(pair << 16);
}
template <class E>
DEVICE float high_float(uint32_t pair) {
  if constexpr (std::is_same_v<E, Half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
  else
    return __uint_as_float(pair & 0xffff0000u);
}

// By pack2: the conversion of a single value is a slow instruction on sm_90.
template <class E>
DEVICE E from_float(float x) {
  if constexpr (std::is_same_v<E, float>)
    return x;
  else if constexpr (std::is_same_v<E, Bf16>)
    return __ushort_as_bfloat16(static_cast<unsigned short>(pack2<E>(x, 0.f)));
  else
    return __ushort_as_half(static_cast<unsigned short>(pack2<E>(x, 0.f)));
}

// Rounded to tf32, as the bits that mma<MmaTf32> takes.
DEVICE uint32_t to_tf32(float x) {
#if HAS_MMA
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  trap("tf32 needs compute capability 8.0");
  return 0;
#endif
}

// 2 ULP; 1 ULP; relative error 2^-11. Subnormal results are zero.
DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same value, but the compiler no longer knows where it comes from: keeps it from computing
// addresses ahead of a loop, where they would take registers that the loop needs.
template <class T>
DEVICE T opaque(T x) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (std::is_same_v<T, float>)
    asm volatile("" : "+f"(x));
  else if constexpr (std::is_same_v<T, double>)
    asm volatile("" : "+d"(x));
  else if constexpr (sizeof(T) == 4)
    asm volatile("" : "+r"(x));
  else
    asm volatile("" : "+l"(x));
  return x;
}

// The same for a pointer into global memory.
template <class T>
DEVICE T* opaque_global(T* p) {
  p = opaque(p);
  __builtin_assume(__isGlobal(p));
  return p;
}

// The same for a pointer into shared memory.
template <class T>
DEVICE T* opaque_shared(T* p) {
  return static_cast<T*>(__cvta_shared_to_generic(opaque(shared_address(p))));
}

// ---- warp collectives: all 32 lanes call them together ----

DEVICE uint32_t shfl_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shfl_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE double shfl_xor(double v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shfl(float v, int from) { return __shfl_sync(0xffffffffu, v, from); }

// Four 8x8 matrices of 16-bit elements out of shared memory. Lane l brings the address of row l % 8
// of matrix l / 8, 16 bytes aligned to 16; r[i] gets, of matrix i, elements 2 (l % 4) and the next
// of row l / 4.
DEVICE void ldm4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with each matrix transposed: r[i] gets elements 2 (l % 4) and the next of column l / 4.
DEVICE void ldm4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += A B on the tensor cores: A is 16 x kDepth, B kDepth x 8, d 16 x 8 in float, in PTX's
// fragment layout of mma.m16n8k16 (of m16n8k8 for tf32).
struct MmaBf16 {
  static constexpr int kDepth = 16;
};
struct MmaHalf {
  static constexpr int kDepth = 16;
};
struct MmaTf32 {
  static constexpr int kDepth = 8;
};

template <class Mma>
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if HAS_MMA
  if constexpr (std::is_same_v<Mma, MmaBf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (std::is_same_v<Mma, MmaHalf>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  trap("this mma needs compute capability 8.0");
#endif
}

}  // namespace rnnfast::dev

#endif  // RNNFAST_SIMT
