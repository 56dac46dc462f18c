// The kernels of a recurrence, backward: a step, and all steps of units that are on their own.
#pragma once

#include "cuda/rows.h"

namespace rnnfast::cuda {

// One row of one step back. What is done to a unit is the same in both kernels.
template <class Cell, class E>
struct BackwardRow {
  using C = Compute<E>;
  using V = Value<E>;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kReserve = Cell::kReserve;
  struct Inputs {  // as they are stored: nobody waits for them before they are used
    C q[kReserve + 1], p[kStates], s[kStates];
    E keep[kStates], grad;  // of the output
  };
  struct Split {
    C to_cell[kStates], passed[kStates];
  };

  const RowsBackward<E, C>& a;
  const int64_t H;
  const RowPlace at;

  DEVICE C state_after(int k, int64_t j) const {
    return a.fresh ? a.fresh[(at.row * kStates + k) * H + j] : a.timelines[k][at.after * H + j];
  }
  DEVICE Inputs inputs(int64_t j) const {
    const Rows<E>& rows = a.rows;
    Inputs in{};
    for (int i = 0; i < kReserve; ++i) in.q[i] = a.gates[(at.row * kReserve + i) * H + j];
    for (int k = 0; k < kStates; ++k) {
      in.p[k] = a.timelines[k][at.before * H + j];
      in.s[k] = state_after(k, j);
      if (rows.keep) in.keep[k] = rows.keep[at.row * rows.keep_stride + k * H + j];
    }
    if (a.grad_output) in.grad = a.grad_output[at.row * H + j];
    return in;
  }
  DEVICE C drop(int64_t j) const { return a.rows.drop ? widen(a.rows.drop[at.b * H + j]) : C(1); }

  // The gradients of the states after the step: to the states that the cell made, and to those
  // before the step, past the cell.
  DEVICE Split split(const Inputs& in, const C* grads) const {
    Split result;
    for (int k = 0; k < kStates; ++k) {
      const C keep = widen(in.keep[k]);
      C grad = k == 0 ? grads[k] + widen(in.grad) : grads[k];
      if (a.clip > 0) grad = clamp(grad, static_cast<C>(a.clip));
      result.passed[k] = keep * grad;
      result.to_cell[k] = (C(1) - keep) * grad;
    }
    return result;
  }
  DEVICE void store_x(int g, int64_t j, V dx) const {
    a.grad_x[(at.row * kGates + g) * H + j] = plain(dx);
  }
  DEVICE void store_h(int g, int64_t j, V dh) const {
    if (a.grad_h) a.grad_h[(at.row * kGates + g) * H + j] = plain(dh);
  }

  // All of a step for one unit, up to the normalisation of the product.
  DEVICE void run(int64_t j, const Inputs& in, C* grads, V* dh) const {
    const Split split = this->split(in, grads);
    backward_unit<Cell, V>(
        [&](int i) { return V(in.q[i]); }, [&](int k) { return V(in.p[k]); },
        [&](int k) { return V(in.s[k]); }, [&](int k) { return V(split.to_cell[k]); },
        [&](int k, V ds) { grads[k] = split.passed[k] + plain(ds); },
        [&](int g, V dx) { store_x(g, j, dx); }, [&](int g, V d) { dh[g] = d, store_h(g, j, d); });
  }
};

// The same for a block that has the row in this step alone.
template <class Cell, class E>
struct BackwardStep : BackwardRow<Cell, E> {
  using Row = BackwardRow<Cell, E>;
  using Row::a, Row::H, Row::at, Row::kGates, Row::kReserve, Row::kStates;
  using typename Row::C, typename Row::V, typename Row::Inputs, typename Row::Split;

  DEVICE C& grad_state(int k, int64_t j) const { return a.grad_states[k][at.b * H + j]; }
  DEVICE void load_grads(int64_t j, C* grads) const {
    for (int k = 0; k < kStates; ++k) grads[k] = grad_state(k, j);
    if (a.back && !at.last) grads[0] += a.back[at.b * H + j] * this->drop(j);
  }
  DEVICE void store_operand(int g, int64_t j, C grad_p) const {
    if (a.operand) a.operand[(at.b * kGates + g) * H + j] = narrow<E>(grad_p);
  }

  DEVICE void run_units() const {
    each_unit(H, [&](int64_t j) {
      C grads[kStates];
      V dh[kGates];
      load_grads(j, grads);
      this->run(j, this->inputs(j), grads, dh);
      for (int k = 0; k < kStates; ++k) grad_state(k, j) = grads[k];
      if (a.grad_p) return;  // of which there is none yet
      for (int g = 0; g < kGates; ++g) store_operand(g, j, plain(dh[g]));
    });
  }

