// The shapes of the kernels of the grid family, for large H or batch, and what follows from each:
// how the work is cut up, the memory it takes, what a step is expected to cost. Pure; shared by the
// plan, the launchers and the kernels.
#pragma once

#include <algorithm>
#include <limits>

#include "cuda/request.h"

namespace rnnfast::cuda {

inline constexpr int kGridWarps = 8;  // they share K
inline constexpr int kGridThreads = kGridWarps * kWarpSize;
// Rounds for which the exchange has memory, and steps from fence to fence: see GridExchange.
inline constexpr int kGridRing = 16, kGridFence = 6;
static_assert(kGridRing >= 2 * kGridFence + 3 && (kGridRing & (kGridRing - 1)) == 0);
inline constexpr int kGridMostParts = 16;

// What a shape is compiled for: few kernels, as each takes long to compile.
enum class GridCells { kAll, kGated };
// Sets of types: 16 bits, float32 as TF32, float32 in two TF32 parts.
enum GridTypes : unsigned { kGridHalf = 1, kGridTf32 = 2, kGridFloat = 4 };
constexpr unsigned grid_type(Precision how) {
  return is_half(how) ? kGridHalf : how == Precision::kTf32 ? kGridTf32 : kGridFloat;
}

struct GridInstance {
  bool backward;
  GridCells cells;
  unsigned types;          // of GridTypes
  int hidden;              // H at most
  int units;               // of a CTA, 16 or 32
  int rows;                // of a part of the batch, 8 or 16; a CTA may have several parts
  double microseconds[2];  // of a step of GRU in 16 bits: the first part, and every other
};

// Measured on an H200 with prototypes: one part, and the slope over parts. Where a shape was
// measured with several parts only, or not at all, from those beside it.
inline constexpr GridInstance kGridInstances[] = {
    {false, GridCells::kAll, kGridHalf, 256, 32, 16, {1.6, 1.26}},
    {false, GridCells::kGated, kGridHalf, 512, 32, 16, {1.97, 1.4}},
    {false, GridCells::kAll, kGridFloat, 512, 16, 16, {0.95, 0.7}},
    {false, GridCells::kGated, kGridTf32, 768, 16, 8, {0.9, 0.7}},
    {false, GridCells::kAll, kGridTf32 | kGridFloat, 768, 16, 16, {1.1, 0.9}},
    {false, GridCells::kGated, kGridHalf | kGridTf32, 768, 32, 8, {1.41, 1.1}},
    {false, GridCells::kGated, kGridHalf, 768, 32, 16, {2.27, 1.7}},
    {false, GridCells::kGated, kGridHalf | kGridTf32, 1024, 16, 8, {0.99, 0.8}},
    {false, GridCells::kAll, kGridTf32 | kGridFloat, 1024, 16, 16, {1.3, 1.1}},
    {false, GridCells::kGated, kGridHalf, 1024, 32, 8, {1.54, 1.2}},
    {false, GridCells::kAll, kGridHalf, 1024, 32, 16, {2.44, 1.9}},
    {false, GridCells::kAll, kGridHalf | kGridFloat, 2048, 16, 16, {2.2, 1.8}},
    {true, GridCells::kAll, kGridHalf, 256, 32, 16, {1.7, 1.5}},
    {true, GridCells::kGated, kGridHalf, 512, 32, 16, {2.2, 1.8}},
    {true, GridCells::kAll, kGridFloat, 512, 16, 16, {1.4, 1.1}},
    {true, GridCells::kGated, kGridTf32, 768, 16, 8, {1.5, 1.2}},
    {true, GridCells::kAll, kGridTf32 | kGridFloat, 768, 16, 16, {1.8, 1.6}},
    {true, GridCells::kGated, kGridHalf | kGridTf32, 768, 32, 8, {1.8, 1.5}},
    {true, GridCells::kGated, kGridHalf, 768, 32, 16, {2.5, 2.5}},
    {true, GridCells::kGated, kGridTf32, 1024, 16, 8, {1.6, 1.3}},
    {true, GridCells::kAll, kGridTf32 | kGridFloat, 1024, 16, 16, {2.2, 2.0}},
    {true, GridCells::kGated, kGridHalf, 1024, 32, 8, {2.07, 1.8}},
    {true, GridCells::kAll, kGridHalf, 1024, 32, 16, {2.7, 2.55}},
    {true, GridCells::kAll, kGridHalf | kGridFloat, 2048, 16, 16, {3.6, 3.3}},
};
inline constexpr int kGridInstanceCount = std::size(kGridInstances);

struct GridLayout {
  int gates, states, element_bytes;
  bool backward, two_parts;
  int hidden, units, rows, peers;
  int blocks;            // of 16 units, the M of an mma
  int columns;           // of 8 rows, the N of an mma
  int in, out;           // exchanged and computed numbers per unit: forward 1, G; backward G, 1
  int warp_tiles;        // tiles of 16 of K of a warp
  int fragments;         // operands of a warp
  int shared_fragments;  // of them in shared memory
  int spared_fragments;  // of those, in registers before sm_100
  int chains;            // independent sums of one output: an mma takes long
  int loads, chunk;      // of 16 bytes per lane and step; so many are on their way together
  int partials;          // buffers of partial sums

