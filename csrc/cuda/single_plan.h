// The instances of `single`, which runs a sequence of one step in one launch (single.h): what each
// is made for, how its work is cut up, what it is expected to cost. Pure, as instances.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "cuda/request.h"

namespace rnnfast::cuda {

inline constexpr int kSingleWarps = 8, kSingleThreads = kSingleWarps * kWarpSize;
// CTAs take hidden units by powers of two, of at least so many rows of the weights: those of a gate
// times all gates.
inline constexpr int kSingleLeastRows = 8;

struct SingleInstance {
  int doublings;  // of the least units of a CTA; float32 has enough in flight without
  int batch;      // rows of a tile; 16-bit types have 8 at least, as mma does
};
inline constexpr SingleInstance kSingleInstances[] = {{0, 1},  {0, 8},  {1, 8}, {2, 8},
                                                      {0, 32}, {1, 32}, {2, 32}};
inline constexpr int kSingleInstanceCount = std::size(kSingleInstances);

constexpr bool is_half(Type type) { return type == Type::kBfloat16 || type == Type::kFloat16; }

struct SingleLayout {
  int units, rows;  // of the layer and of its weights, on a CTA
  int stride;       // floats between rows of the weights in a warp's sums

  constexpr int shared_bytes() const { return kSingleWarps * rows * stride * 4; }
};

constexpr bool possible(const SingleInstance& instance, bool half) {
  return half ? instance.batch >= kMmaBatch : instance.doublings == 0;
}

constexpr SingleLayout single_layout(const SingleInstance& instance, int gates, bool half) {
  SingleLayout l{};
  l.units = 4;
  while (l.units * gates < kSingleLeastRows) l.units *= 2;
  l.units <<= instance.doublings;
  l.rows = l.units * gates;
  if (half) l.rows = (l.rows + kMmaUnits - 1) / kMmaUnits * kMmaUnits;  // as mma has them
  // 8 rows of 8 numbers lie in different banks.
  l.stride = instance.batch + (instance.batch % 32 == 0 ? kMmaBatch : 0);
  return l;
}

// Of the warps of a CTA, those that multiply x with w_ih; the others multiply h with w_hh. Each
// side has one at least where it has anything to do, and all where the other has nothing.
constexpr int input_warps(int64_t inputs, int64_t hidden) {
  if (inputs == 0) return 0;
  if (hidden == 0) return kSingleWarps;
  const int64_t share = (2 * kSingleWarps * inputs + inputs + hidden) / (2 * (inputs + hidden));
  return static_cast<int>(std::clamp<int64_t>(share, 1, kSingleWarps - 1));
}

inline bool serves(const SingleInstance& instance, const Request& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 128;
  const bool half = is_half(p.type);
  // Positions within a matrix are of 32 bits.
  const int64_t depth = std::max(p.I, p.H);
  const bool small = p.B <= kMost && p.H <= kMost && p.I <= kMost &&
                     std::max(p.gates * p.H, p.B) * depth <= std::numeric_limits<int32_t>::max();
  return p.T == 1 && !p.backward && p.type != Type::kFloat64 && possible(instance, half) && small &&
         p.device.arch >= (half ? 80 : 70) &&
         single_layout(instance, p.gates, half).shared_bytes() <= p.device.shared_bytes;
}

// Microseconds of a launch on an H200 at 1.98 GHz (GRU and LSTM, I = H = 256 to 1024, 1 to 32 rows;
// benchmarks/results/tune): a start, which many blocks delay, and so many bytes of weights and
// batch rows that each processor takes in; all of them together so many of weights that the L2
// cache cannot hold. Rows of a length that 16 bytes do not divide cost more loads.
namespace cost {
inline constexpr double kSingleStart = 2.3, kSingleBlock = 0.006, kSingleWave = 0.15;
inline constexpr double kSingleBytes = 110e3, kSingleMemoryBytes = 4.6e6;
inline constexpr double kSingleCacheBytes = 40e6;
inline constexpr double kSingleFlops = 0.22e6;  // of one processor, float32
}  // namespace cost

inline double single_cost(const SingleLayout& l, int batch, const Request& p) {
  using namespace cost;
  const bool half = is_half(p.type);
  const int64_t element = half ? 2 : 4, depth = p.I + p.H;
  const int64_t blocks = ((p.H - 1) / l.units + 1) * ((p.B - 1) / batch + 1) * p.directions;
  const double rows = static_cast<double>(std::min<int64_t>(p.B, batch));
  const double numbers = static_cast<double>(depth) * (p.gates * l.units + rows);
  const double loads = (p.I * element % 16 == 0 && p.H * element % 16 == 0) ? 1 : 2;
  double block = loads * numbers * static_cast<double>(element) / kSingleBytes;
  if (!half)
    block =
        std::max(block, 2.0 * static_cast<double>(depth * p.gates * l.units) * rows / kSingleFlops);
  const double waves = static_cast<double>((blocks - 1) / p.device.processors + 1);
  const double weights = static_cast<double>(p.directions * p.gates * p.H * depth * element);
  const double memory = weights > kSingleCacheBytes ? weights / kSingleMemoryBytes : 0;
  return kSingleStart + kSingleBlock * static_cast<double>(blocks) +
         std::max(memory, waves * block) + (waves - 1) * kSingleWave;
}

inline constexpr int64_t kMostBlocksY = 65535;  // of a grid

inline void add_single_plans(const Request& p, Plans& plans) {
  for (int i = 0; i < kSingleInstanceCount; ++i) {
    if (!serves(kSingleInstances[i], p)) continue;
    const SingleLayout l = single_layout(kSingleInstances[i], p.gates, is_half(p.type));
    const int batch = kSingleInstances[i].batch;
    const int64_t peers = (p.H - 1) / l.units + 1, tiles = (p.B - 1) / batch + 1;
    if (tiles * p.directions > kMostBlocksY) continue;
    plans.push_back({Kernel::kSingle, i, static_cast<int>(p.H), static_cast<int>(peers), batch,
                     tiles, single_cost(l, batch, p)});
  }
}

}  // namespace rnnfast::cuda
