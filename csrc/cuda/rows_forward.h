// The kernels of a recurrence, forward: a step, and all steps of units that are on their own.
#pragma once

#include "cuda/rows.h"

namespace rnnfast::cuda {

// One row of one step. What is done to a unit is the same in both kernels.
template <class Cell, class E>
struct ForwardRow {
  using C = Compute<E>;
  using V = Value<E>;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kReserve = Cell::kReserve;
  struct Inputs {  // as they are stored: nobody waits for them before they are used
    E x[kGates], keep[kStates];
  };

  const RowsForward<E, C>& a;
  const int64_t H;
  const RowPlace at;

  DEVICE Inputs inputs(int64_t j) const {
    const Rows<E>& rows = a.rows;
    Inputs in{};
    for (int g = 0; g < kGates; ++g) in.x[g] = a.x_gates[(at.row * kGates + g) * H + j];
    for (int k = 0; rows.keep && k < kStates; ++k)
      in.keep[k] = rows.keep[at.row * rows.keep_stride + k * H + j];
    return in;
  }
  DEVICE C initial(int k, int64_t j) const {
    return a.states_0[k] ? widen(a.states_0[k][at.b * H + j]) : C(0);
  }
  DEVICE C drop(int64_t j) const { return a.rows.drop ? widen(a.rows.drop[at.b * H + j]) : C(1); }

  DEVICE void store_gate(int i, int64_t j, V q) const {
    if (a.gates) a.gates[(at.row * kReserve + i) * H + j] = plain(q);
  }
  // State k after the step, of what the cell made.
  DEVICE C finish(int k, int64_t j, const Inputs& in, C before, V made) const {
    C after = plain(made);
    if (a.fresh) a.fresh[(at.row * kStates + k) * H + j] = after;
    if (a.rows.keep) after = kept(widen(in.keep[k]), before, after);
    if (a.timelines[k]) a.timelines[k][at.after * H + j] = after;
    if (a.timelines[k] && at.first) a.timelines[k][at.before * H + j] = before;
    if (at.last) a.states_n[k][at.b * H + j] = narrow<E>(after);
    if (k == 0) a.output[at.row * H + j] = narrow<E>(after);
    return after;
  }
};

// The same for a block that has the row in this step alone.
template <class Cell, class E>
struct ForwardStep : ForwardRow<Cell, E> {
  using Row = ForwardRow<Cell, E>;
  using Row::a, Row::H, Row::at, Row::kGates, Row::kReserve, Row::kStates;
  using typename Row::C, typename Row::V, typename Row::Inputs;

  DEVICE C before(int k, int64_t j) const {
    return at.first ? this->initial(k, j) : a.states[k][at.b * H + j];
  }
  DEVICE C product(int g, int64_t j) const {
    if (!a.rows.w_own) return a.products[(at.b * kGates + g) * H + j];
    return widen(a.rows.w_own[g * H + j]) * (before(0, j) * this->drop(j));
  }

  // Of the product; the identity where it is not normalised.
  DEVICE Moments<C> moments() const {
    if (!a.rows.gain) return {0, 1};
    const auto result =
        Moments<C>::template of<kGates>(H, [this](int g, int64_t j) { return product(g, j); });
    if (a.statistics && dev::tid() == 0) a.statistics[at.row * kStatistics<Cell>] = result.rstd;
    return result;
  }

  // The gate on the hidden side.
  DEVICE C h_gate(int g, int64_t j, const Moments<C>& moments) const {
    C p = moments.apply(product(g, j));
    if (a.normalised) a.normalised[(at.row * kGates + g) * H + j] = p;
    if (a.rows.gain) p *= widen(a.rows.gain[g * H + j]);
    return a.b_hh ? p + widen(a.b_hh[g * H + j]) : p;
  }
  DEVICE void store_state(int k, int64_t j, const Inputs& in, V made) const {
    const C after = this->finish(k, j, in, before(k, j), made);
    a.states[k][at.b * H + j] = after;
    if (k == 0 && a.operand) a.operand[at.b * H + j] = narrow<E>(after * this->drop(j));
  }

  // See unit.h.
  struct Unit {
    const ForwardStep& row;
    const int64_t j;
    const Moments<C>& moments;
    const Inputs in;

