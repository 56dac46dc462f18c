// What a time step is expected to cost, in microseconds: the model by which the plan chooses among
// kernels. Its constants are those of a Hopper GPU at 1.755 GHz; docs/tuning.md says which of them
// have been measured.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/instances.h"

namespace rnnfast::cuda {

namespace cost {

inline constexpr double kClocksPerMicrosecond = 1755;
// Of a step of any whole-sequence kernel: the first operands, two barriers and the cell's maths.
inline constexpr double kStepClocks = 340;
inline constexpr double kMmaClocks = 6.5;  // between two mma of one of an SM's four tensor cores
inline constexpr double kSharedBytesPerClock = 128;
inline constexpr double kClusterClocks = 230, kClusterBytesPerClock = 16;
inline constexpr double kGridClocks = 1300, kGridBytesPerClock = 24;
// `step`: two launches, and a product that reads w_hh from the L2 cache.
inline constexpr double kLaunchMicroseconds = 2.45;
inline constexpr double kL2BytesPerMicrosecond = 5.5e6;

}  // namespace cost

// How many groups of peers the device holds at a time. Clusters must lie within one of the GPU's
// processing clusters of 16 or 18 SMs, so that large ones leave some SMs idle.
inline int64_t resident_groups(const Layout& l, int processors) {
  const int64_t groups = processors / l.peers;
  if (l.exchange != Exchange::kCluster || l.peers <= 4) return groups;
  return l.peers <= 8 ? processors * 15 / 132 : processors * 7 / 132;
}

// One step of one group of peers.
inline double step_clocks(const Layout& l, Precision precision) {
  using namespace cost;
  const int products = precision == Precision::kFloat ? 3 : 1;
  const double mma =
      l.warps() * l.unit_tiles * l.warp_tiles * l.out * l.columns * products / 4.0 * kMmaClocks;
  const double weights = l.warps() * l.shared_fragments * kFragmentBytes / kSharedBytesPerClock;
  const double alone = kStepClocks + std::max(mma, weights);
  switch (l.exchange) {
    case Exchange::kCta:
      return alone;
    case Exchange::kCluster:
      return alone + kClusterClocks + l.vector_bytes() / kClusterBytesPerClock;
    case Exchange::kGrid:
      return alone + kGridClocks + l.vector_bytes() / kGridBytesPerClock;
  }
  return alone;
}

// A whole-sequence kernel that has `groups` groups of peers to run, as many at a time as fit.
inline double whole_sequence_cost(const Layout& l, Precision precision, int64_t groups,
                                  int processors) {
  const int64_t resident = std::max<int64_t>(1, resident_groups(l, processors));
  const int64_t waves = (groups + resident - 1) / resident;
  return static_cast<double>(waves) * step_clocks(l, precision) / cost::kClocksPerMicrosecond;
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
