// The shapes for which whole-sequence kernels are compiled, and what follows from each: how the
// work is cut up, how much shared memory it takes. Pure; shared by the plan, the launchers and the
// kernels. Nothing is compiled per problem: a layer runs on an instance of at least its size.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <limits>

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
// Most shared memory that a CTA may have on any architecture: sm_90 and sm_100.
inline constexpr int kMaxSharedBytes = 227 * 1024;
// Few warps: each holds more operands, and there is less to reduce and to issue. Three groups share
// the four tensor cores evenly only as twelve warps.
inline constexpr int kMostWarps = 12, kMostWarpsOfFourGates = 8;
// Two groups are four warps where a warp then has at most so many operands, in registers.
inline constexpr int kFewFragments = 40;

enum class Precision { kBf16, kHalf, kTf32, kFloat };  // kFloat: float32 in two TF32 parts
constexpr bool is_half(Precision p) { return p == Precision::kBf16 || p == Precision::kHalf; }
enum class Exchange { kCta, kCluster, kGrid };
// How what a CTA computed leaves it. kPlace: it is put where it is read (kCta). kWords, kRows: from
// registers, 4 bytes at a time as they are or 16 after shuffles. kStage: collected in shared memory
// first, then 16 bytes at a time. kGlobal: collected, then to global memory. kSums: backward in a
// cluster. Gate gradients stay in their CTA, which multiplies them with its rows of w_hh; the
// products, partial sums for all units, go to the CTAs of those units.
enum class Sending { kPlace, kWords, kRows, kStage, kGlobal, kSums };
// The vectors up to which kWords is faster: four times as many sends count on an mbarrier.
inline constexpr int kMostWordBytes = 4096;
inline constexpr int kMessageBytes = kWarpSize * 16;  // the sums of 16 units, 8 rows

// Steps whose inputs are under way or being read: a step may be shorter than a read.
inline constexpr int kRingSlots = 4;
// Numbers per unit and batch row that a step reads: forward x_gates; backward the gates, what
// Cell::kReadsBefore and kReadsAfter say of the states, and grad_output.
constexpr int input_lines(int gates, bool backward) {
  if (!backward) return gates;
  return gates == 1 ? 2 : gates == 3 ? 6 : 7;
}

// Rows of a batch, and steps, for which there are instances: tiles times peers are counted in 32
// bits.
inline constexpr int kMostRows = std::numeric_limits<int32_t>::max() / 128;

struct Instance {
  Exchange exchange;
  bool backward;
  int hidden;   // H at most; a multiple of 16 * peers
  int peers;    // CTAs that share a tile of the batch
  int columns;  // 8 batch rows each, 1 or 2, of a tile
};

