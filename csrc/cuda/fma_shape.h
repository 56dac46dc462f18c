// The whole-sequence kernels for float32 without tensor cores: the shapes that are compiled, what
// follows from each, what a step is expected to cost. Pure.
//
// A thread keeps `units` columns of K / share numbers per output of w_hh in registers; `share`
// lanes of a warp have the same units and share K among them. For small layers, where a step is all
// latency, that beats the tensor cores, and it is exact where they round to TF32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "cuda/request.h"

namespace rnnfast::cuda {

struct FmaInstance {
  bool backward;
  int hidden;  // H at most
  int peers;   // CTAs of a cluster that share a tile; 1: no cluster
  int rows;    // of the batch in a tile
  int share;   // lanes that share K
  int units;   // that such lanes compute together
};

inline constexpr FmaInstance kFmaInstances[] = {
    {false, 32, 1, 1, 2, 1},   {true, 32, 1, 1, 2, 1},   {false, 64, 1, 1, 2, 1},
    {true, 64, 1, 1, 4, 2},    {false, 128, 1, 1, 2, 1}, {true, 128, 1, 1, 8, 4},
    {false, 128, 4, 1, 4, 1},  {true, 128, 4, 1, 4, 4},  {false, 256, 8, 1, 8, 1},
    {true, 256, 8, 1, 4, 4},   {false, 256, 8, 4, 8, 1}, {true, 256, 8, 4, 4, 4},
    {false, 512, 16, 1, 8, 1}, {true, 512, 16, 1, 4, 8}, {false, 512, 16, 2, 8, 1},
    {true, 512, 16, 2, 4, 8},
};
inline constexpr int kFmaInstanceCount = std::size(kFmaInstances);

struct FmaLayout {
  int gates, hidden, peers, rows, share, units;
  bool backward;

  constexpr int own() const { return hidden / peers; }  // units of a CTA
  // Units that a CTA computes, numbers that it multiplies for each. Backward in a cluster, a CTA
  // has the gate gradients of its own units, and computes what they add to all units.
  constexpr int computed() const { return backward ? hidden : own(); }
  constexpr int depth() const { return backward ? gates * own() : hidden; }
  constexpr int out() const { return backward ? 1 : gates; }  // numbers per computed unit
  constexpr int threads() const { return computed() / units * share; }
  constexpr int weights() const { return units * out() * depth() / share; }  // of a thread
  // Shared memory: two vectors, what peers send (backward), mbarriers, inputs.
  constexpr int vector_bytes() const { return rows * depth() * 4; }
  constexpr int received_bytes() const {
    return peers == 1 ? 0 : rows * (backward ? peers * own() : hidden) * 4;
  }
  constexpr int received_at() const { return backward ? 2 * vector_bytes() : 0; }
  constexpr int bars_at() const {
    return 2 * vector_bytes() + (backward ? 2 * received_bytes() : 0);
  }
  // Inputs on their way, see FmaRing. Cells read backward the gates, their last state before and
  // after the step, and the gradient of the output.
  static constexpr int kAhead = 6, kSlots = 8;
  constexpr int inputs() const { return backward ? (gates == 1 ? 0 : 4) + 2 : gates; }
  constexpr int ring_threads() const {
    return backward && peers > 1 ? 2 * rows * own() : threads();
  }
  constexpr int ring_at() const { return bars_at() + 16; }
  constexpr int shared_bytes() const { return ring_at() + kSlots * inputs() * ring_threads() * 4; }
};

constexpr FmaLayout fma_layout(const FmaInstance& i, int gates) {
  return {gates, i.hidden, i.peers, i.rows, i.share, i.units, i.backward};
}

// Whether the weights fit into the registers beside what a step needs: from the compiler's reports.
constexpr bool fma_possible(const FmaInstance& i, int gates) {
  const FmaLayout l = fma_layout(i, gates);
  return l.threads() <= 256 && l.weights() <= (l.units > l.share ? 128 : 192);
}

// ---- the plan ----

inline bool fma_serves(const FmaInstance& i, const Request& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 128;
  return p.type == Type::kFloat32 && p.T <= kMost && p.B <= kMost && p.T * p.B <= kMost * 64 &&
         i.backward == p.backward && i.hidden >= p.H && fma_possible(i, p.gates) &&
         p.device.arch >= (i.peers > 1 ? 90 : 80) && i.peers <= p.device.max_cluster;
}

// Clocks of a step on an H200 at 1.98 GHz: what a CTA waits for, during which another CTA of the
// same multiprocessor may work, and its own work. Fitted to the prototypes of these kernels.
struct FmaClocks {
  double waiting, work;
};

constexpr FmaClocks fma_clocks(const FmaLayout& l) {
  const int warps = (l.threads() + 127) / 128;  // of a scheduler
  const double products = l.rows * l.weights() * 1.1, loads = l.rows * l.depth() / l.share / 4 * 6;
  const double cell = 40 + 25 * l.gates + (l.rows > 1 ? 8 * l.rows * l.out() : 0);
  const double exchange = l.peers == 1 ? 0 : l.peers > 8 ? 300 : 220;
  return {(l.gates == 1 ? 200 : 280) + (l.backward ? 60 : 0) + exchange,
          warps * (products + loads + cell + (l.backward ? 30 : 0))};
}

// CTAs that a multiprocessor holds.
constexpr int fma_resident(const FmaLayout& l) {
  const int registers = std::min(255, l.weights() + 100);
  return std::max(1, 65536 / (registers * l.threads()));
}

// Tiles that the device holds, one CTA on a multiprocessor, see resident_groups.
constexpr int64_t fma_places(const FmaLayout& l, int processors) {
  const int of_132 = l.peers == 1 ? 132 : l.peers <= 4 ? 120 / l.peers : l.peers <= 8 ? 15 : 7;
  return std::max(1, processors * of_132 / 132);
}

inline double fma_microseconds(const FmaLayout& l, int64_t tiles, int processors) {
  const FmaClocks clocks = fma_clocks(l);
  const int64_t each = (tiles - 1) / fma_places(l, processors) + 1;
  const int64_t held = std::min<int64_t>(each, fma_resident(l)), waves = (each - 1) / held + 1;
  return static_cast<double>(waves) * (clocks.waiting + static_cast<double>(held) * clocks.work) /
         1980;
}

inline void add_fma_plans(const Request& p, Plans& plans) {
  for (int i = 0; i < kFmaInstanceCount; ++i) {
    const FmaInstance& instance = kFmaInstances[i];
    if (!fma_serves(instance, p)) continue;
    const int64_t tiles = (p.B - 1) / instance.rows + 1;
    plans.push_back({Kernel::kFma, i, instance.hidden, instance.peers, instance.rows, tiles,
                     fma_microseconds(fma_layout(instance, p.gates), tiles * p.directions,
                                      p.device.processors)});
  }
}

}  // namespace rnnfast::cuda
