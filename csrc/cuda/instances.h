// The shapes for which whole-sequence kernels are compiled, and what follows from each: how the
// work is cut up, how much shared memory it takes. Pure; shared by the plan, the launchers and the
// kernels. Nothing is compiled per problem: a layer runs on an instance of at least its size.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>

#include "math.h"

namespace rnnfast::cuda {

inline constexpr int kWarpSize = 32;
// One mma multiplies weights of 16 units with a K tile of 32 bytes of 8 batch rows.
inline constexpr int kMmaUnits = 16, kMmaBatch = 8;
inline constexpr int kRowBytes = 16;                      // what ldmatrix reads per row
inline constexpr int kCoreBytes = kMmaBatch * kRowBytes;  // one 8 x 16-byte matrix
inline constexpr int kTileBytes = 2 * kCoreBytes;         // a K tile of 8 batch rows
inline constexpr int kFragmentBytes = kWarpSize * 16;     // the weights of one mma
inline constexpr int kPackThreads = 256;

enum class Precision { kBf16, kHalf, kTf32, kFloat };  // kFloat: float32 in two TF32 parts
enum class Exchange { kCta, kCluster, kGrid };

struct Instance {
  Exchange exchange;
  bool backward;
  int hidden;   // H at most; a multiple of 16 * peers
  int peers;    // CTAs that share a tile of the batch
  int columns;  // 8 batch rows each, 1 or 2, of a tile
};

// Forward; of each there is one backward too.
inline constexpr Instance kForwardInstances[] = {
    {Exchange::kCta, false, 64, 1, 1},        {Exchange::kCta, false, 128, 1, 1},
    {Exchange::kCluster, false, 128, 2, 1},   {Exchange::kCluster, false, 256, 4, 1},
    {Exchange::kCluster, false, 384, 8, 1},   {Exchange::kCluster, false, 512, 8, 1},
    {Exchange::kCluster, false, 512, 16, 1},  {Exchange::kCluster, false, 768, 16, 1},
    {Exchange::kCluster, false, 1024, 16, 1}, {Exchange::kGrid, false, 256, 16, 1},
    {Exchange::kGrid, false, 512, 32, 1},     {Exchange::kGrid, false, 1024, 64, 1},
    {Exchange::kGrid, false, 2048, 128, 1},
};
inline constexpr int kInstanceCount = 2 * std::size(kForwardInstances);
inline constexpr auto kInstances = [] {
  std::array<Instance, kInstanceCount> all{};
  for (int i = 0; i < kInstanceCount; ++i) {
    all[i] = kForwardInstances[i / 2];
    all[i].backward = i % 2 == 1;
  }
  return all;
}();

// Of the flags of so many tiles, rounded up so that the vectors behind them are aligned.
RNNFAST_FN constexpr int64_t flag_bytes(int64_t tiles, int peers) {
  return (tiles * peers * 4 + 255) / 256 * 256;
}

struct Layout {
  Exchange exchange;
  int peers, columns, gates, element_bytes;
  bool backward;
  int units, groups;     // of a CTA; a group is 16 units
  int splits;            // warps of a group, which share K
  int tile_units;        // of K in a tile: 32 bytes
  int in, out;           // exchanged and computed numbers per unit: forward 1, G; backward G, 1
  int warp_tiles;        // K tiles of a warp
  int fragments;         // operands of a warp
  int shared_fragments;  // of them in shared memory

  constexpr int warps() const { return groups * splits; }
  constexpr int threads() const { return warps() * kWarpSize; }
  constexpr int elements() const { return 4 * columns / splits; }
  constexpr int group_bytes() const { return in * kMmaUnits / tile_units * columns * kTileBytes; }
  constexpr int source_bytes() const { return groups * group_bytes(); }
  constexpr int vector_bytes() const { return peers * source_bytes(); }
  // A grid kernel keeps its two buffers in global memory.
  constexpr int vector_buffers() const { return exchange == Exchange::kGrid ? 1 : 2; }
  constexpr int partial_floats() const {  // of a group
    return splits * (splits - 1) * out * elements() * kWarpSize;
  }
  constexpr int partial_bytes() const { return groups * partial_floats() * 4; }

  // Shared memory: vectors, partial sums, stage, bias, mbarriers, weights.
  constexpr int partial_at() const { return vector_buffers() * vector_bytes(); }
  constexpr int stage_at() const { return partial_at() + partial_bytes(); }
  constexpr int bias_at() const {
    return stage_at() + (exchange == Exchange::kCta ? 0 : source_bytes());
  }
  constexpr int bars_at() const { return bias_at() + (backward ? 0 : gates * units * 4); }
  constexpr int weights_at() const { return bars_at() + 16; }
  constexpr int shared_bytes() const {
    return weights_at() + warps() * shared_fragments * kFragmentBytes;
  }
  constexpr int64_t packed_bytes() const {  // of w_hh, one direction
    return int64_t{peers} * warps() * fragments * kFragmentBytes;
  }
  // Global memory of a grid kernel, for so many tiles over all directions: flags, then vectors.
  constexpr int64_t exchange_bytes(int64_t tiles) const {
    return exchange == Exchange::kGrid ? flag_bytes(tiles, peers) + tiles * 2 * vector_bytes() : 0;
  }
};

// Operands that a warp can hold in registers: four each, of what the number of warps leaves to a
// thread, beside what the step itself needs. From the compiler's reports: none may spill.
constexpr int register_fragments(const Layout& l) {
  const int registers = l.warps() <= 8 ? 248 : l.warps() <= 12 ? 152 : 128;
  const int step = 66 + 3 * l.gates + (l.backward ? 16 : 0) + (l.element_bytes > 2 ? 12 : 0) +
                   (l.exchange == Exchange::kGrid ? 28 : 0);
  return (registers - step) / 4;
}

constexpr Layout layout(const Instance& instance, int gates, Precision precision) {
  Layout l{};
  l.exchange = instance.exchange, l.peers = instance.peers, l.columns = instance.columns;
  l.gates = gates, l.backward = instance.backward;
  const bool half = precision == Precision::kBf16 || precision == Precision::kHalf;
  l.element_bytes = half ? 2 : 4;
  l.units = instance.hidden / instance.peers, l.groups = l.units / kMmaUnits;
  l.tile_units = 32 / l.element_bytes;
  l.in = instance.backward ? gates : 1, l.out = instance.backward ? 1 : gates;
  const int tiles = l.in * instance.hidden / l.tile_units;
  l.splits = 4 * instance.columns;
  while (l.splits > 1 && (l.groups * l.splits > 16 || tiles % (l.splits * 2) != 0)) l.splits /= 2;
  l.warp_tiles = tiles / l.splits;
  l.fragments = l.warp_tiles * l.out * (precision == Precision::kFloat ? 2 : 1);
  const int held = register_fragments(l);
  l.shared_fragments = l.fragments > held ? l.fragments - held : 0;
  return l;
}

// Most shared memory that a CTA may have on any architecture: sm_90 and sm_100.
inline constexpr int kMaxSharedBytes = 227 * 1024;

// Whether an instance can exist at all for a cell and a precision.
constexpr bool possible(const Instance& instance, int gates, Precision precision) {
  const Layout l = layout(instance, gates, precision);
  return l.groups * kMmaUnits == l.units && l.splits > 1 && l.warps() <= 16 &&
         l.warp_tiles * l.splits * l.tile_units == l.in * instance.hidden &&
         l.warp_tiles * l.columns % 2 == 0 && l.shared_bytes() <= kMaxSharedBytes;
}

}  // namespace rnnfast::cuda
