// What one thread of a team does for a layer. Forward: chunk by chunk of time steps the projection
// of x, then the steps, each one product with packed weights whose sums go straight into the cell's
// gate maths. Backward: the steps of a chunk, then what their gate gradients add to the gradients
// of the weights and of x.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cells.h"
#include "cpu/team.h"
#include "recurrence.h"

namespace rnnfast {

// A weight matrix as a thread multiplies with it.
template <class S>
struct Weights {
  Panels<S> panels;
  const S* plain;       // as the tensor has it
  S* packed;            // memory for the panels; null: multiplied as it stands, or not at all
  bool filled = false;  // the panels are there already

  template <class Pack>
  void pack(const Member& member, const Pack& pack_panel) const {
    if (!packed || filled) return;
    const Range mine = member.share(panels.count());
    for (int64_t panel = mine.begin; panel < mine.end; ++panel)
      pack_panel(plain, panels, panel, packed + panels.offset(panel));
  }
};

// Rows of a times w, packed or, forward only, as it stands.
template <class S, class Consume>
RNNFAST_FN void multiply(const Weights<S>& w, const S* a, int64_t a_stride, Range rows,
                         Range panel_range, Consume&& consume) {
  if (w.packed) {
    multiply(w.panels, w.packed, a, a_stride, rows, panel_range, consume);
  } else {
    multiply_unpacked(w.panels, w.plain, a, a_stride, rows, panel_range, consume);
  }
}

// The same where all rows of a are zeros: one product for all, which is zero but where a weight is
// NaN or infinite.
template <class S, class Consume>
RNNFAST_FN void multiply_first(const Weights<S>& w, const S* a, int64_t a_stride, Range rows,
                               Range panel_range, Consume&& consume) {
  const Range one{rows.begin, rows.begin < rows.end ? rows.begin + 1 : rows.end};
  multiply(w, a, a_stride, one, panel_range, [&](int64_t, int64_t unit, const Compute<S>* sums) {
    for (int64_t row = rows.begin; row < rows.end; ++row) consume(row, unit, sums);
  });
}

// Rows [begin, end) of the sequence that steps [steps) of a walk visit.
inline Range rows_of(const Walk& walk, Range steps) {
  const int64_t first = walk.time(walk.reverse ? steps.end - 1 : steps.begin),
                last = walk.time(walk.reverse ? steps.begin : steps.end - 1);
  return {walk.steps.offset_at(first), walk.steps.offset_at(last) + walk.steps.batch_at(last)};
}

// Calls body(chunk of steps) for all steps, `count` at a time.
template <class Body>
void for_chunks(int64_t steps, int64_t count, const Body& body) {
  for (int64_t begin = 0; begin < steps; begin += count)
    body(Range{begin, begin + count < steps ? begin + count : steps});
}

// Bytes between what two threads write. The processor reads ahead, past the end of what a thread
// reads: it must not take lines that another one writes.
inline constexpr int64_t kGapBytes = 4096;

// One direction of a layer, forward. S: the type of the tensors and of what is multiplied; sums,
// gates and states are kept as T.
template <class S>
struct ForwardDirection {
  using T = Compute<S>;
  Walk walk;
  int64_t hidden, input;  // H, I
  const S* x;             // [rows, I]
  Weights<S> w_ih, w_hh;
  const S *b_ih, *b_hh;              // [G*H] or null
  bool starts_with_zeros;            // h_0 is zero: the first step is alike for all rows
  const S* initial[kMaxStates];      // [B, H] or null: zeros
  int64_t chunk_rows;                // rows of the longest chunk
  T *state_memory, *x_gates_memory;  // of all threads: for the running states, and for a chunk
  S* operand_memory;                 // the same for h in S; null where S is T
  int64_t state_stride;              // padded to whole registers
  S* output;                 // [rows, output_stride], from the first column of this direction
  int64_t output_stride;     // D*H
  S* states_n[kMaxStates];   // [B, H]
  T* timelines[kMaxStates];  // [rows + B, H] per state, initial states filled in, or null:
                             // inference
  T* gates;                  // [rows, reserve*H] or null: inference, or a cell without