  // The same where c was normalised: through h = emit(gain c^ + bias), then c' = advance(..).
  DEVICE void run_units_normalised_c() const {
    const Moments<C> moments{a.statistics[at.row * kStatistics<Cell> + 1],
                             a.statistics[at.row * kStatistics<Cell> + 2]};
    C *const grad_y = a.grad_y + at.row * H, *const of_c = a.scratch + at.b * H;
    const auto outcome = [&](int, int64_t j) { return moments.apply(this->state_after(1, j)); };
    const auto grad = [&](int, int64_t j) { return grad_y[j] * widen(a.rows.gain_c[j]); };
    constexpr int kLast = kGates - 1;
    each_unit(H, [&](int64_t j) {
      const Inputs in = this->inputs(j);
      C grads[kStates];
      load_grads(j, grads);
      const Split split = this->split(in, grads);
      V q[kReserve], dx[kGates], dh[kGates];
      for (int i = 0; i < kReserve; ++i) q[i] = V(in.q[i]);
      const V y(fma(widen(a.rows.gain_c[j]), outcome(0, j), widen(a.rows.bias_c[j])));
      grad_y[j] = plain(Cell::emit_backward(q, y, V(split.to_cell[0]), V(0), dx, dh));
      of_c[j] = split.to_cell[1];
      this->store_x(kLast, j, dx[kLast]), this->store_h(kLast, j, dh[kLast]);
      for (int k = 0; k < kStates; ++k) grad_state(k, j) = split.passed[k];
    });
    const auto back = MomentsBackward<C>::template of<1>(H, moments.rstd, grad, outcome);
    each_unit(H, [&](int64_t j) {
      const Inputs in = this->inputs(j);
      V q[kReserve], p[kStates], ds[kStates], dx[kGates], dh[kGates];
      for (int i = 0; i < kReserve; ++i) q[i] = V(in.q[i]);
      for (int k = 0; k < kStates; ++k) p[k] = V(in.p[k]);
      const C dc = of_c[j] + back.apply(grad(0, j), outcome(0, j));
      Cell::advance_backward(q, p, V(dc), ds, dx, dh);
      for (int g = 0; g < kLast; ++g) this->store_x(g, j, dx[g]), this->store_h(g, j, dh[g]);
      for (int k = 0; k < kStates; ++k) grad_state(k, j) += plain(ds[k]);
    });
  }

  // From the gradients of what the product became to those of the product.
  DEVICE void normalise() const {
    const int64_t first = at.row * kGates * H;
    const auto grad = [&](int g, int64_t j) {
      return a.grad_h[first + g * H + j] * widen(a.rows.gain[g * H + j]);
    };
    const auto outcome = [&](int g, int64_t j) { return a.normalised[first + g * H + j]; };
    const auto back = MomentsBackward<C>::template of<kGates>(
        H, a.statistics[at.row * kStatistics<Cell>], grad, outcome);
    each_unit(H, [&](int64_t j) {
      C sum = 0;
      for (int g = 0; g < kGates; ++g) {
        const C grad_p = back.apply(grad(g, j), outcome(g, j));
        a.grad_p[first + g * H + j] = grad_p;
        store_operand(g, j, grad_p);
        if (a.rows.w_own) sum = fma(widen(a.rows.w_own[g * H + j]), grad_p, sum);
      }
      if (a.rows.w_own) grad_state(0, j) += sum * this->drop(j);
    });
  }
};

template <class Cell, class E>
KERNEL LAUNCH_BOUNDS(kRowThreads) rows_backward(RowsBackward<E, Compute<E>> args) {
  const BackwardStep<Cell, E> row{
      {args, args.rows.hidden, RowPlace::of(args.rows.step, dev::block_x())}};
  if constexpr (Cell::kEmits) {
    args.rows.gain ? row.run_units_normalised_c() : row.run_units();
  } else {
    row.run_units();
  }
  if (args.rows.gain) row.normalise();
}

template <class Cell, class E>
KERNEL LAUNCH_BOUNDS(kUnitThreads) units_backward(RowsBackward<E, Compute<E>> args) {
  using Row = BackwardRow<Cell, E>;
  using C = Compute<E>;
  const int64_t H = args.rows.hidden;
  const UnitOfRow own = UnitOfRow::of(args.rows.walk.steps, H);
  if (own.steps == 0) return;
  const int64_t j = own.unit;
  const auto row = [&](int64_t n) { return Row{args, H, own.place(args.rows.walk, n)}; };
  const C drop = row(0).drop(j);
  C w[Cell::kGates], grads[Cell::kStates];
  for (int g = 0; g < Cell::kGates; ++g) w[g] = widen(args.rows.w_own[g * H + j]) * drop;
  for (int k = 0; k < Cell::kStates; ++k) grads[k] = args.grad_states[k][own.b * H + j];
  for (int64_t last = own.steps - 1; last >= 0; last -= kStepsAtATime<Cell>) {
    typename Row::Inputs in[kStepsAtATime<Cell>];
    UNROLL
    for (int i = 0; i < kStepsAtATime<Cell>; ++i)
      in[i] = row(larger(last - i, int64_t{0})).inputs(j);
    UNROLL
    for (int i = 0; i < kStepsAtATime<Cell>; ++i) {
      if (last - i < 0) break;
      Value<E> dh[Cell::kGates];
      row(last - i).run(j, in[i], grads, dh);
      for (int g = 0; g < Cell::kGates; ++g) grads[0] = fma(w[g], plain(dh[g]), grads[0]);
    }
  }
  for (int k = 0; k < Cell::kStates; ++k) args.grad_states[k][own.b * H + j] = grads[k];
}

}  // namespace rnnfast::cuda
