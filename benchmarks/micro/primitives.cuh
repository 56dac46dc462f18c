// The kernels of micro.cu: each repeats a primitive and times its loop.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace rnnfast::micro {

constexpr int kThreads = 512, kMaxCtas = 1024, kUnroll = 8, kSamples = 7;
constexpr int kRowBytes = 16, kMaxVectorBytes = 32 << 10;
constexpr size_t kOneCta =
    120 << 10;  // dynamic shared memory that leaves room for one CTA on an SM

struct Args {
  int iterations;
  bool check;  // what arrived, after every round
  int bytes;   // of the vector that is exchanged in a round
  int peers;   // CTAs that exchange it
  int64_t* cycles;
  int64_t* nanoseconds;
  uint32_t* errors;
  uint8_t* vectors;  // grid: two of each group of peers
  uint32_t* flags;   // grid: the last round of each CTA, zero before the launch
};

DEVICE int64_t nanoseconds() {
  int64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

// From when all threads of the CTA are ready until all are done.
class Timer {
 public:
  DEVICE Timer() {
    dev::cta_sync();
    ns_ = nanoseconds(), cycles_ = clock64();
  }
  DEVICE void stop(const Args& a) const {
    dev::cta_sync();
    if (dev::tid() != 0) return;
    a.cycles[dev::block_x()] = clock64() - cycles_;
    a.nanoseconds[dev::block_x()] = nanoseconds() - ns_;
  }

 private:
  int64_t cycles_, ns_;
};

DEVICE void expect(const Args& a, bool good) {
  if (!good) atomicAdd(a.errors, 1u);
}

KERNEL LAUNCH_BOUNDS(kThreads) empty(const Args) {}

// ---- one SM ----

template <class F>
DEVICE void repeat(int iterations, F primitive) {
#pragma unroll 1
  for (int i = 0; i < iterations; ++i) {
    UNROLL
    for (int u = 0; u < kUnroll; ++u) primitive(u);
  }
}

// Chains of dependent products, side by side; operands are ones, so that the sums are known.
template <class Mma, int kChains>
KERNEL LAUNCH_BOUNDS(kThreads) mma_rate(const Args a) {
  constexpr bool kTf32 = std::is_same_v<Mma, dev::MmaTf32>;
  const uint32_t one = kTf32 ? dev::to_tf32(1.f) : dev::pack2<dev::Bf16>(1.f, 1.f);
  const uint32_t ones[4] = {one, one, one, one};
  float d[kChains][4] = {};
  const Timer timer;
  repeat(a.iterations, [&](int) {
    UNROLL
    for (auto& chain : d) dev::mma<Mma>(chain, ones, one, one);
  });
  timer.stop(a);
  for (auto& chain : d)
    for (float x : chain) expect(a, x == static_cast<float>(a.iterations * kUnroll * Mma::kDepth));
}

// Each word of tile u is the offset of tile u + 1: what was loaded is the next address.
template <bool kChained>
KERNEL LAUNCH_BOUNDS(kThreads) ldmatrix_rate(const Args a) {
  uint32_t* tiles = reinterpret_cast<uint32_t*>(dev::smem());
  for (int i = dev::tid(); i < kUnroll * 128; i += dev::threads())
    tiles[i] = static_cast<uint32_t>((i / 128 + 1) % kUnroll * 512);
  const uint8_t* row = dev::smem() + dev::tid() % 32 * kRowBytes;
  uint32_t offset = 0, sum = 0;
  const Timer timer;
  repeat(a.iterations, [&](int u) {
    uint32_t r[4];
    dev::ldm4(r, row + (kChained ? offset : static_cast<uint32_t>(u * 512)));
    if constexpr (kChained)
      offset = r[0];
    else
      sum += r[0] + r[1] + r[2] + r[3];
  });
  timer.stop(a);
  const uint32_t all = 4 * 512 * (kUnroll * (kUnroll - 1) / 2);
  expect(a, offset == 0 && sum == (kChained ? 0 : static_cast<uint32_t>(a.iterations) * all));
}

enum class Barrier { kCta, kGroup, kCluster };

template <Barrier kHow>
KERNEL LAUNCH_BOUNDS(kThreads) barrier_rate(const Args a) {
  const Timer timer;
  repeat(a.iterations, [&](int) {
    if constexpr (kHow == Barrier::kCta)
      dev::cta_sync();
    else if constexpr (kHow == Barrier::kGroup)
      dev::group_sync(1 + dev::tid() / 128, 128);
    else
      dev::cluster_sync();
  });
  timer.stop(a);
}

// ---- exchange: every CTA hands its share of a vector to all its peers, in every round ----

// A row of 16 bytes says whose it is and of which round.
DEVICE uint4 row_of(int round, int index, uint32_t seed) {
  const uint32_t v = seed + static_cast<uint32_t>(round) * 0x9E3779B1u;
  return {v, v + static_cast<uint32_t>(index), v ^ 0x85EBCA77u, static_cast<uint32_t>(index)};
}

DEVICE void verify(const Args& a, const uint8_t* vector, int round, uint32_t seed) {
  for (int i = dev::tid(); i < a.bytes / kRowBytes; i += dev::threads()) {
    const uint4 found = *reinterpret_cast<const uint4*>(vector + i * kRowBytes);
    const uint4 wanted = row_of(round, i, seed);
    expect(a, found.x == wanted.x && found.y == wanted.y && found.z == wanted.z &&
                  found.w == wanted.w);
  }
}

// As the cluster kernels do it: the share is staged, sent by st.async, awaited on an mbarrier.
KERNEL LAUNCH_BOUNDS(kThreads) cluster_exchange(const Args a) {
  const int rank = dev::cluster_rank(), share = a.bytes / a.peers, rows = share / kRowBytes;
  const uint32_t seed = static_cast<uint32_t>(dev::block_x() / a.peers);
  uint8_t *vectors = dev::smem(), *stage = vectors + 2 * a.bytes;
  uint64_t* bars = reinterpret_cast<uint64_t*>(stage + share);
  if (dev::tid() == 0) {
    for (int i = 0; i < 2; ++i) {
      dev::mbar_init(bars + i, 1);
      dev::mbar_expect(bars + i, static_cast<uint32_t>(a.bytes));
    }
  }
  dev::cluster_sync();
  const Timer timer;
  for (int round = 1; round <= a.iterations; ++round) {
    uint8_t* vector = vectors + (round & 1) * a.bytes;
    uint64_t* bar = bars + (round & 1);
    for (int i = dev::tid(); i < rows; i += kThreads)
      *reinterpret_cast<uint4*>(stage + i * kRowBytes) = row_of(round, rank * rows + i, seed);
    dev::cta_sync();
    for (int i = dev::tid(); i < rows * a.peers; i += kThreads) {
      const int at = i % rows * kRowBytes, peer = i / rows;
      dev::st_async16(dev::remote(vector + rank * share + at, peer),
                      *reinterpret_cast<const uint4*>(stage + at), dev::remote(bar, peer));
    }
    dev::mbar_wait(bar, static_cast<uint32_t>((round - 1) >> 1 & 1));
    if (dev::tid() == 0) dev::mbar_expect(bar, static_cast<uint32_t>(a.bytes));
    dev::cta_sync();
    if (a.check) verify(a, vector, round, seed);
  }
  timer.stop(a);
  verify(a, vectors + (a.iterations & 1) * a.bytes, a.iterations, seed);
  dev::cluster_sync();
}

// As the grid kernels do it: the share goes to global memory, a flag says so, and everybody reads.
KERNEL LAUNCH_BOUNDS(kThreads) grid_exchange(const Args a) {
  const int rank = dev::block_x() % a.peers, group = dev::block_x() / a.peers;
  const int share = a.bytes / a.peers, rows = share / kRowBytes;
  const uint32_t seed = static_cast<uint32_t>(group);
  uint32_t* flags = a.flags + group * a.peers;
  const Timer timer;
  for (int round = 1; round <= a.iterations; ++round) {
    uint8_t* vector = a.vectors + (2 * group + (round & 1)) * kMaxVectorBytes;
    for (int i = dev::tid(); i < rows; i += kThreads)
      dev::store_l2(reinterpret_cast<uint4*>(vector + rank * share + i * kRowBytes),
                    row_of(round, rank * rows + i, seed));
    dev::cta_sync();
    if (dev::tid() == 0) dev::store_release(flags + rank, static_cast<uint32_t>(round));
    for (int i = dev::tid(); i < a.peers; i += kThreads)
      dev::wait_until([&] { return dev::load_acquire(flags + i) >= static_cast<uint32_t>(round); });
    dev::cta_sync();
    for (int i = dev::tid() * kRowBytes; i < a.bytes; i += kThreads * kRowBytes)
      *reinterpret_cast<uint4*>(dev::smem() + i) =
          dev::load_l2(reinterpret_cast<const uint4*>(vector + i));
    dev::cta_sync();
    if (a.check) verify(a, dev::smem(), round, seed);
  }
  timer.stop(a);
  verify(a, dev::smem(), a.iterations, seed);
}

}  // namespace rnnfast::micro
