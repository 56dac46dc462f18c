// How the CTAs that share a tile of the batch exchange a vector each step.
//
// Vectors are double-buffered, which suffices: who sends round r + 2 has received round r + 1 from
// every group of every CTA, and a group sends r + 1 only after all its warps have read round r.
//
// A vector lies in shared memory as the 8 x 16-byte matrices that ldmatrix reads: [K tile][column
// of 8 batch rows][half of the tile][batch row] of 16 bytes. A K tile is 32 bytes of K, 16 units of
// a 16-bit type or 8 floats, so that one layout serves all types.
#pragma once

#include "cuda/shape.h"

namespace rnnfast::cuda {

// Rounds count from 1; round 0 is the initial vector. What each CTA adds to a round is contiguous,
// its source. All functions are called by all threads of the CTA.
template <class S>
struct Exchanger {
  using E = typename S::Element;
  uint8_t* global;  // grid kernels: two vectors of this tile
  uint32_t* flags;  // grid kernels: [kPeers], the last round that each CTA has sent
  int rank, group, split, lane;

  DEVICE uint8_t* vector(int round) const {
    return dev::smem() + round % S::kVectorBuffers * S::kVectorBytes;
  }
  DEVICE uint64_t* bar(int round) const {
    return reinterpret_cast<uint64_t*>(dev::smem() + S::kBarsAt) + (round & 1);
  }
  // Where this group's part of a round begins in the vector.
  DEVICE int part_at() const { return rank * S::kSourceBytes + group * S::kGroupBytes; }
  DEVICE int thread_in_group() const { return split * kWarpSize + lane; }

  // Also a barrier of the CTA.
  DEVICE void init() const {
    if constexpr (S::kExchange == Exchange::kCluster) {
      if (dev::tid() == 0) {
        for (int i = 0; i < 2; ++i) {
          dev::mbar_init(bar(i), 1);
          dev::mbar_expect(bar(i), S::kVectorBytes);
        }
      }
      dev::cluster_sync();
    } else {
      dev::cta_sync();
    }
  }

  // Where this group collects its part of a round: in place, or on a stage to be sent from.
  DEVICE uint8_t* part(int round) const {
    return S::kExchange == Exchange::kCta ? vector(round) + part_at()
                                          : dev::smem() + S::kStageAt + group * S::kGroupBytes;
  }

  // Stores vector `in` of unit 0..15 of a group and of a batch row of the tile.
  static DEVICE void store(uint8_t* part, int in, int unit, int batch, float value) {
    constexpr int kHalf = S::kTileUnits / 2;
    const int tile = in * (kMmaUnits / S::kTileUnits) + unit / S::kTileUnits;
    uint8_t* to = part + (tile * S::kColumns + batch / kMmaBatch) * kTileBytes +
                  unit % S::kTileUnits / kHalf * kCoreBytes + batch % kMmaBatch * kRowBytes +
                  unit % kHalf * static_cast<int>(sizeof(E));
    if constexpr (S::kPrecision == Precision::kTf32) {
      *reinterpret_cast<uint32_t*>(to) = dev::to_tf32(value);
    } else {
      *reinterpret_cast<E*>(to) = narrow<E>(value);
    }
  }
  DEVICE void put(int round, int in, int unit, int batch, float value) const {
    store(part(round), in, unit, batch, value);
  }

  // After all threads of the group have put their elements.
  DEVICE void send(int round) const {
    if constexpr (S::kExchange == Exchange::kCluster) {
      group_barrier();
      send_to_peers(round);
    } else if constexpr (S::kExchange == Exchange::kGrid) {
      group_barrier();
      publish(round);
    }
  }

  DEVICE void group_barrier() const { dev::group_sync(1 + group, S::kGroupThreads); }

  DEVICE void send_to_peers(int round) const {
    constexpr int kRows = S::kGroupBytes / kRowBytes;
    UNROLL
    for (int i = 0; i < (kRows * S::kPeers + S::kGroupThreads - 1) / S::kGroupThreads; ++i) {
      const int index = i * S::kGroupThreads + thread_in_group();
      const int row = index % kRows * kRowBytes, peer = index / kRows;
      if (peer < S::kPeers)
        dev::st_async16(dev::remote(vector(round) + part_at() + row, peer),
                        *reinterpret_cast<const uint4*>(part(round) + row),
                        dev::remote(bar(round), peer));
    }
  }

  DEVICE void publish(int round) const {
    uint8_t* to = global + (round & 1) * S::kVectorBytes + part_at();
    for (int row = thread_in_group() * kRowBytes; row < S::kGroupBytes;
         row += S::kGroupThreads * kRowBytes)
      dev::store_l2(reinterpret_cast<uint4*>(to + row),
                    *reinterpret_cast<const uint4*>(part(round) + row));
    dev::cta_sync();
    if (dev::tid() == 0) dev::store_release(flags + rank, static_cast<uint32_t>(round));
  }

  // Waits until the whole vector of a round is in shared memory.
  DEVICE void receive(int round) const {
    if constexpr (S::kExchange == Exchange::kCta) {
      dev::cta_sync();
    } else if constexpr (S::kExchange == Exchange::kCluster) {
      dev::mbar_wait(bar(round), (round - 1) >> 1 & 1);
      // The bytes of round + 2 may arrive before this; its phase cannot end before this arrival.
      if (dev::tid() == 0) dev::mbar_expect(bar(round), S::kVectorBytes);
    } else {
      fetch(round);
    }
  }

  DEVICE void fetch(int round) const {
    for (int peer = dev::tid(); peer < S::kPeers; peer += S::kThreads) {
      const auto sent = [&] { return dev::load_acquire(flags + peer); };
      dev::wait_until([&] { return sent() >= static_cast<uint32_t>(round); });
    }
    dev::cta_sync();
    const uint8_t* from = global + (round & 1) * S::kVectorBytes;
    for (int at = dev::tid() * kRowBytes; at < S::kVectorBytes; at += S::kThreads * kRowBytes)
      *reinterpret_cast<uint4*>(vector(round) + at) =
          dev::load_l2(reinterpret_cast<const uint4*>(from + at));
    dev::cta_sync();
  }
};

}  // namespace rnnfast::cuda
