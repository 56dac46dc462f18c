// What a time step is expected to cost, in microseconds: the model by which the plan chooses among
// kernels. Its constants are fitted to what an H200 measured at 1.98 GHz, see docs/tuning.md:
// within 15 % of nearly all of those kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/instances.h"

namespace rnnfast::cuda {

namespace cost {

inline constexpr double kClocksPerMicrosecond = 1980;
// Of a step of any whole-sequence kernel: what one thing after the other waits for.
inline constexpr double kStepClocks = 790;
inline constexpr double kMmaClocks = 8.2;      // between two mma of one of an SM's four schedulers
inline constexpr double kSharedClocks = 11.2;  // of a scheduler, for an operand in shared memory
// Of a gate of one element of each thread of a warp.
inline constexpr double kForwardClocks = 33, kBackwardClocks = 83;
// Of the exchange: per byte that a CTA receives, and what comes to that.
inline constexpr double kClusterBytesPerClock = 18, kLargeClusterClocks = 300;
inline constexpr double kGridClocks = 1000, kGridBytesPerClock = 10;
// `step`: two launches, and a product that reads w_hh from the L2 cache.
inline constexpr double kLaunchMicroseconds = 2.45;
inline constexpr double kL2BytesPerMicrosecond = 5.5e6;
// By how much longer a kernel of the whole sequence may take and is chosen: without a CUDA graph
// the host is slower than the GPU with the launches of `step`.
inline constexpr double kStepwisePenalty = 1.08;

inline constexpr int kSchedulers = 4;               // of a multiprocessor
inline constexpr int kRegisters = 65536;            // of a multiprocessor
inline constexpr int kRegistersBesideWeights = 90;  // of a thread

}  // namespace cost

// How many groups of peers the device holds, one CTA on a multiprocessor. Clusters must lie within
// one of the GPU's processing clusters of 16 or 18 SMs, so that large ones leave some SMs idle.
inline int64_t resident_groups(const Layout& l, int processors) {
  const int64_t groups = processors / l.peers;
  if (l.exchange != Exchange::kCluster) return groups;
  if (l.peers <= 4) return processors * 30 / 132;
  return l.peers <= 8 ? processors * 15 / 132 * 8 / l.peers : processors * 7 / 132;
}

// CTAs that one multiprocessor holds.
inline int64_t resident_blocks(const Layout& l) {
  const int held = 4 * (l.fragments - l.shared_fragments) + cost::kRegistersBesideWeights;
  return std::clamp(std::min(cost::kRegisters / (l.threads() * held),
                             kMaxSharedBytes / (l.shared_bytes() + 1024)),
                    1, 8);
}

// One step: what a multiprocessor works for one CTA, and what that CTA waits for besides.
struct StepClocks {
  double work, waiting;
};

inline StepClocks step_clocks(const Layout& l) {
  using namespace cost;
  const int warps = (l.warps() + kSchedulers - 1) / kSchedulers, products = l.two_parts ? 3 : 1;
  const double mma =
      warps * l.unit_tiles * l.warp_tiles * l.out * l.columns * products * kMmaClocks;
  const double weights = warps * l.shared_fragments * kSharedClocks;
  const double cell = warps * l.elements() * l.gates;
  const double work = mma + weights + cell * (l.backward ? kBackwardClocks : kForwardClocks);
  switch (l.exchange) {
    case Exchange::kCta:
      return {work, kStepClocks};
    case Exchange::kCluster:
      return {work, kStepClocks + l.vector_bytes() / kClusterBytesPerClock +
                        (l.peers > 8 ? kLargeClusterClocks : 0)};
    case Exchange::kGrid:
      return {work, kStepClocks + kGridClocks + l.vector_bytes() / kGridBytesPerClock};
  }
  return {work, kStepClocks};
}

// A whole-sequence kernel that has `groups` groups of peers to run, as many at a time as fit. CTAs
// of one multiprocessor wait at the same time and work one after the other.
inline double whole_sequence_cost(const Layout& l, int64_t groups, int processors) {
  const StepClocks step = step_clocks(l);
  const int64_t alone = std::max<int64_t>(1, resident_groups(l, processors));
  const int64_t at_once = l.exchange == Exchange::kGrid ? 1 : resident_blocks(l);
  const int64_t waves = (groups + alone - 1) / alone, rounds = (waves + at_once - 1) / at_once;
  const double clocks =
      static_cast<double>(rounds) * step.waiting + static_cast<double>(waves) * step.work;
  return clocks / cost::kClocksPerMicrosecond;
}

// One of the library's products.
inline double product_cost(int64_t rows, int64_t weights, int element_bytes,
                           double flops_per_microsecond) {
  const double product = 2.0 * static_cast<double>(rows * weights) / flops_per_microsecond;
  const double reads = static_cast<double>(weights * element_bytes) / cost::kL2BytesPerMicrosecond;
  return cost::kLaunchMicroseconds + std::max(product, reads);
}

// `step`: a product and the kernel behind it.
inline double stepwise_cost(int64_t rows, int64_t weights, int element_bytes,
                            double flops_per_microsecond) {
  return product_cost(rows, weights, element_bytes, flops_per_microsecond) +
         cost::kLaunchMicroseconds;
}

}  // namespace rnnfast::cuda
