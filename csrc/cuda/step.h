// The kernels of `step`, which launches once per time step after a library product, and the small
// kernels around every recurrence. One thread per hidden unit of a row.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/types.h"
#include "unit.h"

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

// Whether a mask names row b; null names none.
DEVICE bool names(const bool* mask, int64_t b) { return mask != nullptr && mask[b]; }

template <class E>
struct StepForwardArgs {
  StepForward<E, Compute<E>> step;
  StepShape shape;
};

// What a thread's unit and row take and make, see unit.h.
template <class Cell, class E>
struct ForwardUnit {
  using C = Compute<E>;
  using V = Value<E>;
  static constexpr int kFirst = Cell::kReadsH ? 0 : 1;  // of the running states
  const StepForward<E, C>& a;
  const StepRows& rows;
  const int64_t d, D, H, B, row, b, j;  // direction, of so many; the row's place, and the unit's
  C (&gates)[kReserveSlots<Cell>];      // as put_gate leaves them

  DEVICE int64_t own() const { return (d * B + b) * H + j; }
  DEVICE V x(int g) const {
    const ForwardArgs<E>& layer = a.layer;
    const E x_gate = layer.x_gates[((d * layer.steps.rows + row) * Cell::kGates + g) * H + j];
    return V(widen(x_gate) + bias(layer.b_ih[d], g));
  }
  // Then the product and the running states are those of what stood in the row before.
  DEVICE bool begins() const { return names(a.begins[d], b); }
  DEVICE V h(int g) const {
    const C product = begins() ? C(0) : a.h_gates[((d * B + b) * Cell::kGates + g) * H + j];
    return V(product + bias(a.layer.b_hh[d], g));
  }
  DEVICE C bias(const E* of, int g) const { return of ? widen(of[g * H + j]) : C(0); }
  DEVICE V state(int k) const { return k >= kFirst && !begins() ? V(a.states[k][own()]) : V(C(0)); }

  DEVICE void put_state(int k, V s) const {
    const ForwardArgs<E>& layer = a.layer;
    if (k >= kFirst) a.states[k][own()] = plain(s);
    if (layer.timelines[k])
      layer.timelines[k][(d * (layer.steps.rows + B) + rows.after + b) * H + j] =
          narrow<E>(plain(s));
    if (k > 0) return;
    layer.output[(row * D + d) * H + j] = narrow<E>(plain(s));
    if (a.h && (!a.last_h || b >= rows.staying)) a.h[own()] = narrow<E>(plain(s));
  }
  DEVICE void put_gate(int i, V q) const { gates[i] = plain(q); }
  DEVICE void keep_gates() const {
    using Kept = KeptOf<Cell, E>;
    const ForwardArgs<E>& layer = a.layer;
    if (Cell::kReserve > 0 && layer.gates)
      reinterpret_cast<Kept*>(layer.gates)[(d * layer.steps.rows + row) * H + j] = Kept::of(gates);
  }
};

template <class Cell, class E>
KERNEL step_forward(StepForwardArgs<E> args) {
  const StepForward<E, Compute<E>>& a = args.step;
  const int64_t d = dev::block_y(), H = a.layer.hidden;
  const StepRows& rows = a.rows[d];
  const auto [j, b] = place(args.shape);
  if (j >= H || b >= rows.count) return;
  Compute<E> gates[kReserveSlots<Cell>] = {};
  const ForwardUnit<Cell, E> unit{
      a, rows, d, dev::grid_y(), H, a.layer.steps.largest, rows.row + b, b, j, gates};
  forward_unit<Cell, Value<E>>(unit);
  unit.keep_gates();
}

template <class E>
struct StepBackwardArgs {
  StepBackward<E, Compute<E>> step;
  StepShape shape;
};

template <class Cell, class E>
struct BackwardUnit {
  using C = Compute<E>;
  using V = Value<E>;
  const StepBackward<E, C>& a;
  const StepRows& rows;
  const int64_t d, D, H, B, row, b, j;  // as in ForwardUnit
  const KeptOf<Cell, E> kept;

  DEVICE int64_t own() const { return (d * B + b) * H + j; }
  DEVICE V in_timeline(int k, int64_t place) const {
    const int64_t first = d * (a.layer.steps.rows + B) + b;
    return V(widen(a.layer.timelines[k][(first + place) * H + j]));
  }
  DEVICE V gate(int i) const { return V(kept.gate(i)); }
  DEVICE V before(int k) const {
    if (names(a.begins[d], b)) return V(C(0));
    return in_timeline(k, b < rows.continued ? rows.before : rows.initial);
  }
  DEVICE V after(int k) const { return in_timeline(k, rows.after); }
  DEVICE V grad(int k) const {
    const E* of_last = a.layer.grad_states_n[k];
    const V ds = names(a.ends[d], b) ? V(C(0))
                 : b < rows.staying  ? V(a.grad_states[k][own()])
                 : of_last           ? V(widen(of_last[own()]))
                                     : V(C(0));
    if (k > 0 || !a.layer.grad_output) return ds;
    return ds + V(widen(a.layer.grad_output[(row * D + d) * H + j]));
  }

  DEVICE void put_grad(int k, V ds) const {
    // The product with w_hh is still to come for h, and is all of it where the cell reads no h.
    if ((k > 0 || Cell::kReadsH) && a.grad_states[k]) a.grad_states[k][own()] = plain(ds);
    if (k > 0 && a.layer.grad_states_0[k] && b >= rows.continued)
      a.layer.grad_states_0[k][own()] = narrow<E>(plain(ds));
  }
  DEVICE void put_x(int g, V dx) const {
    const BackwardArgs<E>& layer = a.layer;
    layer.grad_x_gates[((d * layer.steps.rows + row) * Cell::kGates + g) * H + j] =
        narrow<E>(plain(dx));
  }
  DEVICE void put_h(int g, V dh) const {
    if (a.grad_h_gates[d]) a.grad_h_gates[d][(b * Cell::kGates + g) * H + j] = narrow<E>(plain(dh));
  }
};

template <class Cell, class E>
KERNEL step_backward(StepBackwardArgs<E> args) {
  const StepBackward<E, Compute<E>>& a = args.step;
  const int64_t d = dev::block_y(), H = a.layer.hidden;
  const StepRows& rows = a.rows[d];
  const auto [j, b] = place(args.shape);
  if (j >= H || b >= rows.count) return;
  using Kept = KeptOf<Cell, E>;
  const int64_t row = rows.row + b;
  Kept kept{};
  if constexpr (Cell::kReserve > 0)
    kept = reinterpret_cast<const Kept*>(a.layer.gates)[(d * a.layer.steps.rows + row) * H + j];
  backward_unit<Cell, Value<E>>(
      BackwardUnit<Cell, E>{a, rows, d, dev::grid_y(), H, a.layer.steps.largest, row, b, j, kept});
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
    const bool* begins = a.begins ? a.begins + (t + a.walk.reverse) * rows.count : nullptr;
    for (int64_t i = dev::tid(); i < rows.count * a.hidden; i += kThreads) {
      const bool continues = i < rows.continued * a.hidden;
      const bool anew = continues && begins && begins[i / a.hidden];
      result[i] = anew ? narrow<E>(0) : continues ? before[i] : initial[i];
    }
  }
}

}  // namespace rnnfast::cuda