  // Where this thread finds its rows and units, see `take_place`.
  T* h[2];  // [B, state_stride] h by the parity of the step: read from one, written to the other
  S* h_operand[2];  // h as the product reads it: h itself, or its copy in S
  T* c;             // [B, state_stride] the second state, in place
  T* x_gates;       // [rows of a chunk, x_gates_stride] W_ih x + b_ih, register by register as
                    // `multiply` gives it
  int64_t x_gates_stride;
};

// Of a buffer [B, stride] for each of `count` things: where that of thing i begins for this thread.
// Threads that split the batch have their rows of all things side by side, apart from the others'.
template <class T>
T* own_rows(T* memory, const Member& member, int64_t batch, int64_t stride, int count, int i) {
  const Range rows = member.rows(batch, 0, batch);
  const int64_t gap = member.splits_batch() ? member.rank * kGapBytes / int64_t{sizeof(T)} : 0;
  return memory + gap + (rows.begin * (count - 1) + i * (rows.end - rows.begin)) * stride;
}

template <class Cell, class S>
void take_place(ForwardDirection<S>& d, const Member& member) {
  const int64_t B = d.walk.batch_size();
  constexpr int kBuffers = 1 + Cell::kStates;
  const auto states = [&](int i) {
    return own_rows(d.state_memory, member, B, d.state_stride, kBuffers, i);
  };
  for (int parity = 0; parity < 2; ++parity) {
    d.h[parity] = states(parity);
    if constexpr (std::is_same_v<S, Compute<S>>) {
      d.h_operand[parity] = d.h[parity];
    } else {
      d.h_operand[parity] = own_rows(d.operand_memory, member, B, d.state_stride, 2, parity);
    }
  }
  if constexpr (Cell::kStates > 1) d.c = states(2);
  const Range units = d.w_ih.panels.units(member.panels(d.w_ih.panels.count()));
  d.x_gates_stride = (units.end - units.begin) * Cell::kGates + Vec<S>::kWidth;
  if (member.splits_batch()) {
    const Range rows = member.rows(B, 0, B);
    d.x_gates = d.x_gates_memory + rows.begin * (d.chunk_rows / B - 1) * d.x_gates_stride;
  } else {
    d.x_gates = d.x_gates_memory + (d.chunk_rows - 1) * units.begin * Cell::kGates +
                d.chunk_rows * member.rank * Vec<S>::kWidth;
  }
}

// The row of the x_gates of a chunk at which step i has its row 0.
inline int64_t x_gates_row(const Walk& walk, const Member& member, Range steps, int64_t i) {
  if (!member.splits_batch())
    return walk.steps.offset_at(walk.time(i)) - rows_of(walk, steps).begin;
  const Range rows = member.rows(walk.batch_size(), 0, walk.batch_size());
  return (i - steps.begin) * (rows.end - rows.begin);
}

// The initial states of this thread's rows and units, zeros past H. Where rows come alive late, h
// goes into both of its buffers: they find it in whichever is read then.
template <class Cell, class S>
void fill_initial(const ForwardDirection<S>& d, const Member& member) {
  const int64_t B = d.walk.batch_size(), H = d.hidden;
  const int buffers = d.walk.steps.batch_at(d.walk.steps.count - 1) < B ? 2 : 1;
  const Range units = d.w_hh.panels.units(member.panels(d.w_hh.panels.count()));
  if (units.begin == units.end) return;
  const int64_t count = (units.end < H ? units.end : H) - units.begin;
  const auto fill = [&](auto* to, const S* from) {
    std::fill_n(to, units.end - units.begin, std::remove_reference_t<decltype(*to)>{});
    if (from) std::copy_n(from, count, to);
  };
  const Range rows = member.rows(B, 0, B);
  for (int k = 0; k < Cell::kStates; ++k)
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const S* from = d.initial[k] ? d.initial[k] + row * H + units.begin : nullptr;
      const int64_t at = row * d.state_stride + units.begin;
      if (k == 1) fill(d.c + at, from);
      for (int parity = 0; k == 0 && parity < buffers; ++parity) {
        fill(d.h[parity] + at, from);
        if constexpr (!std::is_same_v<S, Compute<S>>) fill(d.h_operand[parity] + at, from);
      }
      if (!d.timelines[k]) continue;
      auto* timeline = d.timelines[k] + d.walk.initial(0) * H + row * H + units.begin;
      for (int64_t j = 0; j < count; ++j) timeline[j] = from ? Compute<S>(from[j]) : 0;
    }
}

