// Which kernel runs a layer on a GPU: a pure function of the problem, without CUDA and torch.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "cuda/cost.h"
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

// What RNNFAST_CUDA_KERNEL asks for: one kernel, and of its entries in the plan all, or one by its
// number, to measure each of them.
struct Wish {
  Kernel kernel;
  int entry;  // -1: all
};

// The wish that "cluster" or "cluster/2" says; none for "auto" and for what is no kernel.
inline std::optional<Wish> find_wish(std::string_view text) {
  const size_t slash = text.find('/');
  const auto kernel = find_kernel(text.substr(0, slash));
  if (!kernel || slash == text.npos) return kernel ? std::optional(Wish{*kernel, -1}) : std::nullopt;
  int entry = -1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + slash + 1, end, entry);
  return error == std::errc() && stop == end && entry >= 0 ? std::optional(Wish{*kernel, entry})
                                                           : std::nullopt;
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
  std::optional<Wish> wanted;  // no other than this; what it cannot run goes to `step`
};

struct Plan {
  Kernel kernel;
  int instance;         // in kInstances; -1: step
  int64_t tiles;        // of the batch
  double microseconds;  // per time step, as cost.h expects
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

// For measurements only: RNNFAST_CUDA_PEERS=n leaves the instances of n CTAs.
inline bool peers_wanted(int peers) {
  const char* text = std::getenv("RNNFAST_CUDA_PEERS");
  return text == nullptr || *text == 0 || std::atoi(text) == peers;
}

inline bool serves(const Instance& instance, const Problem& p) {
  if (!peers_wanted(instance.peers)) return false;
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

// What the library multiplies per microsecond, at sizes worth a whole processor.
inline double flops_per_microsecond(const Problem& p) {
  switch (p.type) {
    case Type::kFloat64:
      return 40e6;
    case Type::kFloat32:
      return p.tf32 ? 250e6 : 45e6;
    case Type::kBfloat16:
    case Type::kFloat16:
      return 500e6;
  }
  return 40e6;
}

inline Plan step_plan(const Problem& p) {
  const int element = p.type == Type::kFloat64 ? 8 : p.type == Type::kFloat32 ? 4 : 2;
  const int64_t weights = p.directions * p.gates * p.H * p.H;
  return {Kernel::kStep, -1, 1, stepwise_cost(p.B, weights, element, flops_per_microsecond(p))};
}

inline Plan whole_sequence_plan(const Problem& p, int instance) {
  const Layout l = layout(kInstances[instance], p.gates, *precision(p));
  const int64_t tiles = (p.B - 1) / (l.columns * kMmaBatch) + 1;
  return {kernel_of(l.exchange), instance, tiles,
          whole_sequence_cost(l, *precision(p), tiles * p.directions, p.device.processors)};
}

// The kernels to try for a problem, the best first. The last one is `step`, which runs anything;
// each of the others may still find at its launch that the device has no room for it. The blocks of
// a grid must all run at once.
inline std::vector<Plan> plans(const Problem& p) {
  const Plan step = step_plan(p);
  std::vector<Plan> result;
  for (int i = 0; i < kInstanceCount; ++i) {
    if (!serves(kInstances[i], p)) continue;
    const Plan plan = whole_sequence_plan(p, i);
    const int64_t blocks = plan.tiles * p.directions * kInstances[i].peers;
    if (plan.kernel == Kernel::kGrid && blocks > p.device.processors) continue;
    // One time step reads the weights once anyway.
    const bool better = p.T > 1 && plan.microseconds < step.microseconds;
    if (p.wanted ? p.wanted->kernel == plan.kernel : better) result.push_back(plan);
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Plan& a, const Plan& b) { return a.microseconds < b.microseconds; });
  if (p.wanted && p.wanted->entry >= 0) {
    const size_t entry = p.wanted->entry;
    result = entry < result.size() ? std::vector{result[entry]} : std::vector<Plan>();
  }
  result.push_back(step);
  return result;
}

}  // namespace rnnfast::cuda