// Forward; of each there is one backward too.
inline constexpr Instance kForwardInstances[] = {
    {Exchange::kCta, false, 64, 1, 1},       {Exchange::kCta, false, 128, 1, 1},
    {Exchange::kCta, false, 256, 1, 1},      {Exchange::kCluster, false, 128, 4, 1},
    {Exchange::kCluster, false, 128, 8, 1},  {Exchange::kCluster, false, 256, 8, 1},
    {Exchange::kCluster, false, 384, 6, 1},  {Exchange::kCluster, false, 384, 8, 1},
    {Exchange::kCluster, false, 512, 8, 1},  {Exchange::kCluster, false, 512, 16, 1},
    {Exchange::kCluster, false, 768, 16, 1}, {Exchange::kCluster, false, 1024, 16, 1},
    {Exchange::kGrid, false, 256, 16, 1},    {Exchange::kGrid, false, 512, 32, 1},
    {Exchange::kGrid, false, 1024, 64, 1},   {Exchange::kGrid, false, 2048, 128, 1},
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
  bool two_parts;        // float32 as the sum of two TF32 numbers
  int units, groups;     // of a CTA; a group is 16 units
  int splits;            // warps of a group, which share K
  int tile_units;        // of K in a tile: 32 bytes
  int in, out;           // exchanged and computed numbers per unit: forward 1, G; backward G, 1
  int unit_tiles;        // kSums: tiles of 16 units whose sums a warp computes; else 1
  int warp_tiles;        // K tiles of a warp
  int fragments;         // operands of a warp
  int shared_fragments;  // of them in shared memory
  int spared_fragments;  // of those, in registers before sm_100
  int ring_slots;        // steps whose inputs are under way or waiting; 0: no room for a ring

  constexpr int warps() const { return groups * splits; }
  constexpr int threads() const { return warps() * kWarpSize; }
  constexpr int elements() const { return 4 * columns / splits; }
  constexpr int group_bytes() const { return in * kMmaUnits / tile_units * columns * kTileBytes; }
  constexpr int source_bytes() const { return groups * group_bytes(); }
  constexpr bool sums() const { return backward && exchange == Exchange::kCluster && columns == 1; }
  constexpr int vector_bytes() const {  // what a CTA receives in a round
    return peers * (sums() ? groups * kMessageBytes : source_bytes());
  }
  // A grid kernel keeps its two buffers in global memory.
  constexpr int vector_buffers() const { return exchange == Exchange::kGrid ? 1 : 2; }
  constexpr Sending sending() const {
    if (exchange != Exchange::kCluster)
      return exchange == Exchange::kCta ? Sending::kPlace : Sending::kGlobal;
    if (sums()) return Sending::kSums;
    if (element_bytes != 2 || columns != 1) return Sending::kStage;
    return elements() > 1 && vector_bytes() <= kMostWordBytes ? Sending::kWords : Sending::kRows;
  }
  constexpr bool from_registers() const {
    return sending() == Sending::kWords || sending() == Sending::kRows;
  }
  // Whether the 16-byte rows of a vector are 8 batch rows of a unit, where else they are units of a
  // batch row: so lie two accumulators of a thread.
  constexpr bool transposed() const {
    return element_bytes == 2 && elements() > 1 && sending() != Sending::kRows &&
           sending() != Sending::kGlobal;
  }
  // With kSums, warps still multiply what is on the stage when others have received the sums of the
  // round, and collect for the next one.
  constexpr int stage_buffers() const {
    return sending() == Sending::kPlace || from_registers() ? 0 : sums() ? 2 : 1;
  }
  // Without a barrier before the warps send, partial sums of the next step are written while others
  // still read these.
  constexpr int partial_buffers() const { return from_registers() ? 2 : 1; }
  constexpr int partial_floats() const {  // of a group
    return sums() ? 0 : splits * (splits - 1) * out * elements() * kWarpSize;
  }
  constexpr int partial_bytes() const { return groups * partial_floats() * 4; }  // one buffer

  int constexpr lines() const { return input_lines(gates, backward); }
  constexpr int slot_bytes() const { return lines() * units * columns * kMmaBatch * element_bytes; }

  // Shared memory: vectors, partial sums, stage, mbarriers, weights, inputs.
  constexpr int partial_at() const { return vector_buffers() * vector_bytes(); }
  constexpr int stage_at() const { return partial_at() + partial_buffers() * partial_bytes(); }
  constexpr int bars_at() const {  // tiles are read in pairs
    return stage_at() + stage_buffers() * source_bytes() +
           (sums() && warp_tiles % 2 == 1 ? kTileBytes : 0);
  }
  constexpr int weights_at() const { return bars_at() + 16; }
  constexpr int ring_at() const {
    return weights_at() + warps() * shared_fragments * kFragmentBytes;
  }
  constexpr int shared_bytes() const { return ring_at() + ring_slots * slot_bytes(); }
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
  const int registers = l.warps() <= 8 ? 248 : l.warps() <= 12 ? 152 : 120;
  const bool grid = l.exchange == Exchange::kGrid;
  int step = (l.backward ? 66 : l.ring_slots == 0 ? 74 : 78) + 3 * l.gates;
  if (l.backward) step += l.sums() ? 12 : l.elements() > 1 ? 28 : 16;
  if (l.element_bytes > 2) step += grid ? 12 : 24;
  if (l.element_bytes > 2 && l.backward && l.gates == 3 && l.units == 128) step += 4;
  if (l.two_parts) step += 8 * (l.sums() ? 2 : l.out * l.columns);
  if (grid) step += l.gates == (l.backward ? 4 : 1) ? 32 : 28;
  if (l.gates == 4 && !grid) step += !l.backward ? 20 : l.peers < 16 ? 8 : 0;
  // Six peers: who sends to whom is no matter of shifts. H = 1024 and one gate: the longest rows.
  const bool longest = l.gates == 1 && l.peers == 16 && l.units == 64;
  if (l.element_bytes > 2 && !l.backward) step += l.peers == 6 ? 8 : longest ? 20 : 0;
  return (registers - step) / 4;
}

