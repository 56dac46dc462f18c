// What the kernels of a recurrence share: where a thread stands, and the normalisation of a row.
// One block serves a row of a step; or, where no unit sees another, one thread a unit of a row in
// all steps. A thread has the same units in all that is done to a row, so that it waits for others
// in sums alone.
#pragma once

#include <cmath>

#include "cuda/device.h"
#include "cuda/rows_kernels.h"
#include "cuda/types.h"
#include "unit.h"

namespace rnnfast::cuda {

inline constexpr int kRowThreads = 512;  // of a block that has a whole row, at most
inline constexpr int kUnitThreads = 64;  // of blocks whose threads are on their own

// Where a row of the batch stands, at one step.
struct RowPlace {
  int64_t row, b;         // of the sequence, of the batch
  int64_t before, after;  // of the timelines
  bool first, last;       // of its steps

  static DEVICE RowPlace of(const StepRows& step, int64_t b) {
    const bool first = b >= step.continued;
    return {step.row + b,   b,     (first ? step.initial : step.before) + b,
            step.after + b, first, b >= step.staying};
  }
};

// Calls body(unit) for all units of a thread; the blocks of one row share them.
template <class Body>
DEVICE void each_unit(int64_t hidden, const Body& body) {
  for (int64_t j = int64_t{dev::block_y()} * dev::threads() + dev::tid(); j < hidden;
       j += int64_t{dev::grid_y()} * dev::threads())
    body(j);
}

// The sums over all threads of the block, in a fixed order, for all of them. In between the block
// needs shared_bytes_of(threads).
inline constexpr int kSums = 2;  // at a time
template <int kCount, class C>
DEVICE void add_up(C (&sums)[kCount]) {
  static_assert(kCount <= kSums);
  C* const parts = reinterpret_cast<C*>(dev::smem());
  const int warps = dev::threads() / kWarpSize, warp = dev::tid() / kWarpSize;
  UNROLL
  for (int i = 0; i < kCount; ++i) {
    UNROLL
    for (int other = 1; other < kWarpSize; other *= 2) sums[i] += dev::shfl_xor(sums[i], other);
    if (dev::tid() % kWarpSize == 0) parts[i * warps + warp] = sums[i];
  }
  dev::cta_sync();
  UNROLL
  for (int i = 0; i < kCount; ++i) {
    sums[i] = 0;
    for (int k = 0; k < warps; ++k) sums[i] += parts[i * warps + k];
  }
  dev::cta_sync();  // the next sums lie in the same place
}
template <class C>
constexpr size_t shared_bytes_of(int threads) {
  return kSums * sizeof(C) * static_cast<size_t>(threads / kWarpSize);
}

// Of kGates numbers of each of a row's units: value(gate, unit). Ba, Kiros and Hinton 2016, arXiv
// 1607.06450; the deviation is that of the row itself.
template <class C>
struct Moments {
  C mean, rstd;

  template <int kGates, class Value>
  static DEVICE Moments of(int64_t hidden, const Value& value) {
    const C count = static_cast<C>(kGates * hidden);
    C sum[] = {0}, squares[] = {0};
    each_unit(hidden, [&](int64_t j) {
      for (int g = 0; g < kGates; ++g) sum[0] += value(g, j);
    });
    add_up(sum);
    const C mean = sum[0] / count;
    each_unit(hidden, [&](int64_t j) {
      for (int g = 0; g < kGates; ++g) {
        const C x = value(g, j) - mean;
        squares[0] += x * x;
      }
    });
    add_up(squares);
    return {mean, C(1) / std::sqrt(squares[0] / count + C(kNormEpsilon))};
  }
  DEVICE C apply(C x) const { return (x - mean) * rstd; }
};

// The gradient of what `Moments` normalised, from that of the outcome times the gain (gain dy),
// with the outcome: 1 / deviation (gain dy - mean of it - outcome * mean of outcome gain dy).
template <class C>
struct MomentsBackward {
  C mean, mean_of_products, rstd;

  template <int kGates, class Grad, class Outcome>
  static DEVICE MomentsBackward of(int64_t hidden, C rstd, const Grad& grad,
                                   const Outcome& outcome) {
    C sums[] = {0, 0};
    each_unit(hidden, [&](int64_t j) {
      for (int g = 0; g < kGates; ++g) {
        const C x = grad(g, j);
        sums[0] += x, sums[1] += x * outcome(g, j);
      }
    });
    add_up(sums);
    const C count = static_cast<C>(kGates * hidden);
    return {sums[0] / count, sums[1] / count, rstd};
  }
  DEVICE C apply(C grad, C outcome) const {
    return rstd * (grad - mean - outcome * mean_of_products);
  }
};

// ---- one thread for a unit of a row in all steps ----

// Steps whose inputs are asked for at a time: a step is shorter than a read of global memory.
template <class Cell>
inline constexpr int kStepsAtATime = Cell::kGates == 1 ? 8 : 4;

struct UnitOfRow {
  int64_t unit, b, steps;  // those of this row: the first ones in time

  static DEVICE UnitOfRow of(const Steps& steps, int64_t hidden) {
    const int64_t index = int64_t{dev::block_x()} * dev::threads() + dev::tid(), b = index / hidden;
    return {index % hidden, b, b < steps.largest ? length(steps, b) : 0};
  }
  // Its nth step of the walk.
  DEVICE RowPlace place(const Walk& walk, int64_t n) const {
    const bool first = n == 0, last = n == steps - 1;
    const int64_t t = walk.reverse ? steps - 1 - n : n, step = walk.reverse ? 1 : -1;
    return {walk.steps.offset_at(t) + b,
            b,
            first ? walk.initial(b) : walk.after(t + step, b),
            walk.after(t, b),
            first,
            last};
  }

 private:
  static DEVICE int64_t length(const Steps& steps, int64_t b) {
    if (!steps.batch) return steps.count;
    int64_t low = 1, high = steps.count;  // row b is in step low - 1, and in none from high on
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (steps.batch[middle] > b) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

}  // namespace rnnfast::cuda
