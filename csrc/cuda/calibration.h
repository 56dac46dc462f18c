// What a time step of the kernels took on a GPU, by which the plan corrects what it expects: the
// families' formulas say how the cost of a kernel grows, measurements how much it is.
#pragma once

#include <cmath>
#include <cstdint>
#include <iterator>

#include "cuda/request.h"

namespace rnnfast::cuda {

// Layers of so many rows were measured, of T = 100 and of one direction.
inline constexpr int64_t kMeasuredRows[] = {1, 32, 128, 512, 1024};

// One instance of a kernel for one kind of cell. `step`, which has none, is known by the H it ran.
struct Measured {
  Kernel kernel;
  int hidden, peers, part;  // as in Plan
  int gates;
  Precision precision;
  bool backward;
  float microseconds[std::size(kMeasuredRows)];  // 0: not measured
};
inline constexpr Measured kMeasured[] = {
#include "cuda/measured.inc"
};

inline double ratio_distance(int64_t a, int64_t b) {
  return std::abs(std::log(static_cast<double>(a) / static_cast<double>(b)));
}

inline bool of_instance(const Measured& m, const Plan& plan) {
  return m.hidden == plan.hidden && m.peers == plan.peers && m.part == plan.part;
}

// The measurement of a plan's kernel, or of that of its family at the nearest H; null if there is
// none for such a cell.
inline const Measured* find_measured(const Plan& plan, const Request& p) {
  const auto how = precision(p);
  const int64_t hidden = plan.kernel == Kernel::kStep ? p.H : plan.hidden;
  const Measured* best = nullptr;
  for (const Measured& m : kMeasured) {
    // float16 takes what bfloat16 takes.
    const bool same_precision =
        m.precision == how || (m.precision == Precision::kBf16 && how == Precision::kHalf);
    if (m.kernel != plan.kernel || m.gates != p.gates || m.backward != p.backward ||
        !same_precision)
      continue;
    if (of_instance(m, plan)) return &m;
    if (!best || ratio_distance(m.hidden, hidden) < ratio_distance(best->hidden, hidden)) best = &m;
  }
  return best;
}

inline bool is_measured(const Plan& plan, const Request& p) {
  const Measured* m = find_measured(plan, p);
  return m && of_instance(*m, plan);
}

// Which of the batch sizes of a measurement is nearest to a problem's rows, over all directions.
inline int nearest_rows(const Measured& m, const Request& p) {
  const int64_t rows = p.B * p.directions;
  int best = -1;
  for (int i = 0; i < static_cast<int>(std::size(kMeasuredRows)); ++i) {
    if (m.microseconds[i] == 0) continue;
    if (best < 0 ||
        ratio_distance(kMeasuredRows[i], rows) < ratio_distance(kMeasuredRows[best], rows))
      best = i;
  }
  return best;
}

// By what a plan's expected time is to be multiplied. `expect` gives what the formulas say of the
// kernel that was measured for the problem that it ran, 0 where they say nothing.
template <class Expect>
double correction(const Plan& plan, const Request& p, const Expect& expect) {
  if (p.T == 1) return 1;
  const Measured* m = find_measured(plan, p);
  const int at = m ? nearest_rows(*m, p) : -1;
  if (at < 0) return 1;
  Request measured = p;
  measured.T = 100, measured.B = kMeasuredRows[at], measured.H = m->hidden;
  measured.directions = 1, measured.resets = false;
  measured.tf32 = precision(p) == Precision::kTf32;
  const double expected = expect(*m, measured);
  return expected > 0 ? m->microseconds[at] / expected : 1;
}

}  // namespace rnnfast::cuda
