// The kernels of `step`, which launches once per time step after a library product, and the small
// kernels around every recurrence. One thread per hidden unit of a row.
#pragma once

#include "cells.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/types.h"

namespace rnnfast::cuda {

inline constexpr int kThreads = 128;

// A block serves `width` hidden units of kThreads / width rows.
struct StepShape {
  int width, column_blocks;
  int64_t row_blocks;

  static StepShape of(int64_t rows, int64_t hidden) {
    int width = kThreads;
    while (width > 1 && width / 2 >= hidden) width /= 2;
    const int rows_per_block = kThreads / width;
    return {width, static_cast<int>((hidden - 1) / width + 1),
            rows > 0 ? (rows - 1) / rows_per_block + 1 : 0};
  }
};

// The hidden unit and the row that are a thread's.
struct Place {
  int64_t unit, row;
};
DEVICE Place place(const StepShape& shape) {
  const int rows_per_block = kThreads / shape.width;
  const int block_row = dev::block_x() / shape.column_blocks,
            block_column = dev::block_x() % shape.column_blocks;
  return {int64_t{block_column} * shape.width + dev::tid() % shape.width,
          int64_t{block_row} * rows_per_block + dev::tid() / shape.width};
}

template <class E>
struct StepForwardArgs {
  StepForward<E, Compute<E>> step;
  StepShape shape;
};

template <class Cell, class E>
KERNEL step_forward(StepForwardArgs<E> args) {
  using V = Value<E>;
  const StepForward<E, Compute<E>>& a = args.step;
  const ForwardArgs<E>& layer = a.layer;
  const int64_t d = dev::block_y(), D = dev::grid_y(), H = layer.hidden;
  const StepRows& rows = a.rows[d];
  const auto [j, b] = place(args.shape);
  if (j >= H || b >= rows.count) return;

  const int64_t row = rows.row + b, B = layer.steps.largest;
  const E* x_gates = layer.x_gates + (d * layer.steps.rows + row) * Cell::kGates * H + j;
  const Compute<E>* h_gates = a.h_gates + (d * B + b) * Cell::kGates * H + j;
  const E *b_ih = layer.b_ih[d], *b_hh = layer.b_hh[d];
  V x[Cell::kGates], h[Cell::kGates], s[Cell::kStates], q[Cell::kReserve + 1];
  for (int g = 0; g < Cell::kGates; ++g) {
    x[g] = V(widen(x_gates[g * H]) + (b_ih ? widen(b_ih[g * H + j]) : Compute<E>(0)));
    h[g] = V(h_gates[g * H] + (b_hh ? widen(b_hh[g * H + j]) : Compute<E>(0)));
  }
  const int64_t own = (d * B + b) * H + j;
  constexpr int kFirst = Cell::kReadsH ? 0 : 1;  // of the running states
  for (int k = kFirst; k < Cell::kStates; ++k) s[k] = V(a.states[k][own]);
  Cell::forward(x, h, s, q);

  for (int k = 0; k < Cell::kStates; ++k) {
    if (k >= kFirst) a.states[k][own] = plain(s[k]);
    if (layer.timelines[k])
      layer.timelines[k][(d * (layer.steps.rows + B) + rows.after + b) * H + j] =
          narrow<E>(plain(s[k]));
  }
  layer.output[(row * D + d) * H + j] = narrow<E>(plain(s[0]));
  if (a.h && (!a.last_h || b >= rows.staying)) a.h[own] = narrow<E>(plain(s[0]));
  if (layer.gates)
    for (int i = 0; i < Cell::kReserve; ++i)
      layer.gates[((d * layer.steps.rows + row) * Cell::kReserve + i) * H + j] =
          narrow<E>(plain(q[i]));
}

template <class E>
struct StepBackwardArgs {
  StepBackward<E, Compute<E>> step;
  StepShape shape;
};

template <class Cell, class E>
KERNEL step_backward(StepBackwardArgs<E> args) {
  using V = Value<E>;
  const StepBackward<E, Compute<E>>& a = args.step;
  const BackwardArgs<E>& layer = a.layer;
  const int64_t d = dev::block_y(), D = dev::grid_y(), H = layer.hidden;
  const StepRows& rows = a.rows[d];
  const auto [j, b] = place(args.shape);
  if (j >= H || b >= rows.count) return;

  const int64_t row = rows.row + b, B = layer.steps.largest;
  const int64_t before = b < rows.continued ? rows.before : rows.initial;
  const int64_t timeline = d * (layer.steps.rows + B) + b, own = (d * B + b) * H + j;
  V q[Cell::kReserve + 1], p[Cell::kStates], s[Cell::kStates], ds[Cell::kStates];
  for (int i = 0; i < Cell::kReserve; ++i)
    q[i] = V(widen(layer.gates[((d * layer.steps.rows + row) * Cell::kReserve + i) * H + j]));
  for (int k = 0; k < Cell::kStates; ++k) {
    p[k] = V(widen(layer.timelines[k][(timeline + before) * H + j]));
    s[k] = V(widen(layer.timelines[k][(timeline + rows.after) * H + j]));
    const E* of_last = layer.grad_states_n[k];
    ds[k] = b < rows.staying ? V(a.grad_states[k][own]) : of_last ? V(widen(of_last[own])) : V(0);
  }
  if (layer.grad_output) ds[0] = ds[0] + V(widen(layer.grad_output[(row * D + d) * H + j]));
  V dx[Cell::kGates], dh[Cell::kGates];
  Cell::backward(q, p, s, ds, dx, dh);

  for (int k = 0; k < Cell::kStates; ++k) {
    // The product with w_hh is still to come for h, and is all of it where the cell reads no h.
    if ((k > 0 || Cell::kReadsH) && a.grad_states[k]) a.grad_states[k][own] = plain(ds[k]);
    if (k > 0 && layer.grad_states_0[k] && b >= rows.continued)
      layer.grad_states_0[k][own] = narrow<E>(plain(ds[k]));
  }
  E* grad_x = layer.grad_x_gates + (d * layer.steps.rows + row) * Cell::kGates * H + j;
  for (int g = 0; g < Cell::kGates; ++g) grad_x[g * H] = narrow<E>(plain(dx[g]));
  if (!a.grad_h_gates[d]) return;
  E* grad_h = a.grad_h_gates[d] + b * Cell::kGates * H + j;
  for (int g = 0; g < Cell::kGates; ++g) grad_h[g * H] = narrow<E>(plain(dh[g]));
}

// ---- column sums ----
template <class E>
DEVICE void store_sums(const ColumnSums<E, Compute<E>>& a, int matrix, int64_t column,
                       Compute<E> sum) {
  for (E* sums : a.matrices[matrix].sums)
    if (sums) sums[column] = narrow<E>(sum);
}

// Blocks take the columns of one matrix after the other.
template <class E>
KERNEL partial_sums(ColumnSums<E, Compute<E>> a) {
  const int blocks = dev::grid_x() / a.count, matrix = dev::block_x() / blocks;
  const int64_t column = int64_t{dev::block_x() % blocks} * kThreads + dev::tid();
  if (column >= a.columns) return;
  const int64_t part = dev::block_y(), begin = part * a.part_rows,
                end = begin + a.part_rows < a.rows ? begin + a.part_rows : a.rows;
  const E* from = a.matrices[matrix].rows;
  Compute<E> sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += widen(from[row * a.columns + column]);
  if (a.parts == 1) return store_sums(a, matrix, column, sum);
  a.partial[(matrix * a.parts + part) * a.columns + column] = sum;
}

// A warp has kSumColumns columns; the lanes of one column share its parts, and add up in a fixed
// order.
inline constexpr int kSumColumns = 4;
inline constexpr int kSumBlock = kThreads / kWarpSize * kSumColumns;  // columns of a block
template <class E>
KERNEL total_sums(ColumnSums<E, Compute<E>> a) {
  const int blocks = dev::grid_x() / a.count, matrix = dev::block_x() / blocks;
  const int lane = dev::tid() % kWarpSize, warp = dev::tid() / kWarpSize;
  const int64_t column =
      int64_t{dev::block_x() % blocks} * kSumBlock + warp * kSumColumns + lane % kSumColumns;
  const bool exists = column < a.columns;
  const Compute<E>* partial = a.partial + matrix * a.parts * a.columns + column;
  Compute<E> sum = 0;
  for (int64_t part = lane / kSumColumns; exists && part < a.parts; part += kWarpSize / kSumColumns)
    sum += partial[part * a.columns];
  UNROLL
  for (int other = kSumColumns; other < kWarpSize; other *= 2) sum += dev::shfl_xor(sum, other);
  if (!exists || lane >= kSumColumns) return;
  store_sums(a, matrix, column, sum);
}

// ---- packed sequences ----
// One block per run.
KERNEL expand_runs(ExpandRuns a) {
  const Run& run = a.runs[dev::block_x()];
  for (int64_t i = dev::tid(); i < run.count; i += kThreads) {
    a.batch[run.first + i] = run.batch;
    a.offset[run.first + i] = run.row + i * run.batch;
  }
}

// Blocks stride over the steps.
template <class E>
KERNEL states_before(StatesBefore<E> a) {
  for (int64_t t = dev::block_x(); t < a.walk.steps.count; t += dev::grid_x()) {
    const StepRows rows = StepRows::of(a.walk, t);
    const E *before = a.timeline + rows.before * a.hidden,
            *initial = a.timeline + rows.initial * a.hidden;
    E* result = a.result + rows.row * a.hidden;
    for (int64_t i = dev::tid(); i < rows.count * a.hidden; i += kThreads)
      result[i] = i < rows.continued * a.hidden ? before[i] : initial[i];
  }
}

}  // namespace rnnfast::cuda
