// What one thread of a team does for a layer, backward: the steps of a chunk, then what their gate
// gradients add to the gradients of the weights and of x.
#pragma once

#include "cpu/pairs.h"
#include "cpu/steps_forward.h"

namespace rnnfast::cpu {

// One direction of a layer, backward. S: the type of what is multiplied; all else is T. A gradient
// that nobody wants is null.
template <class S>
struct BackwardDirection {
  using T = Compute<S>;
  Walk walk;                       // as in forward; the driver goes through it from its end
  int64_t hidden, input;           // H, I
  Weights<S> w_hh, w_ih;           // as they stand: for the gradients of h and of x
  const S* x;                      // [rows, I]
  const T* grad_output;            // [rows, grad_output_stride] from the first column of this
  int64_t grad_output_stride;      // direction, or null: zero. D*H
  const T* timelines[kMaxStates];  // as written by forward
  const T* gates;                  // as written by forward
  S* carry[2];                     // [B, gates_stride] hidden-side gate gradients of the last
                                   // step, by parity; zeros at first
  T* grad_states[kMaxStates];      // [B, state_stride] in: gradients of states_n; then those of
                                   // the running state
  S* grad_x_gates;                 // [rows of a chunk, gates_stride]
  S* grad_h_gates;                 // [rows of a chunk, h_gates_stride] of the gates where they
                                   // differ from those of x
  int64_t state_stride, gates_stride, h_gates_stride;  // padded to whole registers
  S *x_rows, *h_rows;        // PairPanels of a chunk's rows of x, of the states before; or null,
                             // and [rows of a chunk, whole registers] where these do not stand
                             // side by side
  T *grad_w_ih, *grad_w_hh;  // [G*H, I], [G*H, H]
  T *grad_b_ih, *grad_b_hh;  // [G*H]
  T* grad_x;                 // [rows, I]
  bool began_with_zeros;     // one step, from a state of zeros
  bool want_h_0;  // add what reaches h_0 through w_hh; otherwise grad_states[0] ends without it
};

// Where the rows of one step stand.
template <class S>
struct BackwardStep {
  using T = Compute<S>;
  const T *gates, *grad_output, *after[kMaxStates];
  const T *before[kMaxStates], *initial[kMaxStates];  // of rows that go on, of those that began
  S *grad_x_gates, *grad_h_gates, *carry;
  int64_t continued;  // from this row on, rows began here
};

template <class Cell, class S>
BackwardStep<S> backward_step(const BackwardDirection<S>& d, int64_t t, S* carry,
                              int64_t first_row) {
  const StepRows rows = StepRows::of(d.walk, t);
  const int64_t H = d.hidden, at = rows.row - first_row;
  BackwardStep<S> step{};
  if (d.gates) step.gates = d.gates + rows.row * Cell::kReserve * H;
  if (d.grad_output) step.grad_output = d.grad_output + rows.row * d.grad_output_stride;
  for (int k = 0; k < Cell::kStates; ++k) {
    step.after[k] = d.timelines[k] + rows.after * H;
    step.before[k] = d.timelines[k] + rows.before * H;
    step.initial[k] = d.timelines[k] + rows.initial * H;
  }
  step.grad_x_gates = d.grad_x_gates + at * d.gates_stride;
  step.grad_h_gates = d.grad_h_gates + at * d.h_gates_stride;
  step.carry = carry;
  step.continued = rows.continued;
  return step;
}

// One register of units of one row: sums are what the step after sent back through W_hh.
template <class Cell, class S>
struct BackwardUnits {
  using T = Compute<S>;
  using V = Vec<S>;
  const BackwardDirection<S>& d;
  const BackwardStep<S>& step;
  const int64_t row, unit, units;  // the last: how many there are
  const T* sums;

  RNNFAST_FN T* in_grads(int k) const { return d.grad_states[k] + row * d.state_stride + unit; }
  RNNFAST_FN V gate(int i) const {
    return V::load(step.gates + (row * Cell::kReserve + i) * d.hidden + unit, units);
  }
  RNNFAST_FN V before(int k) const {
    const T* states = row < step.continued ? step.before[k] : step.initial[k];
    return V::load(states + row * d.hidden + unit, units);
  }
  RNNFAST_FN V after(int k) const { return V::load(step.after[k] + row * d.hidden + unit, units); }
  RNNFAST_FN V grad(int k) const {
    V ds = V::load(in_grads(k));
    if (k > 0) return ds;
    ds = ds + V::load(sums);
    if (!step.grad_output) return ds;
    return ds + V::load(step.grad_output + row * d.grad_output_stride + unit, units);
  }