// The x_gates of a chunk of steps, those parts of them that this thread will read.
template <class Cell, class S>
void project(const ForwardDirection<S>& d, Range steps, const Member& member) {
  using T = Compute<S>;
  using V = Vec<S>;
  const Range rows = rows_of(d.walk, steps), panels = member.panels(d.w_ih.panels.count());
  const auto multiply_rows = [&](Range some, Range of_panels, int64_t first) {
    multiply(d.w_ih, d.x, d.input, some, of_panels, [&](int64_t row, int64_t unit, const T* sums) {
      T* x_gates = d.x_gates + (row - first) * d.x_gates_stride + unit * Cell::kGates;
      const int64_t units = d.w_ih.panels.units_from(unit);
      for (int g = 0; g < Cell::kGates; ++g) {
        V sum = V::load(sums + g * V::kWidth);
        if (d.b_ih) sum = sum + V::load(d.b_ih + g * d.hidden + unit, units);
        sum.store(x_gates + g * V::kWidth);
      }
    });
  };
  if (!member.splits_batch()) return multiply_rows(rows, panels, rows.begin);
  const int64_t B = d.walk.batch_size();
  const Range mine = member.rows(B, 0, B);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel)
    for (int64_t i = steps.begin; i < steps.end; ++i) {
      const int64_t at = d.walk.steps.offset_at(d.walk.time(i));
      multiply_rows({at + mine.begin, at + mine.end}, {panel, panel + 1},
                    at - x_gates_row(d.walk, member, steps, i));
    }
}

template <class Cell>
inline constexpr int kReserveSlots = Cell::kReserve > 0 ? Cell::kReserve : 1;

// Where the rows of one step stand.
template <class S>
struct ForwardStep {
  using T = Compute<S>;
  const T *x_gates, *h_in;
  const S* operand_in;
  T* h_out;
  S *operand_out, *output;
  T *gates, *after[kMaxStates];
  int64_t staying;  // from this row on, rows end here
};

template <class Cell, class S>
ForwardStep<S> forward_step(const ForwardDirection<S>& d, int64_t i, int64_t x_gates_row) {
  const int64_t t = d.walk.time(i), at = d.walk.steps.offset_at(t), H = d.hidden;
  ForwardStep<S> step{d.x_gates + x_gates_row * d.x_gates_stride,
                      d.h[i & 1],
                      d.h_operand[i & 1],
                      d.h[1 - (i & 1)],
                      d.h_operand[1 - (i & 1)],
                      d.output + at * d.output_stride,
                      d.gates ? d.gates + at * Cell::kReserve * H : nullptr,
                      {},
                      d.walk.staying(i)};
  for (int k = 0; k < Cell::kStates; ++k)
    if (d.timelines[k]) step.after[k] = d.timelines[k] + d.walk.after(t, 0) * H;
  return step;
}

// The cell for one register of units of one row: sums are W_hh h, gate by gate.
template <class Cell, class S>
RNNFAST_FN void forward_units(const ForwardDirection<S>& d, const ForwardStep<S>& step, int64_t row,
                              int64_t unit, const Compute<S>* sums) {
  using T = Compute<S>;
  using V = Vec<S>;
  const int64_t H = d.hidden, units = d.w_hh.panels.units_from(unit),
                state = row * d.state_stride + unit;
  V x[Cell::kGates], h[Cell::kGates], s[Cell::kStates], q[kReserveSlots<Cell>];
  const T* x_gates = step.x_gates + row * d.x_gates_stride + unit * Cell::kGates;
  for (int g = 0; g < Cell::kGates; ++g) {
    x[g] = V::load(x_gates + g * V::kWidth);
    h[g] = V::load(sums + g * V::kWidth);
    if (d.b_hh) h[g] = h[g] + V::load(d.b_hh + g * H + unit, units);
  }
  s[0] = V::load(step.h_in + state);
  if constexpr (Cell::kStates > 1) s[1] = V::load(d.c + state);
  Cell::forward(x, h, s, q);
  s[0].store(step.h_out + state);
  if constexpr (!std::is_same_v<S, T>) s[0].store(step.operand_out + state, units);
  if constexpr (Cell::kStates > 1) s[1].store(d.c + state);
  s[0].store(step.output + row * d.output_stride + unit, units);
  for (int k = 0; k < Cell::kStates; ++k) {
    if (row >= step.staying) s[k].store(d.states_n[k] + row * H + unit, units);
    if (step.after[k]) s[k].store(step.after[k] + row * H + unit, units);
  }
  if (step.gates)
    for (int k = 0; k < Cell::kReserve; ++k)
      q[k].store(step.gates + (row * Cell::kReserve + k) * H + unit, units);
}

