// What one thread of a team does for a recurrence, backward.
#pragma once

#include "cpu/rows_forward.h"

namespace rnnfast::cpu {

// One recurrence, backward. What is not asked for is null.
template <class T>
struct RecurrenceBackward {
  Walk walk;        // as in forward; the driver goes through it from its end
  int64_t hidden;   // H
  Weights<T> w_hh;  // for the gradient of h; or, of independent units,
  const T* w_own;   // [G*H]
  const T *gain, *gain_c, *bias_c, *keep, *drop;  // as forward was given
  int64_t keep_stride;
  const T* grad_output;                    // [rows, H]
  const T *timelines[kMaxStates], *gates;  // as written by forward
  const T *normalised, *statistics, *fresh;
  T* grad_states[kMaxStates];   // [B, state_stride] in: gradients of states_n; out: of the initial
                                // states; in between of the running ones
  int64_t state_stride;         // padded to whole registers
  T *grad_x, *grad_h, *grad_p;  // [rows, G*H] see gradient_sizes; those that are equal are one
  T* grad_y;                    // [rows, H]
  T clip;                       // 0: none
};

// The gradient of what `Moments` normalised, from that of the outcome times the gain (gain dy),
// with the outcome: 1 / deviation (gain dy - mean of it - outcome * mean of outcome gain dy).
template <class T>
struct MomentsBackward {
  T mean, mean_of_products, rstd;

  template <class Grad, class Outcome>
  static RNNFAST_FN MomentsBackward of(int64_t count, T rstd, const Grad& grad,
                                       const Outcome& outcome) {
    const T sum = sum_of<T>(count, grad);
    const T products =
        sum_of<T>(count, [&](int64_t i, int64_t n) { return grad(i, n) * outcome(i, n); });
    return {sum / T(count), products / T(count), rstd};
  }
  RNNFAST_FN Vec<T> apply(Vec<T> grad, Vec<T> outcome) const {
    using V = Vec<T>;
    return V(rstd) * (grad - V(mean) - outcome * V(mean_of_products));
  }
};

// One row of one step back.
template <class Cell, class T>
struct BackwardRow {
  using V = Vec<T>;
  const RecurrenceBackward<T>& d;
  const int64_t H, row, b, before, after;  // of the sequence, of the batch, of the timelines
  T* scratch;                              // [H] of this thread

  int64_t first_gate() const { return row * Cell::kGates * H; }
  T* grad_state(int k, int64_t j) const { return d.grad_states[k] + b * d.state_stride + j; }

  // A register of units of the row, see unit.h.
  struct Units {
    const BackwardRow& at;
    const int64_t j, n;

    RNNFAST_FN V gate(int i) const {
      return V::load(at.d.gates + (at.row * Cell::kReserve + i) * at.H + j, n);
    }
    RNNFAST_FN V before(int k) const {
      return V::load(at.d.timelines[k] + at.before * at.H + j, n);
    }
    // What the cell made.
    RNNFAST_FN V after(int k) const {
      return V::load(at.d.fresh ? at.d.fresh + (at.row * Cell::kStates + k) * at.H + j
                                : at.d.timelines[k] + at.after * at.H + j,
                     n);
    }
    // The gradient of what the cell made; that of what it did not goes to the state before.
    RNNFAST_FN V grad(int k) const {
      const RecurrenceBackward<T>& d = at.d;
      V ds = V::load(at.grad_state(k, j), n);
      if (k == 0 && d.grad_output) ds = ds + V::load(d.grad_output + at.row * at.H + j, n);
      if (d.clip > 0) {
        ds = select(ds > V(d.clip), V(d.clip), ds);
        ds = select(ds < V(-d.clip), V(-d.clip), ds);
      }
      V keep(T(0));
      if (d.keep) keep = V::load(d.keep + at.row * d.keep_stride + k * at.H + j, n);
      (keep * ds).store(at.grad_state(k, j), n);
      return (V(1) - keep) * ds;
    }

    RNNFAST_FN void put_grad(int k, V ds) const {
      (V::load(at.grad_state(k, j), n) + ds).store(at.grad_state(k, j), n);
    }
    RNNFAST_FN void put_x(int g, V dx) const {
      dx.store(at.d.grad_x + at.first_gate() + g * at.H + j, n);
    }
    RNNFAST_FN void put_h(int g, V dh) const {
      if (at.d.grad_h != at.d.grad_x) dh.store(at.d.grad_h + at.first_gate() + g * at.H + j, n);
    }
  };

  RNNFAST_FN void run(Range units) const {
    for_registers<T>(units,
                     [&](int64_t j, int64_t n) { backward_unit<Cell, V>(Units{*this, j, n}); });
  }

