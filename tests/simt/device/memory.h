// csrc/cuda/device/memory.h on the emulator.
#pragma once

#include <cstdint>

#include "simt/device/threads.h"

namespace rnnfast::dev {

// ---- copies into shared memory that go on while the thread does ----

// At once or when the thread waits for it: the emulator chooses.
template <int kSize>
DEVICE void cp_async(void* to, const void* from, int bytes = kSize) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16);
  if (bytes < 0 || bytes > kSize) machine->fail("cp_async of a wrong number of bytes");
  if (reinterpret_cast<uintptr_t>(to) % kSize != 0 || !machine->cta().smem->holds(to, kSize))
    machine->fail("cp_async to a wrong address");
  if (bytes != 0 && reinterpret_cast<uintptr_t>(from) % kSize != 0)
    machine->fail("cp_async from a misaligned address");
  const emu::ThreadCopy copy{static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), kSize,
                             bytes};
  if (machine->random(4) == 0)
    copy.land();
  else
    machine->fiber().copies.back().push_back(copy);
  machine->maybe_yield();
}

DEVICE void cp_commit() { machine->fiber().copies.emplace_back(); }

template <int kPending>
DEVICE void cp_wait() {
  auto& groups = machine->fiber().copies;  // the last one is open
  while (groups.size() > kPending + 1) {
    for (const emu::ThreadCopy& copy : groups.front()) copy.land();
    groups.erase(groups.begin());
  }
  machine->maybe_yield();
}

template <class T>
DEVICE T* advance(T* p, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
}
template <class T>
DEVICE T* advance(T* p, int count, int bytes) {
  return advance(p, int64_t{count} * bytes);
}

// A wrong address fails here.
DEVICE void prefetch_l2(const void* p) {
  static_cast<void>(*static_cast<const volatile uint8_t*>(p));
}

// ---- global memory that the CTAs of a grid share ----

DEVICE uint32_t load_acquire(const uint32_t* p) {
  machine->maybe_yield();
  return *static_cast<const volatile uint32_t*>(p);
}

DEVICE void store_release(uint32_t* p, uint32_t v) {
  machine->publish(machine->cta().stores);
  machine->publish(machine->warp().stores);
  machine->publish(machine->fiber().stores);
  *static_cast<volatile uint32_t*>(p) = v;
  machine->happened();
  machine->maybe_yield();
}

// The latest store to an address that this thread sees and other CTAs may not.
DEVICE const uint4* find_store(const std::vector<emu::Store>& stores, const uint4* p) {
  for (auto s = stores.rbegin(); s != stores.rend(); ++s)
    if (s->to == p) return &s->value;
  return nullptr;
}

DEVICE void check_aligned(const uint4* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0)
    machine->fail("16 bytes of global memory at a misaligned address");
}

// Of a launch that is dependent: what kernels before it have stored may not be there yet.
DEVICE void check_waited(const char* what) {
  if (machine->shape().dependent && !machine->fiber().waited)
    machine->fail(std::string(what) + " before wait_for_previous");
}

DEVICE uint4 load_l2(const uint4* p) {
  check_aligned(p);
  check_waited("load_l2");
  machine->maybe_yield();
  for (const auto* stores :
       {&machine->fiber().stores, &machine->warp().stores, &machine->cta().stores})
    if (const uint4* own = find_store(*stores, p)) return *own;
  return *p;
}

template <class T>
DEVICE T load_l2(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0)
    machine->fail("load_l2 from a misaligned address");
  check_waited("load_l2");
  return *p;
}
template <class T>
DEVICE T load_settled(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0)
    machine->fail("load_settled from a misaligned address");
  return *p;
}

DEVICE void store_l2(uint4* p, uint4 v) {
  check_aligned(p);
  static_cast<void>(*static_cast<volatile uint32_t*>(&p->x));  // a wrong address fails here
  if (machine->delays_stores())
    machine->fiber().stores.push_back({p, v});
  else
    *p = v;
  machine->maybe_yield();
}

DEVICE bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// What others find of it: words.h.
DEVICE void store_word(uint32_t* p, uint32_t v) {
  static_cast<void>(*static_cast<volatile uint32_t*>(p));  // a wrong address fails here
  machine->store_word(p, v);
  machine->maybe_yield();
}
DEVICE void store_words(uint2* p, uint2 v) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof v != 0) machine->fail("store_words: misaligned");
  store_word(&p->x, v.x);
  store_word(&p->y, v.y);
}
DEVICE uint4 load_words(const uint4* p) {
  check_aligned(p);
  machine->maybe_yield();
  return machine->load_words(p);
}
DEVICE void fence_words() {
  emu::Words::fence(machine->fiber().words);
  machine->maybe_yield();
}

template <class Ready>
DEVICE void poll_until(Ready ready) {
  for (;;) {
    emu::Lane& lane = machine->lane();
    lane.in[0] = ready();
    collective("poll_until", [](emu::Warp& warp, const auto&) {
      uint32_t all = 1;
      for (emu::Lane& l : warp.lanes) all &= l.in[0];
      for (emu::Lane& l : warp.lanes) l.out[0] = all;
    });
    if (lane.out[0] != 0) return;
    pause();
  }
}

// ---- kernels that begin before the one before them in the stream has ended ----

DEVICE void wait_for_previous() {
  machine->fiber().waited = true;
  machine->maybe_yield();
}
DEVICE void let_next_start() { check_waited("let_next_start"); }

}  // namespace rnnfast::dev