template <class Cell, class S>
void forward_direction(ForwardDirection<S> d, int64_t chunk_steps, Member member) {
  take_place<Cell>(d, member);
  d.w_ih.pack(member, pack_forward<S>);
  d.w_hh.pack(member, pack_forward<S>);
  fill_initial<Cell>(d, member);
  member.wait();  // for what the others have packed or filled
  const Range panels = member.panels(d.w_hh.panels.count());
  for_chunks(d.walk.steps.count, chunk_steps, [&](Range steps) {
    project<Cell>(d, steps, member);
    for (int64_t i = steps.begin; i < steps.end; ++i) {
      const ForwardStep<S> step = forward_step<Cell>(d, i, x_gates_row(d.walk, member, steps, i));
      const Range rows = member.rows(d.walk.batch_size(), 0, d.walk.steps.batch_at(d.walk.time(i)));
      const auto consume = [&](int64_t row, int64_t unit, const Compute<S>* sums) {
        forward_units<Cell>(d, step, row, unit, sums);
      };
      if (i == 0 && d.starts_with_zeros) {
        multiply_first(d.w_hh, step.operand_in, d.state_stride, rows, panels, consume);
      } else {
        multiply(d.w_hh, step.operand_in, d.state_stride, rows, panels, consume);
      }
      member.wait_for_step();
    }
  });
}

// One direction of a layer, backward. A gradient that nobody wants is null.
template <class T>
struct BackwardDirection {
  Walk walk;                       // as in forward; the driver goes through it from its end
  int64_t hidden, input;           // H, I
  Weights<T> w_hh, w_ih;           // as they stand: for the gradients of h and of x
  const T* x;                      // [rows, I]
  const T* grad_output;            // [rows, grad_output_stride] from the first column of this
  int64_t grad_output_stride;      // direction, or null: zero. D*H
  const T* timelines[kMaxStates];  // as written by forward
  const T* gates;                  // as written by forward
  bool consecutive;                // dense: the states before rows r, r+1, ... stand side by side
  T* carry[2];                     // [B, gates_stride] hidden-side gate gradients of the last
                                   // step, by parity; zeros at first
  T* grad_states[kMaxStates];      // [B, state_stride] in: gradients of states_n; then those of
                                   // the running state
  T* grad_x_gates;                 // [rows of a chunk, gates_stride]
  T* grad_h_gates;                 // [rows of a chunk, h_gates_stride] of the gates where they
                                   // differ from those of x
  int64_t state_stride, gates_stride, h_gates_stride;  // padded to whole registers
  T *x_rows, *h_rows;        // [rows of a chunk, whole registers] copies of x, of the states
                             // before; null: these are readable in whole registers
  T *grad_w_ih, *grad_w_hh;  // [G*H, I], [G*H, H]
  T *grad_b_ih, *grad_b_hh;  // [G*H]
  T* grad_x;                 // [rows, I]
  bool began_with_zeros;     // one step, from a state of zeros
  bool want_h_0;  // add what reaches h_0 through w_hh; otherwise grad_states[0] ends without it
};

// Where the rows of one step stand.
template <class T>
struct BackwardStep {
  const T *gates, *grad_output, *after[kMaxStates];
  const T *before[kMaxStates], *initial[kMaxStates];  // of rows that go on, of those that began
  T *grad_x_gates, *grad_h_gates, *carry;
  int64_t continued;  // from this row on, rows began here
};

template <class Cell, class T>
BackwardStep<T> backward_step(const BackwardDirection<T>& d, int64_t t, T* carry,
                              int64_t first_row) {
  const int64_t at = d.walk.steps.offset_at(t), H = d.hidden;
  BackwardStep<T> step{};
  if (d.gates) step.gates = d.gates + at * Cell::kReserve * H;
  if (d.grad_output) step.grad_output = d.grad_output + at * d.grad_output_stride;
  for (int k = 0; k < Cell::kStates; ++k) {
    step.after[k] = d.timelines[k] + d.walk.after(t, 0) * H;
    step.before[k] = d.timelines[k] + d.walk.before(t, 0) * H;
    step.initial[k] = d.timelines[k] + d.walk.initial(0) * H;
  }
  step.grad_x_gates = d.grad_x_gates + (at - first_row) * d.gates_stride;
  step.grad_h_gates = d.grad_h_gates + (at - first_row) * d.h_gates_stride;
  step.carry = carry;
  step.continued = d.walk.continued(t);
  return step;
}

