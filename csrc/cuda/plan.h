// Which kernel runs a layer on a GPU: a pure function of the problem, without CUDA and torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "cuda/instances.h"

namespace rnnfast::cuda {

enum class Type { kFloat64, kFloat32, kBfloat16, kFloat16 };

// One product and one kernel per time step; or the whole sequence in one launch, by one block of
// threads per tile of the batch, by a cluster of them, or by a grid.
enum class Kernel { kStep, kCta, kCluster, kGrid };
inline constexpr std::string_view kKernelNames[] = {"step", "cta", "cluster", "grid"};

// The kernel of that name; none for "auto".
inline std::optional<Kernel> find_kernel(std::string_view name) {
  const auto found = std::find(std::begin(kKernelNames), std::end(kKernelNames), name);
  if (found == std::end(kKernelNames)) return std::nullopt;
  return static_cast<Kernel>(found - std::begin(kKernelNames));
}

struct Device {
  int arch;          // 10 * major + minor of the compute capability
  int processors;    // streaming multiprocessors
  int shared_bytes;  // of shared memory that one block may have
  int max_cluster;   // blocks
};

struct Problem {
  int gates;  // G of the cell
  Type type;
  bool backward;
  int64_t T, B, H;  // B = batch_sizes[0] when packed
  int directions;
  bool tf32;  // float32 products may round their operands to TF32
  Device device;
  std::optional<Kernel> wanted;  // no other than this one; what it cannot run goes to `step`
};

struct Plan {
  Kernel kernel;
  int instance;   // in kInstances; -1: step
  int64_t tiles;  // of the batch
};

// How a whole-sequence kernel multiplies numbers of that type; none does float64.
inline std::optional<Precision> precision(const Problem& p) {
  switch (p.type) {
    case Type::kBfloat16:
      return Precision::kBf16;
    case Type::kFloat16:
      return Precision::kHalf;
    case Type::kFloat32:
      return p.tf32 ? Precision::kTf32 : Precision::kFloat;
    case Type::kFloat64:
      return std::nullopt;
  }
  return std::nullopt;
}

constexpr Kernel kernel_of(Exchange exchange) {
  return exchange == Exchange::kCta       ? Kernel::kCta
         : exchange == Exchange::kCluster ? Kernel::kCluster
                                          : Kernel::kGrid;
}

inline bool serves(const Instance& instance, const Problem& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 128;  // tiles times peers fit
  const auto how = precision(p);
  if (!how || p.T > kMost || p.B > kMost || instance.backward != p.backward ||
      instance.hidden < p.H || !possible(instance, p.gates, *how))
    return false;
  const bool cluster = instance.exchange == Exchange::kCluster;
  return p.device.arch >= (cluster ? 90 : 80) &&
         instance.peers <= (cluster ? p.device.max_cluster : p.device.processors) &&
         layout(instance, p.gates, *how).shared_bytes() <= p.device.shared_bytes;
}

// The kernels that can run the problem, best first. The last one is `step`, which runs anything;
// each of the others may still find at its launch that the device has no room for it.
inline std::vector<Plan> plans(const Problem& p) {
  std::vector<Plan> result;
  const bool worth_it = p.T > 1 || p.wanted;  // one step reads the weights once anyway
  for (int i = 0; worth_it && i < kInstanceCount; ++i) {
    const Instance& instance = kInstances[i];
    const Kernel kernel = kernel_of(instance.exchange);
    if ((!p.wanted || *p.wanted == kernel) && serves(instance, p))
      result.push_back({kernel, i, (p.B - 1) / (instance.columns * kMmaBatch) + 1});
  }
  std::stable_sort(result.begin(), result.end(), [](const Plan& a, const Plan& b) {
    return kInstances[a.instance].hidden < kInstances[b.instance].hidden;
  });
  result.push_back({Kernel::kStep, -1, 1});
  return result;
}

}  // namespace rnnfast::cuda