  // Warps that finish units: two units of a row per thread.
  constexpr int active() const { return blocks * 2 * columns; }
  constexpr int round_bytes() const { return in * hidden * rows * element_bytes; }  // of a part
  constexpr int partial_bytes() const {
    return kGridWarps * out * blocks * columns * kFragmentBytes;
  }
  // Shared memory: weights, partial sums, biases, states.
  constexpr int partial_at() const { return kGridWarps * shared_fragments * kFragmentBytes; }
  constexpr int bias_at() const { return partial_at() + partials * partial_bytes(); }
  constexpr int states_at() const { return bias_at() + (backward ? 0 : 2 * gates * units * 4); }
  constexpr int part_states_bytes() const { return states * active() * kWarpSize * 8; }
  constexpr int shared_bytes(int parts) const { return states_at() + parts * part_states_bytes(); }
  constexpr int64_t packed_bytes() const {  // of w_hh, one direction
    return int64_t{peers} * kGridWarps * fragments * kFragmentBytes;
  }
  constexpr int64_t exchange_bytes(int64_t parts) const {
    return parts * kGridRing * round_bytes();
  }
};

inline constexpr int kMaxGridSharedBytes = 227 * 1024;

// Operands that a warp can hold in registers, of the 255 of a thread, beside its sums, what it
// loads at a time, and what the step itself needs. From the compiler's reports: none may spill.
constexpr int grid_held_fragments(const GridLayout& l) {
  const int sums = (l.two_parts ? 12 : 4) * l.chains * l.out * l.blocks * l.columns;
  int step = l.backward ? 80 : 56;
  if (l.gates == 4) step += 8;
  if (!l.backward && l.columns == 2) step += l.chunk > 4 ? 8 : 4;
  if (l.element_bytes > 2) step += l.backward ? 12 + 8 * l.gates : 8 + 2 * l.gates;
  if (l.element_bytes > 2 && l.backward && l.columns == 2) step += 12;
  if (l.element_bytes == 2 && l.backward && l.gates == 4 && l.columns == 2 && l.hidden != 1024)
    step += 4;
  if (l.two_parts) step += 16;
  return (255 - step - sums - 4 * l.chunk) / 4;
}

// Operands that fit into registers before sm_100 alone, by the same reports.
constexpr int grid_spared_fragments(const GridLayout& l) {
  const int sums = l.blocks * l.columns;
  if (l.gates == 4) return l.backward || sums > 1 ? 0 : l.element_bytes == 2 ? 2 : l.hidden == 768;
  if (l.gates == 1 || l.two_parts) return 0;
  if (l.element_bytes == 2) return l.backward && sums == 2;
  if (l.backward) return sums > 1 ? l.hidden == 1024 : l.hidden == 1024 ? 3 : 1;
  return l.columns == 1 ? 3 : 0;
}

constexpr GridLayout grid_layout(const GridInstance& instance, int gates, Precision how) {
  GridLayout l{};
  l.gates = gates, l.states = gates == 4 ? 2 : 1, l.backward = instance.backward;
  l.element_bytes = is_half(how) ? 2 : 4, l.two_parts = how == Precision::kFloat;
  l.hidden = instance.hidden, l.units = instance.units, l.rows = instance.rows;
  l.peers = l.hidden / l.units, l.blocks = l.units / kMmaUnits, l.columns = l.rows / kMmaBatch;
  l.in = l.backward ? gates : 1, l.out = l.backward ? 1 : gates;
  l.warp_tiles = l.in * l.hidden / kMmaUnits / kGridWarps;
  // An mma of TF32 is half as deep.
  const int steps = l.element_bytes > 2 ? 2 * l.warp_tiles : l.warp_tiles;
  l.fragments = steps * l.out * l.blocks;
  const int sums = l.out * l.blocks * l.columns;
  l.chains = sums >= 3 ? 1 : sums == 2 || l.two_parts ? 2 : 4;
  l.loads = steps * l.columns / 2;
  for (int n = sums > 12 ? 4 : 8; l.chunk == 0; --n)
    if (l.loads % n == 0) l.chunk = n;
  const int held = grid_held_fragments(l);
  l.spared_fragments = grid_spared_fragments(l);
  l.shared_fragments = std::max(l.fragments - held, 0) + l.spared_fragments;
  for (l.partials = 2; l.partials > 1 && l.shared_bytes(4) > kMaxGridSharedBytes;) --l.partials;
  return l;
}

constexpr bool grid_possible(const GridInstance& instance, int gates, Precision how) {
  const GridLayout l = grid_layout(instance, gates, how);
  return (instance.types & grid_type(how)) != 0 &&
         (gates > 1 || instance.cells == GridCells::kAll) &&
         l.warp_tiles * l.columns * (is_half(how) ? 1 : 2) % 2 == 0 &&
         l.shared_bytes(1) <= kMaxGridSharedBytes;
}

// Other cells and float32 against GRU in 16 bits, as assumed.
inline double grid_factor(const GridLayout& l) {
  const double wide = l.two_parts ? 2.2 : l.element_bytes > 2 ? 1.6 : 1;
  if (l.backward) return wide * (l.gates == 4 ? 1.3 : l.gates == 1 ? 0.6 : 1);
  return wide * (l.gates == 4 ? 1.2 : l.gates == 1 ? 0.8 : 1);
}

// What the kernels of the grid family have for a problem. All CTAs must run at once: where the
// batch has too many rows for that, each takes several parts, one behind the other.
inline void add_grid_plans(const Request& p, Plans& plans) {
  const auto how = precision(p);
  if (!how || p.device.arch < 80 || p.T > kMostRows || p.B > kMostRows) return;
  for (int i = 0; i < kGridInstanceCount; ++i) {
    const GridInstance& instance = kGridInstances[i];
    if (instance.backward != p.backward || instance.hidden < p.H ||
        !grid_possible(instance, p.gates, *how))
      continue;
    const GridLayout l = grid_layout(instance, p.gates, *how);
    const int64_t groups = p.device.processors / l.peers / p.directions;
    if (groups == 0) continue;
    const int64_t all = (p.B - 1) / l.rows + 1, parts = (all - 1) / groups + 1;
    if (parts > kGridMostParts || l.shared_bytes(static_cast<int>(parts)) > p.device.shared_bytes)
      continue;
    const int rows = static_cast<int>(parts) * l.rows;
    const double one = instance.microseconds[0],
                 other = instance.microseconds[1] * static_cast<double>(parts - 1);
    plans.push_back({Kernel::kGrid, i, l.hidden, l.peers, rows, (p.B - 1) / rows + 1,
                     (one + other) * grid_factor(l), l.rows});
  }
}

}  // namespace rnnfast::cuda
