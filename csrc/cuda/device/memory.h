// Device primitives, included by cuda/device.h: copies and words, in memory that others see too.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/threads.h"

namespace rnnfast::dev {

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

}  // namespace rnnfast::dev
