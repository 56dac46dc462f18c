// The device primitives of csrc/cuda/device.h on the emulator; see there for what they mean.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator.h"

#define DEVICE inline
#define KERNEL inline void
#define LAUNCH_BOUNDS(threads)
#define LAUNCH_BOUNDS_FOR(threads, ctas)
#define UNROLL
#define HAS_CLUSTER 1
#define HAS_MMA 1

namespace rnnfast::dev {

using emu::machine;

// ---- where a thread is ----

DEVICE int tid() { return machine->fiber().thread; }
DEVICE int threads() { return machine->shape().threads; }
DEVICE int block_x() { return machine->cta().x; }
DEVICE int block_y() { return machine->cta().y; }
DEVICE int grid_x() { return machine->shape().grid_x; }
DEVICE int grid_y() { return machine->shape().grid_y; }
DEVICE uint8_t* smem() { return machine->cta().smem->data(); }
DEVICE int cluster_rank() { return machine->cta().rank; }
DEVICE void trap(const char* reason) { machine->fail(std::string("trap: ") + reason); }

// ---- waiting ----

DEVICE void pause() { machine->pause(); }

template <class Condition>
DEVICE void wait_until(Condition condition) {
  while (!condition()) pause();
}

// ---- barriers ----

// What the threads that met stored before is ordered before what `stores` stands for does next.
DEVICE void order_stores(const std::vector<emu::Fiber*>& met, std::vector<emu::Store>& stores) {
  for (emu::Fiber* f : met) {
    stores.insert(stores.end(), f->stores.begin(), f->stores.end());
    f->stores.clear();
  }
}

// A barrier of threads of one CTA: of whole warps.
DEVICE void cta_barrier(emu::Barrier& barrier, int threads, const char* where) {
  machine->arrive(barrier, threads, where, [&](const std::vector<emu::Fiber*>& met) {
    emu::Cta& cta = machine->cta();
    std::vector<int> lanes(cta.warps.size());
    for (const emu::Fiber* f : met) ++lanes[static_cast<size_t>(f->thread / emu::kWarp)];
    for (int n : lanes)
      if (n != 0 && n != emu::kWarp) machine->fail(std::string(where) + " by a part of a warp");
    for (emu::Warp& warp : cta.warps) {
      cta.stores.insert(cta.stores.end(), warp.stores.begin(), warp.stores.end());
      warp.stores.clear();
    }
    order_stores(met, cta.stores);
  });
}

DEVICE void cta_sync() { cta_barrier(machine->cta().barrier, threads(), "cta_sync"); }

DEVICE void group_sync(int id, int threads) {
  if (id < 1 || id >= emu::kNamedBarriers) machine->fail("group_sync with a wrong id");
  if (threads < emu::kWarp || threads % emu::kWarp != 0 || threads > dev::threads())
    machine->fail("group_sync of " + std::to_string(threads) + " threads");
  cta_barrier(machine->cta().named[id], threads, "group_sync");
}

// All lanes meet; the last one calls `compute` on what they brought.
template <class Compute>
DEVICE void collective(const char* name, Compute compute) {
  emu::Warp& warp = machine->warp();
  if (warp.barrier.arrived > 0 && std::strcmp(warp.collective, name) != 0)
    machine->fail(std::string("divergent warp: ") + name + " while other lanes are at " +
                  warp.collective);
  warp.collective = name;
  machine->arrive(warp.barrier, emu::kWarp, name,
                  [&](const std::vector<emu::Fiber*>& met) { compute(warp, met); });
}

DEVICE void warp_sync() {
  collective("warp_sync", [](emu::Warp& warp, const std::vector<emu::Fiber*>& met) {
    order_stores(met, warp.stores);
  });
}

DEVICE void keep_order() {}

DEVICE void cluster_sync() {
  emu::Cluster& cluster = *machine->cta().cluster;
  const int all = static_cast<int>(cluster.ctas.size()) * threads();
  machine->arrive(cluster.barrier, all, "cluster_sync", [&](const std::vector<emu::Fiber*>& met) {
    for (emu::Fiber* f : met) machine->publish(f->stores);
    for (emu::Cta& cta : cluster.ctas) {
      for (emu::Warp& warp : cta.warps) machine->publish(warp.stores);
      machine->publish(cta.stores);
    }
  });
}

// ---- shared memory of the cluster ----

DEVICE emu::Mbar& own_mbar(uint64_t* bar, const char* primitive) {
  for (const uint64_t* known : machine->cta().mbars)
    if (known == bar) return *reinterpret_cast<emu::Mbar*>(bar);
  machine->fail(std::string(primitive) + " without mbar_init");
}

DEVICE void mbar_init(uint64_t* bar, int arrivals) {
  emu::Cta& cta = machine->cta();
  if (!cta.smem->holds(bar, sizeof *bar) || reinterpret_cast<uintptr_t>(bar) % sizeof *bar != 0)
    machine->fail("mbar_init outside shared memory, or not aligned");
  for (const uint64_t* known : cta.mbars)
    if (known == bar) machine->fail("mbar_init of the same mbarrier again");
  if (arrivals < 1) machine->fail("mbar_init with no arrivals");
  cta.mbars.push_back(bar);
  const auto n = static_cast<int16_t>(arrivals);
  *reinterpret_cast<emu::Mbar*>(bar) = {n, n, 0, 0};
  machine->maybe_yield();
}

DEVICE void mbar_expect(uint64_t* bar, uint32_t bytes) {
  emu::Mbar& m = own_mbar(bar, "mbar_expect");
  m.bytes = m.bytes + static_cast<int>(bytes);
  --m.pending;
  machine->check_phase(machine->cta(), bar);
  machine->maybe_yield();
}

DEVICE void mbar_wait(uint64_t* bar, uint32_t parity) {
  const emu::Mbar& m = own_mbar(bar, "mbar_wait");
  if (parity > 1) machine->fail("mbar_wait with a parity above 1");
  machine->maybe_yield();
  emu::Fiber& fiber = machine->fiber();
  fiber.bar = bar;
  fiber.parity = parity;
  while (m.phase == parity) {  // again where a slow thread has missed the phase
    machine->cta().mbar_waiting.push_back(&fiber);
    machine->block("mbar_wait");
  }
  fiber.bar = nullptr;
}

struct Remote {
  emu::Cta* cta;
  int64_t offset;
};
DEVICE Remote operator+(Remote r, int bytes) { return {r.cta, r.offset + bytes}; }

DEVICE Remote remote(const void* p, int rank) {
  auto& ctas = machine->cta().cluster->ctas;
  if (rank < 0 || static_cast<size_t>(rank) >= ctas.size())
    machine->fail("remote: no rank " + std::to_string(rank) + " in this cluster");
  return {&ctas[static_cast<size_t>(rank)], static_cast<const uint8_t*>(p) - smem()};
}

DEVICE void st_async(Remote to, uint4 v, int bytes, Remote bar) {
  const auto end = static_cast<int64_t>(machine->shape().smem_bytes);
  if (to.cta != bar.cta) machine->fail("st_async: data and mbarrier in different CTAs");
  if (to.offset < 0 || to.offset + bytes > end || bar.offset < 0 || bar.offset + 8 > end)
    machine->fail("st_async outside shared memory");
  if (to.offset % bytes != 0) machine->fail("st_async to a misaligned address");
  uint8_t* base = to.cta->smem->data();
  machine->send({to.cta, base + to.offset, reinterpret_cast<uint64_t*>(base + bar.offset), v,
                 static_cast<size_t>(bytes)});
  machine->maybe_yield();
}
DEVICE void st_async16(Remote to, uint4 v, Remote bar) { st_async(to, v, 16, bar); }
DEVICE void st_async4(Remote to, uint32_t v, Remote bar) { st_async(to, {v, 0, 0, 0}, 4, bar); }

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

// Words land one by one, at any time, those of one thread at one address in their order; others see
// them then.
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
  return *p;
}
// The loads of a thread are in order as they are.
DEVICE void fence_words() {
  machine->land_words(machine->fiber());
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

// ---- numbers ----

template <class To, class From>
DEVICE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(Bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x400u) {  // subnormal: a multiple of 2^-24
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t rebias = magnitude < 0x7c00u ? 112u << 23 : 224u << 23;  // else infinite or NaN
  return bit_cast<float>(sign | ((magnitude << 13) + rebias));
}

// Rounded to the nearest, ties to even.
template <class E>
DEVICE E from_float(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  if constexpr (std::is_same_v<E, float>) {
    return x;
  } else if constexpr (std::is_same_v<E, Bf16>) {
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    static_assert(std::is_same_v<E, Half>);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (x != x)
      return {0x7fff};
    else if (magnitude >= 0x47800000u)  // 2^16; what rounds up to it becomes infinite below
      half = 0x7c00u;
    else if (magnitude < 0x38800000u)  // 2^-14: subnormal; at 0.5 a float is a multiple of 2^-24
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
    else
      half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    return {static_cast<uint16_t>(sign | half)};
  }
}

template <class E>
DEVICE uint32_t pack2(float low, float high) {
  return from_float<E>(low).bits | static_cast<uint32_t>(from_float<E>(high).bits) << 16;
}

template <class E>
DEVICE float low_float(uint32_t pair) {
  return to_float(E{static_cast<uint16_t>(pair)});
}
template <class E>
DEVICE float high_float(uint32_t pair) {
  return to_float(E{static_cast<uint16_t>(pair >> 16)});
}

// Ties away from zero; every NaN becomes the same.
DEVICE uint32_t to_tf32(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  if (x != x) return 0x7fffffffu;
  return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

DEVICE float flush_subnormal(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x;
}
DEVICE float exp2_approx(float x) { return flush_subnormal(std::exp2(flush_subnormal(x))); }
DEVICE float rcp_approx(float x) { return flush_subnormal(1.f / flush_subnormal(x)); }
// As far off as the instruction may be: cut to 11 bits.
DEVICE float tanh_approx(float x) {
  return bit_cast<float>(bit_cast<uint32_t>(std::tanh(x)) & ~0x1fffu);
}

template <class T>
DEVICE T opaque(T x) {
  return x;
}

template <class T>
DEVICE T* opaque_global(T* p) {
  return p;
}
template <class T>
DEVICE T* opaque_shared(T* p) {
  return p;
}

// ---- warp collectives ----

DEVICE uint32_t shfl_xor(uint32_t v, int mask) {
  emu::Lane& lane = machine->lane();
  lane.in[0] = v;
  lane.in[1] = static_cast<uint32_t>(mask);
  collective("shfl_xor", [](emu::Warp& warp, const auto&) {
    for (uint32_t l = 0; l < emu::kWarp; ++l) {
      const uint32_t mask = warp.lanes[l].in[1];
      if (mask != warp.lanes[0].in[1] || mask >= emu::kWarp)
        machine->fail("shfl_xor with different or wrong masks");
      warp.lanes[l].out[0] = warp.lanes[l ^ mask].in[0];
    }
  });
  return lane.out[0];
}
DEVICE float shfl_xor(float v, int mask) {
  return bit_cast<float>(shfl_xor(bit_cast<uint32_t>(v), mask));
}
DEVICE double shfl_xor(double v, int mask) {
  const auto bits = bit_cast<uint64_t>(v);
  const uint64_t low = shfl_xor(static_cast<uint32_t>(bits), mask);
  const uint64_t high = shfl_xor(static_cast<uint32_t>(bits >> 32), mask);
  return bit_cast<double>(high << 32 | low);
}
DEVICE float shfl(float v, int from) {
  emu::Lane& lane = machine->lane();
  lane.in[0] = bit_cast<uint32_t>(v);
  lane.in[1] = static_cast<uint32_t>(from);
  collective("shfl", [](emu::Warp& warp, const auto&) {
    for (emu::Lane& l : warp.lanes) {
      if (l.in[1] >= emu::kWarp) machine->fail("shfl from no lane");
      l.out[0] = warp.lanes[l.in[1]].in[0];
    }
  });
  return bit_cast<float>(lane.out[0]);
}

// Of every lane of the warp: register i, of the matrix whose 8 rows are `row`.
template <class Take>
DEVICE void load_matrices(const char* name, uint32_t (&r)[4], const void* row, Take take) {
  emu::Lane& lane = machine->lane();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    machine->fail(std::string(name) + ": row not aligned to 16 bytes");
  if (!machine->cta().smem->holds(row, 16))
    machine->fail(std::string(name) + ": row outside shared memory");
  lane.row = row;
  collective(name, [&](emu::Warp& warp, const auto&) {
    for (int l = 0; l < emu::kWarp; ++l) {
      for (int i = 0; i < 4; ++i) {
        const emu::Lane* rows = warp.lanes + i * 8;
        uint16_t two[2];
        for (int j = 0; j < 2; ++j) take(&two[j], rows, l / 4, l % 4 * 2 + j);
        std::memcpy(&warp.lanes[l].out[i], two, sizeof two);
      }
    }
  });
  std::memcpy(r, lane.out, sizeof r);
}
DEVICE void ldm4(uint32_t (&r)[4], const void* row) {
  load_matrices("ldm4", r, row, [](uint16_t* to, const emu::Lane* rows, int n, int k) {
    std::memcpy(to, static_cast<const uint8_t*>(rows[n].row) + k * 2, 2);
  });
}
DEVICE void ldm4_transposed(uint32_t (&r)[4], const void* row) {
  load_matrices("ldm4_transposed", r, row, [](uint16_t* to, const emu::Lane* rows, int n, int k) {
    std::memcpy(to, static_cast<const uint8_t*>(rows[k].row) + n * 2, 2);
  });
}

// An operand register holds two elements along the depth, or one.
struct MmaBf16 {
  static constexpr int kDepth = 16;
  static float element(uint32_t bits, int i) {
    return to_float(Bf16{static_cast<uint16_t>(bits >> (16 * i))});
  }
};
struct MmaHalf {
  static constexpr int kDepth = 16;
  static float element(uint32_t bits, int i) {
    return to_float(Half{static_cast<uint16_t>(bits >> (16 * i))});
  }
};
struct MmaTf32 {
  static constexpr int kDepth = 8;
  static float element(uint32_t bits, int) { return bit_cast<float>(bits & ~0x1fffu); }
};

// PTX's fragments: lane l = 4 g + q. A's registers hold rows g and g + 8, first for the first half
// of the depth, then for the second; B's hold column g, first half and second half; d's are
// (g, 2q), (g, 2q + 1), and the same in row g + 8.
template <class Mma>
DEVICE void multiply(emu::Warp& warp) {
  constexpr int kDepth = Mma::kDepth, kEach = kDepth / 8;  // elements in a register
  float a[16][kDepth], b[kDepth][8];
  for (int l = 0; l < emu::kWarp; ++l)
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < kEach; ++i) {
        const int g = l / 4, k = half * kDepth / 2 + l % 4 * kEach + i;
        const uint32_t* in = warp.lanes[l].in;
        a[g][k] = Mma::element(in[2 * half], i);
        a[g + 8][k] = Mma::element(in[2 * half + 1], i);
        b[k][g] = Mma::element(in[4 + half], i);
      }
  for (int l = 0; l < emu::kWarp; ++l)
    for (int e = 0; e < 4; ++e) {
      const int row = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
      float& d = warp.lanes[l].d[e];
      for (int k = 0; k < kDepth; ++k) d += a[row][k] * b[k][column];
    }
}

template <class Mma>
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emu::Lane& lane = machine->lane();
  std::memcpy(lane.in, a, sizeof a);
  lane.in[4] = b0;
  lane.in[5] = b1;
  std::memcpy(lane.d, d, sizeof d);
  collective("mma", [](emu::Warp& warp, const auto&) { multiply<Mma>(warp); });
  std::memcpy(d, lane.d, sizeof d);
}

}  // namespace rnnfast::dev
