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

  // The gradients of the states that the cell made; the rest goes to those before the step.
  RNNFAST_FN void load_grads(int64_t j, int64_t n, V* ds) const {
#pragma GCC unroll 2
    for (int k = 0; k < Cell::kStates; ++k) {
      ds[k] = V::load(grad_state(k, j), n);
      if (k == 0 && d.grad_output) ds[k] = ds[k] + V::load(d.grad_output + row * H + j, n);
      if (d.clip > 0) {
        ds[k] = select(ds[k] > V(d.clip), V(d.clip), ds[k]);
        ds[k] = select(ds[k] < V(-d.clip), V(-d.clip), ds[k]);
      }
      V passed(T(0));
      if (d.keep) {
        const V keep = V::load(d.keep + row * d.keep_stride + k * H + j, n);
        passed = keep * ds[k], ds[k] = (V(1) - keep) * ds[k];
      }
      passed.store(grad_state(k, j), n);
    }
  }
  RNNFAST_FN V state_after(int k, int64_t j, int64_t n) const {
    return V::load(
        d.fresh ? d.fresh + row * Cell::kStates * H + k * H + j : d.timelines[k] + after * H + j,
        n);
  }
  RNNFAST_FN void load(int64_t j, int64_t n, V* q, V* p) const {
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kReserve; ++k)
      q[k] = V::load(d.gates + (row * Cell::kReserve + k) * H + j, n);
#pragma GCC unroll 2
    for (int k = 0; k < Cell::kStates; ++k) p[k] = V::load(d.timelines[k] + before * H + j, n);
  }
  RNNFAST_FN void store_gates(int64_t j, int64_t n, const V* dx, const V* dh, int count) const {
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) {
      dx[g].store(d.grad_x + first_gate() + g * H + j, n);
      if (d.grad_h != d.grad_x) dh[g].store(d.grad_h + first_gate() + g * H + j, n);
    }
  }
  // What the cell sends back elementwise joins what passed by it.
  RNNFAST_FN void store_grads(int64_t j, int64_t n, const V* ds) const {
#pragma GCC unroll 2
    for (int k = 0; k < Cell::kStates; ++k)
      (V::load(grad_state(k, j), n) + ds[k]).store(grad_state(k, j), n);
  }

  RNNFAST_FN void run(Range units) const {
    for_registers<T>(units, [&](int64_t j, int64_t n) {
      V q[kReserveSlots<Cell>], p[Cell::kStates], s[Cell::kStates], ds[Cell::kStates],
          dx[Cell::kGates], dh[Cell::kGates];
      load_grads(j, n, ds);
      load(j, n, q, p);
#pragma GCC unroll 2
      for (int k = 0; k < Cell::kStates; ++k) s[k] = state_after(k, j, n);
      Cell::backward(q, p, s, ds, dx, dh);
      store_gates(j, n, dx, dh, Cell::kGates);
      store_grads(j, n, ds);
    });
  }

  // The same where c was normalised: through h = emit(gain c^ + bias), then c' = advance(..).
  RNNFAST_FN void run_normalised_c() const {
    const Moments<T> moments{d.statistics[row * kStatistics<Cell> + 1],
                             d.statistics[row * kStatistics<Cell> + 2]};
    T* const grad_y = d.grad_y + row * H;
    const auto outcome = [&](int64_t j, int64_t n) { return moments.apply(state_after(1, j, n)); };
    const auto grad = [&](int64_t j, int64_t n) {
      return V::load(grad_y + j, n) * V::load(d.gain_c + j, n);
    };
    for_registers<T>({0, H}, [&](int64_t j, int64_t n) {
      V q[kReserveSlots<Cell>], p[Cell::kStates], ds[Cell::kStates], dx[Cell::kGates],
          dh[Cell::kGates];
      load_grads(j, n, ds);
      load(j, n, q, p);
      const V y = fma(V::load(d.gain_c + j, n), outcome(j, n), V::load(d.bias_c + j, n));
      Cell::emit_backward(q, y, ds[0], V(T(0)), dx, dh).store(grad_y + j, n);
      ds[1].store(scratch + j, n);
      constexpr int kLast = Cell::kGates - 1;
      dx[kLast].store(d.grad_x + first_gate() + kLast * H + j, n);
      dh[kLast].store(d.grad_h + first_gate() + kLast * H + j, n);
    });
    const auto back = MomentsBackward<T>::of(H, moments.rstd, grad, outcome);
    for_registers<T>({0, H}, [&](int64_t j, int64_t n) {
      V q[kReserveSlots<Cell>], p[Cell::kStates], ds[Cell::kStates], dx[Cell::kGates],
          dh[Cell::kGates];
      load(j, n, q, p);
      const V dc = V::load(scratch + j, n) + back.apply(grad(j, n), outcome(j, n));
      Cell::advance_backward(q, p, dc, ds, dx, dh);
      store_gates(j, n, dx, dh, Cell::kGates - 1);
      store_grads(j, n, ds);
    });
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