// The gate gradients of one step for one register of units of one row: sums are what the step after
// sent back through W_hh.
template <class Cell, class T>
RNNFAST_FN void backward_units(const BackwardDirection<T>& d, const BackwardStep<T>& step,
                               int64_t row, int64_t unit, const T* sums) {
  using V = Vec<T>;
  const int64_t H = d.hidden, units = d.w_hh.panels.units_from(unit),
                state = row * d.state_stride + unit;
  V q[kReserveSlots<Cell>], s[Cell::kStates], p[Cell::kStates], ds[Cell::kStates], dx[Cell::kGates],
      dh[Cell::kGates];
  for (int k = 0; k < Cell::kReserve; ++k)
    q[k] = V::load(step.gates + (row * Cell::kReserve + k) * H + unit, units);
  for (int k = 0; k < Cell::kStates; ++k) {
    const T* before = row < step.continued ? step.before[k] : step.initial[k];
    s[k] = V::load(step.after[k] + row * H + unit, units);
    p[k] = V::load(before + row * H + unit, units);
    ds[k] = V::load(d.grad_states[k] + state);
  }
  ds[0] = ds[0] + V::load(sums);
  if (step.grad_output)
    ds[0] = ds[0] + V::load(step.grad_output + row * d.grad_output_stride + unit, units);
  Cell::backward(q, p, s, ds, dx, dh);
  for (int k = 0; k < Cell::kStates; ++k) ds[k].store(d.grad_states[k] + state);
  const int64_t at = row * d.gates_stride + unit;
  for (int g = 0; g < Cell::kGates; ++g) {
    dx[g].store(step.grad_x_gates + at + g * H, units);
    dh[g].store(step.carry + at + g * H, units);
  }
  for (int g = Cell::kSharedGates; g < Cell::kGates; ++g)
    dh[g].store(step.grad_h_gates + row * d.h_gates_stride + (g - Cell::kSharedGates) * H + unit,
                units);
}

// One step of the walk back: the gate gradients of its rows, from those of the step after it.
template <class Cell, class T>
void step_back(const BackwardDirection<T>& d, const Walk& back, int64_t i, int64_t first_row,
               Range panels, Member& member) {
  const int64_t t = back.time(i), batch = back.steps.batch_at(t), staying = back.staying(i);
  T* carry = d.carry[1 - (i & 1)];
  const BackwardStep<T> step = backward_step<Cell>(d, t, carry, first_row);
  const Range rows = member.rows(back.batch_size(), 0, batch);
  const auto consume = [&](int64_t row, int64_t unit, const T* sums) {
    backward_units<Cell>(d, step, row, unit, sums);
  };
  if (i == 0) {
    multiply_zeros(d.w_hh.panels, rows, panels, consume);
  } else {
    multiply(d.w_hh, d.carry[i & 1], d.gates_stride, rows, panels, consume);
  }
  member.wait_for_step();
  if (!d.want_h_0 || staying == batch) return;
  // Rows that began here: what reaches their h_0. The next step reads this carry too and writes the
  // other one.
  multiply(d.w_hh, carry, d.gates_stride, member.rows(back.batch_size(), staying, batch), panels,
           [&](int64_t row, int64_t unit, const T* sums) {
             T* grad = d.grad_states[0] + row * d.state_stride + unit;
             (Vec<T>::load(grad) + Vec<T>::load(sums)).store(grad);
           });
}

// A view of the rows of a chunk that whole registers may be read from.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

// Of the chunk's rows of x, and of the states before them, the copies that are needed.
template <class T>
void copy_operands(const BackwardDirection<T>& d, Range rows, Range steps, const Walk& back,
                   const Member& member) {
  if (d.x_rows && d.grad_w_ih)
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (row % member.size != member.rank) continue;
      std::copy_n(d.x + row * d.input, d.input,
                  d.x_rows + (row - rows.begin) * whole_registers<T>(d.input));
    }
  if (!d.h_rows || !d.grad_w_hh || d.began_with_zeros) return;
  for (int64_t i = steps.begin + member.rank; i < steps.end; i += member.size) {
    const int64_t t = back.time(i), at = back.steps.offset_at(t) - rows.begin;
    for (int64_t b = 0; b < back.steps.batch_at(t); ++b)
      std::copy_n(d.timelines[0] + d.walk.before(t, b) * d.hidden, d.hidden,
                  d.h_rows + (at + b) * whole_registers<T>(d.hidden));
  }
}