    DEVICE V x(int g) const { return V(widen(in.x[g])); }
    DEVICE V h(int g) const { return V(row.h_gate(g, j, moments)); }
    DEVICE V state(int k) const { return V(row.before(k, j)); }
    DEVICE void put_state(int k, V s) const { row.store_state(k, j, in, s); }
    DEVICE void put_gate(int i, V q) const { row.store_gate(i, j, q); }
  };

  DEVICE void run(const Moments<C>& moments) const {
    each_unit(H,
              [&](int64_t j) { forward_unit<Cell, V>(Unit{*this, j, moments, this->inputs(j)}); });
  }

  // The same where c is normalised before h is made of it.
  DEVICE void run_normalised_c(const Moments<C>& moments) const {
    C* const c = a.scratch + at.b * (1 + kReserve) * H;
    C* const gates = a.gates ? a.gates + at.row * kReserve * H : c + H;
    each_unit(H, [&](int64_t j) {
      advance_unit<Cell, V>(
          Unit{*this, j, moments, this->inputs(j)},
          [&](int i, V q) { gates[i * H + j] = plain(q); }, [&](V made) { c[j] = plain(made); });
    });
    const auto of_c = Moments<C>::template of<1>(H, [c](int, int64_t j) { return c[j]; });
    if (a.statistics && dev::tid() == 0) {
      C* const own = a.statistics + at.row * kStatistics<Cell>;
      own[1] = of_c.mean, own[2] = of_c.rstd;
    }
    each_unit(H, [&](int64_t j) {
      const Inputs in = this->inputs(j);
      V q[kReserve];
      for (int i = 0; i < kReserve; ++i) q[i] = V(gates[i * H + j]);
      const C y = fma(widen(a.rows.gain_c[j]), of_c.apply(c[j]), widen(a.rows.bias_c[j]));
      store_state(1, j, in, V(c[j]));
      store_state(0, j, in, Cell::emit(q, V(y)));
    });
  }
};

template <class Cell, class E>
KERNEL LAUNCH_BOUNDS(kRowThreads) rows_forward(RowsForward<E, Compute<E>> args) {
  const ForwardStep<Cell, E> row{
      {args, args.rows.hidden, RowPlace::of(args.rows.step, dev::block_x())}};
  const auto moments = row.moments();
  if constexpr (Cell::kEmits)
    if (args.rows.gain) return row.run_normalised_c(moments);
  row.run(moments);
}

template <class Cell, class E>
KERNEL LAUNCH_BOUNDS(kUnitThreads) units_forward(RowsForward<E, Compute<E>> args) {
  using Row = ForwardRow<Cell, E>;
  using V = Value<E>;
  using C = Compute<E>;
  const int64_t H = args.rows.hidden;
  const UnitOfRow own = UnitOfRow::of(args.rows.walk.steps, H);
  if (own.steps == 0) return;
  const int64_t j = own.unit;
  const auto row = [&](int64_t n) { return Row{args, H, own.place(args.rows.walk, n)}; };
  const C drop = row(0).drop(j);
  C w[Cell::kGates], bias[Cell::kGates], states[Cell::kStates];
  for (int g = 0; g < Cell::kGates; ++g) {
    w[g] = widen(args.rows.w_own[g * H + j]) * drop;
    bias[g] = args.b_hh ? widen(args.b_hh[g * H + j]) : C(0);
  }
  for (int k = 0; k < Cell::kStates; ++k) states[k] = row(0).initial(k, j);
  for (int64_t first = 0; first < own.steps; first += kStepsAtATime<Cell>) {
    typename Row::Inputs in[kStepsAtATime<Cell>];
    UNROLL
    for (int i = 0; i < kStepsAtATime<Cell>; ++i)
      in[i] = row(smaller(first + i, own.steps - 1)).inputs(j);
    UNROLL
    for (int i = 0; i < kStepsAtATime<Cell>; ++i) {
      if (first + i >= own.steps) break;
      const Row now = row(first + i);
      forward_unit<Cell, V>([&](int g) { return V(widen(in[i].x[g])); },
                            [&](int g) { return V(fma(w[g], states[0], bias[g])); },
                            [&](int k) { return V(states[k]); },
                            [&](int k, V s) { states[k] = now.finish(k, j, in[i], states[k], s); },
                            [&](int r, V q) { now.store_gate(r, j, q); });
    }
  }
}

}  // namespace rnnfast::cuda