  // The same where c was normalised: through h = emit(gain c^ + bias), then c' = advance(..).
  RNNFAST_FN void run_normalised_c() const {
    const T* const statistics = d.statistics + row * kStatistics<Cell>;
    const Moments<T> moments{statistics[1], statistics[2]};
    T* const grad_y = d.grad_y + row * H;
    const auto outcome = [&](int64_t j, int64_t n) {
      return moments.apply(Units{*this, j, n}.after(1));
    };
    const auto grad = [&](int64_t j, int64_t n) {
      return V::load(grad_y + j, n) * V::load(d.gain_c + j, n);
    };
    constexpr int kLast = Cell::kGates - 1;
    for_registers<T>({0, H}, [&](int64_t j, int64_t n) {
      const Units units{*this, j, n};
      V q[Cell::kReserve], dx[Cell::kGates], dh[Cell::kGates];
      load_gates(units, q);
      const V y = fma(V::load(d.gain_c + j, n), outcome(j, n), V::load(d.bias_c + j, n));
      Cell::emit_backward(q, y, units.grad(0), V(T(0)), dx, dh).store(grad_y + j, n);
      units.grad(1).store(scratch + j, n);
      units.put_x(kLast, dx[kLast]), units.put_h(kLast, dh[kLast]);
    });
    const auto back = MomentsBackward<T>::of(H, moments.rstd, grad, outcome);
    for_registers<T>({0, H}, [&](int64_t j, int64_t n) {
      const Units units{*this, j, n};
      V q[Cell::kReserve], p[Cell::kStates], ds[Cell::kStates], dx[Cell::kGates], dh[Cell::kGates];
      load_gates(units, q);
      p[1] = units.before(1);
      const V dc = V::load(scratch + j, n) + back.apply(grad(j, n), outcome(j, n));
      Cell::advance_backward(q, p, dc, ds, dx, dh);
#pragma GCC unroll 3
      for (int g = 0; g < kLast; ++g) units.put_x(g, dx[g]), units.put_h(g, dh[g]);
      units.put_grad(0, ds[0]), units.put_grad(1, ds[1]);
    });
  }
  static RNNFAST_FN void load_gates(const Units& units, V* q) {
#pragma GCC unroll 4
    for (int i = 0; i < Cell::kReserve; ++i) q[i] = units.gate(i);
  }

  RNNFAST_FN void normalise() const {
    const T *grad_h = d.grad_h + first_gate(), *p = d.normalised + first_gate();
    const auto grad = [&](int64_t j, int64_t n) {
      return V::load(grad_h + j, n) * V::load(d.gain + j, n);
    };
    const auto outcome = [&](int64_t j, int64_t n) { return V::load(p + j, n); };
    const auto back = MomentsBackward<T>::of(Cell::kGates * H,
                                             d.statistics[row * kStatistics<Cell>], grad, outcome);
    for_registers<T>({0, Cell::kGates * H}, [&](int64_t j, int64_t n) {
      back.apply(grad(j, n), outcome(j, n)).store(d.grad_p + first_gate() + j, n);
    });
  }

  RNNFAST_FN void add_to_h(int64_t j, int64_t n, V grad) const {
    if (d.drop) grad = grad * V::load(d.drop + b * H + j, n);
    (V::load(grad_state(0, j), n) + grad).store(grad_state(0, j), n);
  }

  RNNFAST_FN void multiply_own(Range units) const {
    for_registers<T>(units, [&](int64_t j, int64_t n) {
      V grad(T(0));
      for (int g = 0; g < Cell::kGates; ++g)
        grad = fma(V::load(d.w_own + g * H + j, n), V::load(d.grad_p + first_gate() + g * H + j, n),
                   grad);
      add_to_h(j, n, grad);
    });
  }
};

// scratch: [H] of this thread.
template <class Cell, class T>
void recurrence_backward(const RecurrenceBackward<T>& d, T* scratch, Member member) {
  const Walk back{d.walk.steps, !d.walk.reverse};
  const int64_t B = d.walk.batch_size(), H = d.hidden;
  const bool independent = d.w_own;
  const RowsPart part = RowsPart::of(member, B, H, independent && !d.gain, Vec<T>::kWidth);
  d.w_hh.pack(member, pack_backward<T>);
  member.wait();
  const Range panels = member.panels(d.w_hh.panels.count());
  for (int64_t i = 0; i < back.steps.count; ++i) {
    const int64_t t = back.time(i), alive = back.steps.batch_at(t), at = back.steps.offset_at(t);
    const auto row = [&](int64_t b) {
      return BackwardRow<Cell, T>{d,      H, at + b, b, d.walk.before(t, b), d.walk.after(t, b),
                                  scratch};
    };
    const Range rows = part.rows(member, B, alive, independent);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const BackwardRow<Cell, T> own = row(b);
      if constexpr (Cell::kEmits) {
        d.gain ? own.run_normalised_c() : own.run(part.units);
      } else {
        own.run(part.units);
      }
      if (d.gain) own.normalise();
      if (independent) own.multiply_own(part.units);
    }
    if (independent) continue;
    member.wait_for_step();
    multiply(member, d.w_hh, d.grad_p + at * Cell::kGates * H, Cell::kGates * H,
             member.rows(B, 0, alive), panels, [&](int64_t b, int64_t unit, const T* sums) {
               row(b).add_to_h(unit, d.w_hh.panels.units_from(unit), Vec<T>::load(sums));
             });
    member.wait_for_step();
  }
}

}  // namespace rnnfast::cpu