// Operands that fit into registers before sm_100 alone, by the same reports.
constexpr int spared_fragments(const Layout& l) {
  if (l.gates != 3 || l.two_parts) return 0;
  return !l.backward && l.element_bytes == 2 && l.exchange == Exchange::kCluster && l.units == 64 &&
         l.peers == 8;
}

constexpr Layout layout(const Instance& instance, int gates, Precision precision) {
  Layout l{};
  l.exchange = instance.exchange, l.peers = instance.peers, l.columns = instance.columns;
  l.gates = gates, l.backward = instance.backward;
  l.two_parts = precision == Precision::kFloat;
  l.element_bytes = is_half(precision) ? 2 : 4;
  l.units = instance.hidden / instance.peers, l.groups = l.units / kMmaUnits;
  l.tile_units = 32 / l.element_bytes;
  l.in = instance.backward ? gates : 1, l.out = instance.backward ? 1 : gates;
  const int tiles = l.in * instance.hidden / l.tile_units;
  l.splits = 4 * instance.columns;
  const int most_warps = gates == 4 ? kMostWarpsOfFourGates : kMostWarps;
  while (l.splits > 1 && (l.groups * l.splits > most_warps || tiles % (l.splits * 2) != 0))
    l.splits /= 2;
  if (l.groups == 2 && l.splits == 4 && l.exchange == Exchange::kCluster &&
      tiles / 2 * l.out * (l.two_parts ? 2 : 1) <= kFewFragments)
    l.splits = 2;
  l.unit_tiles = l.sums() ? instance.hidden / kMmaUnits / l.warps() : 1;
  l.warp_tiles = l.sums() ? l.in * l.units / l.tile_units : tiles / l.splits;
  l.fragments = l.unit_tiles * l.warp_tiles * l.out * (l.two_parts ? 2 : 1);
  for (const int slots : {kRingSlots, 0}) {
    l.ring_slots = slots;
    const int held = register_fragments(l);
    l.spared_fragments = spared_fragments(l);
    l.shared_fragments = (l.fragments > held ? l.fragments - held : 0) + l.spared_fragments;
    if (l.shared_bytes() <= kMaxSharedBytes) break;
  }
  return l;
}

// Whether an instance can exist at all for a cell and a precision. Grids of other precisions are
// those of grid_shape.h.
constexpr bool possible(const Instance& instance, int gates, Precision precision) {
  if (instance.exchange == Exchange::kGrid && precision != Precision::kFloat) return false;
  const Layout l = layout(instance, gates, precision);
  const bool divides = l.sums()
                           ? l.unit_tiles * l.warps() * kMmaUnits == instance.hidden
                           : l.warp_tiles * l.splits * l.tile_units == l.in * instance.hidden &&
                                 l.warp_tiles * l.columns % 2 == 0;
  // One group is work enough for a CTA only where its products take long.
  const bool enough = l.exchange != Exchange::kCluster || l.groups > 1 || l.element_bytes > 2;
  return enough && l.groups * kMmaUnits == l.units && l.warps() <= 16 && divides &&
         l.shared_bytes() <= kMaxSharedBytes;
}

}  // namespace rnnfast::cuda