  RNNFAST_FN void put_grad(int k, V ds) const { ds.store(in_grads(k)); }
  RNNFAST_FN void put_x(int g, V dx) const {
    dx.store(step.grad_x_gates + row * d.gates_stride + g * d.hidden + unit, units);
  }
  RNNFAST_FN void put_h(int g, V dh) const {
    dh.store(step.carry + row * d.gates_stride + g * d.hidden + unit, units);
    if (g < Cell::kSharedGates) return;
    const int64_t own = (g - Cell::kSharedGates) * d.hidden + unit;
    dh.store(step.grad_h_gates + row * d.h_gates_stride + own, units);
  }
};

// One step of the walk back: the gate gradients of its rows, from those of the step after it.
template <class Cell, class S>
void step_back(const BackwardDirection<S>& d, const Walk& back, int64_t i, int64_t first_row,
               Range panels, Member& member) {
  const int64_t t = back.time(i), batch = back.steps.batch_at(t), staying = back.staying(i);
  using T = Compute<S>;
  S* carry = d.carry[1 - (i & 1)];
  const BackwardStep<S> step = backward_step<Cell>(d, t, carry, first_row);
  const Range rows = member.rows(back.batch_size(), 0, batch);
  const auto consume = [&](int64_t row, int64_t unit, const T* sums) {
    backward_unit<Cell, Vec<S>>(
        BackwardUnits<Cell, S>{d, step, row, unit, d.w_hh.panels.units_from(unit), sums});
  };
  if (i == 0) {
    multiply_zeros(d.w_hh.panels, rows, panels, consume);
  } else {
    multiply(member, d.w_hh, d.carry[i & 1], d.gates_stride, rows, panels, consume);
  }
  member.wait_for_step();
  if (!d.want_h_0 || staying == batch) return;
  // Rows that began here: what reaches their h_0. The next step reads this carry too and writes the
  // other one.
  multiply(member, d.w_hh, carry, d.gates_stride, member.rows(back.batch_size(), staying, batch),
           panels, [&](int64_t row, int64_t unit, const T* sums) {
             T* grad = d.grad_states[0] + row * d.state_stride + unit;
             (Vec<T>::load(grad) + Vec<T>::load(sums)).store(grad);
           });
}

// The rows of a chunk.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

// The chunk's rows of x, and of the states before them, in pairs.
template <class S>
void pack_operands(const BackwardDirection<S>& d, Range rows, Range steps, const Walk& back,
                   const Member& member) {
  const int64_t count = rows.end - rows.begin, pairs = PairPanels<S>::pairs_of(count);
  const PairPanels<S> of_x{d.x_rows, pairs}, of_h{d.h_rows, pairs};
  const auto mine = [&](int64_t pair) { return pair % member.size == member.rank; };
  const auto x = [&](int64_t row) {
    return row < count ? d.x + (rows.begin + row) * d.input : nullptr;
  };
  for (int64_t pair = member.rank; d.grad_w_ih && pair < pairs; pair += member.size)
    of_x.pack(pair, x(2 * pair), x(2 * pair + 1), d.input);
  if (!d.grad_w_hh || d.began_with_zeros) return;
  const Compute<S>* const none = nullptr;
  const auto before = [&](int64_t t, int64_t b) {
    return d.timelines[0] + d.walk.before(t, b) * d.hidden;
  };
  const int64_t first = back.time(back.reverse ? steps.end - 1 : steps.begin);
  for (int64_t i = 0; i < steps.end - steps.begin; ++i) {
    const int64_t t = first + i, at = back.steps.offset_at(t) - rows.begin,
                  batch = back.steps.batch_at(t);
    for (int64_t b = at % 2; b < batch; b += 2) {
      if (!mine((at + b) / 2)) continue;
      const auto* next = b + 1 < batch        ? before(t, b + 1)
                         : at + b + 1 < count ? before(t + 1, 0)
                                              : none;
      of_h.pack((at + b) / 2, before(t, b), next, d.hidden);
    }
  }
  for (int64_t pair = (count + 1) / 2; pair < pairs; ++pair)
    if (mine(pair)) of_h.pack(pair, none, none, d.hidden);
}

// The states before the chunk's rows, side by side, where they are not so already.
template <class S>
void copy_states_before(const BackwardDirection<S>& d, Range rows, Range steps, const Walk& back,
                        const Member& member) {
  if (!d.h_rows || !d.grad_w_hh || d.began_with_zeros) return;
  for (int64_t i = steps.begin + member.rank; i < steps.end; i += member.size) {
    const int64_t t = back.time(i), at = back.steps.offset_at(t) - rows.begin;
    for (int64_t b = 0; b < back.steps.batch_at(t); ++b)
      std::copy_n(d.timelines[0] + d.walk.before(t, b) * d.hidden, d.hidden,
                  d.h_rows + (at + b) * whole_registers<S>(d.hidden));
  }
}

// The rows of x of a chunk, as the product for the gradient of w_ih takes them.
template <class S>
auto x_of_chunk(const BackwardDirection<S>& d, Range rows) {
  if constexpr (kInPairs<S>) {
    return PairPanels<S>{d.x_rows, PairPanels<S>::pairs_of(rows.end - rows.begin)};
  } else {
    return Rows<S>{d.x + rows.begin * d.input, d.input};
  }
}

// The states before the rows of a chunk, for the gradient of w_hh.
template <class S>
auto states_before(const BackwardDirection<S>& d, const Walk& back, Range rows, Range steps) {
  if constexpr (kInPairs<S>) {
    return PairPanels<S>{d.h_rows, PairPanels<S>::pairs_of(rows.end - rows.begin)};
  } else {
    if (d.h_rows) return Rows<S>{d.h_rows, whole_registers<S>(d.hidden)};
    const int64_t first = back.time(back.reverse ? steps.end - 1 : steps.begin);
    return Rows<S>{d.timelines[0] + d.walk.before(first, 0) * d.hidden, d.hidden};
  }
}

// Calls add(gate gradients, stride, columns of them, the first's place among all gates) for the
// hidden-side gate gradients `gates`: first those that are also x's.
template <class Cell, class S, class Add>
void for_h_gates(const BackwardDirection<S>& d, Range gates, const Add& add) {
  const int64_t shared = Cell::kSharedGates * d.hidden;
  const Range of_x{gates.begin, gates.end < shared ? gates.end : shared};
  if (of_x.begin < of_x.end) add(d.grad_x_gates, d.gates_stride, of_x, 0);
  const Range own{gates.begin > shared ? gates.begin - shared : 0, gates.end - shared};
  if (own.begin < own.end) add(d.grad_h_gates, d.h_gates_stride, own, shared);
}

// What the gate gradients of a chunk of steps add to the gradients of the weights, each thread to
// its share of the gates, and what they make of the gradient of x.
template <class Cell, class S>
void add_gradients(const BackwardDirection<S>& d, const Walk& back, Range steps, Member& member) {
  using T = Compute<S>;
  const Range rows = rows_of(back, steps);
  if constexpr (kInPairs<S>) {
    pack_operands(d, rows, steps, back, member);
  } else {
    copy_states_before(d, rows, steps, back, member);
  }
  member.wait();
  const Range gates = member.share(Cell::kGates * d.hidden, kMaxRows);
  const int64_t count = rows.end - rows.begin;
  const bool fresh = steps.begin == 0;
  const auto add_product = [&](const S* a, int64_t stride, Range columns, const auto& right,
                               int64_t K, T* dst) {
    if constexpr (kInPairs<S>) {
      add_outer(member.tiles, a, stride, columns, right, K, count, dst, fresh);
    } else {
      add_outer(a, stride, columns, right.data, right.stride, K, count, member.outer_rows, dst,
                fresh);
    }
  };
  if (d.grad_w_ih)
    add_product(d.grad_x_gates, d.gates_stride, gates, x_of_chunk(d, rows), d.input, d.grad_w_ih);
  if (d.grad_w_hh)
    for_h_gates<Cell>(d, gates, [&](const S* a, int64_t stride, Range columns, int64_t at) {
      T* const dst = d.grad_w_hh + at * d.hidden;
      if (d.began_with_zeros) {
        outer_with_zeros(a, stride, columns, d.hidden, count, dst);
      } else {
        add_product(a, stride, columns, states_before(d, back, rows, steps), d.hidden, dst);
      }
    });
  if (d.grad_b_ih) add_rows(d.grad_x_gates, d.gates_stride, gates, count, d.grad_b_ih, fresh);
  if (d.grad_b_hh)
    for_h_gates<Cell>(d, gates, [&](const S* a, int64_t stride, Range columns, int64_t at) {
      add_rows(a, stride, columns, count, d.grad_b_hh + at, fresh);
    });
  const bool by_rows = count >= member.size * kRowsForFullTiles;
  const Range all_panels{0, d.w_ih.panels.count()};
  if (d.grad_x)
    multiply(member, d.w_ih, d.grad_x_gates, d.gates_stride,
             by_rows ? member.share(count) : Range{0, count},
             by_rows ? all_panels : member.share(all_panels.end),
             [&](int64_t row, int64_t unit, const T* sums) {
               Vec<T>::load(sums).store(d.grad_x + (rows.begin + row) * d.input + unit,
                                        d.w_ih.panels.units_from(unit));
             });
  member.wait();
}

template <class Cell, class S>
void backward_direction(const BackwardDirection<S>& d, int64_t chunk_steps, Member member) {
  d.w_hh.pack(member, pack_backward<S>);
  d.w_ih.pack(member, pack_backward<S>);
  member.wait();
  const Walk back{d.walk.steps, !d.walk.reverse};
  const Range panels = member.panels(d.w_hh.panels.count());
  for_chunks(back.steps.count, chunk_steps, [&](Range steps) {
    const int64_t first_row = rows_of(back, steps).begin;
    for (int64_t i = steps.begin; i < steps.end; ++i)
      step_back<Cell>(d, back, i, first_row, panels, member);
    add_gradients<Cell>(d, back, steps, member);
  });
}

}  // namespace rnnfast::cpu