// Calls add(gate gradients, stride, columns of them, the first's place among all gates) for the
// hidden-side gate gradients `gates`: first those that are also x's.
template <class Cell, class T, class Add>
void for_h_gates(const BackwardDirection<T>& d, Range gates, const Add& add) {
  const int64_t shared = Cell::kSharedGates * d.hidden;
  const Range of_x{gates.begin, gates.end < shared ? gates.end : shared};
  if (of_x.begin < of_x.end) add(d.grad_x_gates, d.gates_stride, of_x, 0);
  const Range own{gates.begin > shared ? gates.begin - shared : 0, gates.end - shared};
  if (own.begin < own.end) add(d.grad_h_gates, d.h_gates_stride, own, shared);
}

// What the gate gradients of a chunk of steps add to the gradients of the weights, each thread to
// its share of the gates, and what they make of the gradient of x.
template <class Cell, class T>
void add_gradients(const BackwardDirection<T>& d, const Walk& back, Range steps, Member& member) {
  const Range rows = rows_of(back, steps);
  copy_operands(d, rows, steps, back, member);
  member.wait();
  const Range gates = member.share(Cell::kGates * d.hidden, kMaxRows);
  const int64_t count = rows.end - rows.begin;
  const bool fresh = steps.begin == 0;
  if (d.grad_w_ih) {
    const Rows<T> x = d.x_rows ? Rows<T>{d.x_rows, whole_registers<T>(d.input)}
                               : Rows<T>{d.x + rows.begin * d.input, d.input};
    add_outer(d.grad_x_gates, d.gates_stride, gates, x.data, x.stride, d.input, count, d.grad_w_ih,
              fresh);
  }
  if (d.grad_w_hh && d.began_with_zeros) {
    for_h_gates<Cell>(d, gates, [&](const T* a, int64_t stride, Range columns, int64_t at) {
      outer_with_zeros(a, stride, columns, d.hidden, count, d.grad_w_hh + at * d.hidden);
    });
  } else if (d.grad_w_hh) {
    const int64_t first = back.time(back.reverse ? steps.end - 1 : steps.begin);
    const Rows<T> h = d.h_rows
                          ? Rows<T>{d.h_rows, whole_registers<T>(d.hidden)}
                          : Rows<T>{d.timelines[0] + d.walk.before(first, 0) * d.hidden, d.hidden};
    for_h_gates<Cell>(d, gates, [&](const T* a, int64_t stride, Range columns, int64_t at) {
      add_outer(a, stride, columns, h.data, h.stride, d.hidden, count, d.grad_w_hh + at * d.hidden,
                fresh);
    });
  }
  if (d.grad_b_ih) add_rows(d.grad_x_gates, d.gates_stride, gates, count, d.grad_b_ih, fresh);
  if (d.grad_b_hh)
    for_h_gates<Cell>(d, gates, [&](const T* a, int64_t stride, Range columns, int64_t at) {
      add_rows(a, stride, columns, count, d.grad_b_hh + at, fresh);
    });
  const bool by_rows = count >= member.size * kRowsForFullTiles;
  const Range all_panels{0, d.w_ih.panels.count()};
  if (d.grad_x)
    multiply(d.w_ih, d.grad_x_gates, d.gates_stride,
             by_rows ? member.share(count) : Range{0, count},
             by_rows ? all_panels : member.share(all_panels.end),
             [&](int64_t row, int64_t unit, const T* sums) {
               Vec<T>::load(sums).store(d.grad_x + (rows.begin + row) * d.input + unit,
                                        d.w_ih.panels.units_from(unit));
             });
  member.wait();
}

template <class Cell, class T>
void backward_direction(const BackwardDirection<T>& d, int64_t chunk_steps, Member member) {
  d.w_hh.pack(member, pack_backward<T>);
  d.w_ih.pack(member, pack_backward<T>);
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

}  // namespace rnnfast
