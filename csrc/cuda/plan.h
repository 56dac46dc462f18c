// Which kernel runs a layer on a GPU: a pure function of what is asked, without CUDA and torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>

#include "cuda/calibration.h"
#include "cuda/cost.h"
#include "cuda/fma_shape.h"
#include "cuda/grid_shape.h"
#include "cuda/request.h"
#include "cuda/single_plan.h"
#include "cuda/small_shape.h"

namespace rnnfast::cuda {

constexpr Kernel kernel_of(Exchange exchange) {
  return exchange == Exchange::kCta       ? Kernel::kCta
         : exchange == Exchange::kCluster ? Kernel::kCluster
                                          : Kernel::kGrid;
}

inline bool serves(const Instance& instance, const Request& p) {
  const auto how = precision(p);
  if (!how || p.T > kMostRows || p.B > kMostRows || instance.backward != p.backward ||
      instance.hidden < p.H || !possible(instance, p.gates, *how))
    return false;
  const bool cluster = instance.exchange == Exchange::kCluster;
  return p.device.arch >= (cluster ? 90 : 80) &&
         instance.peers <= (cluster ? p.device.max_cluster : p.device.processors) &&
         layout(instance, p.gates, *how).shared_bytes() <= p.device.shared_bytes;
}

// What the library multiplies per microsecond, at sizes worth a whole processor.
inline double flops_per_microsecond(const Request& p) {
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

inline Plan step_plan(const Request& p) {
  const int element = p.type == Type::kFloat64 ? 8 : p.type == Type::kFloat32 ? 4 : 2;
  const int64_t rows = p.directions * p.gates * p.H;
  const double flops = flops_per_microsecond(p);
  double microseconds = stepwise_cost(p.B, rows * p.H, element, flops);
  // What competes for a sequence of one step multiplies the inputs too.
  if (p.T == 1 && !p.backward) microseconds += product_cost(p.B, rows * p.I, element, flops);
  return {Kernel::kStep, -1, 0, 1, 0, 1, microseconds};
}

// What persistent.h has for a problem. The blocks of a grid must all run at once.
inline void add_persistent_plans(const Request& p, Plans& plans) {
  for (int i = 0; i < kInstanceCount; ++i) {
    const Instance& instance = kInstances[i];
    if (!serves(instance, p)) continue;
    const Layout l = layout(instance, p.gates, *precision(p));
    const int rows = l.columns * kMmaBatch;
    const int64_t tiles = (p.B - 1) / rows + 1, groups = tiles * p.directions;
    const Kernel kernel = kernel_of(l.exchange);
    if (kernel == Kernel::kGrid && groups * instance.peers > p.device.processors) continue;
    plans.push_back({kernel, i, instance.hidden, instance.peers, rows, tiles,
                     whole_sequence_cost(l, groups, p.device.processors)});
  }
}

// All that serve a problem, `step` last, with what the formulas expect of each.
inline Plans modelled_plans(const Request& p) {
  Plans all;
  if (p.whole_sequence && p.resets) {
    add_persistent_plans(p, all);
  } else if (p.whole_sequence) {
    add_fma_plans(p, all);
    add_single_plans(p, all);
    add_persistent_plans(p, all);
    add_small_plans(p, all);
    add_grid_plans(p, all);
  }
  all.push_back(step_plan(p));
  for (Plan& plan : all)
    if (plan.part == 0) plan.part = plan.rows;
  return all;
}

// The same with the formulas corrected by measurements.
inline Plans calibrated_plans(const Request& p) {
  std::map<std::pair<int64_t, int64_t>, Plans> known;  // of other problems, by their B and H
  const auto expect = [&](const Measured& m, const Request& other) {
    const auto [entry, is_new] = known.try_emplace({other.B, other.H});
    if (is_new) entry->second = modelled_plans(other);
    for (const Plan& plan : entry->second)
      if (plan.kernel == m.kernel && plan.peers == m.peers && plan.part == m.part &&
          (plan.hidden == m.hidden || plan.kernel == Kernel::kStep))
        return plan.microseconds;
    return 0.0;
  };
  Plans all = modelled_plans(p);
  for (Plan& plan : all) plan.microseconds *= correction(plan, p, expect);
  return all;
}

// Whether a kernel is less exact than cuDNN's, which does without TF32 in small layers even where
// it is allowed.
inline bool too_coarse(const Plan& plan, const Request& p) {
  return precision(p) == Precision::kTf32 && p.H < kTf32Units && p.T > 1 &&
         plan.kernel != Kernel::kFma;
}

// The kernels to try for a problem, the best first. The last one is `step`, which runs anything;
// each of the others may still find at its launch that the device has no room for it. What no GPU
// has measured runs only on request, and comes last then.
inline Plans plans(const Request& p) {
  Plans all = calibrated_plans(p), result;
  const Plan step = all.back();
  all.pop_back();
  for (const Plan& plan : all) {
    // One time step reads the weights once anyway.
    const bool better =
        p.T == 1 ? plan.kernel == Kernel::kSingle && plan.microseconds < step.microseconds
                 : is_measured(plan, p) && !too_coarse(plan, p) &&
                       plan.microseconds < step.microseconds * cost::kStepwisePenalty;
    if (p.wanted ? p.wanted->kernel == plan.kernel : better) result.push_back(plan);
  }
  std::stable_sort(result.begin(), result.end(), [&](const Plan& a, const Plan& b) {
    const bool first = is_measured(a, p), second = is_measured(b, p);
    return first != second ? first : a.microseconds < b.microseconds;
  });
  if (p.wanted && p.wanted->entry >= 0) {
    const size_t entry = p.wanted->entry;
    result = entry < result.size() ? Plans{result[entry]} : Plans();
  }
  result.push_back(step);
  return result;
}

}  // namespace rnnfast::cuda
