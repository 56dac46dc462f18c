// What one thread of a team does for a layer, forward: chunk by chunk of time steps the projection
// of x, then the steps, each one product with packed weights whose sums go straight into the cell's
// gate maths.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/team.h"
#include "recurrence.h"
#include "unit.h"

namespace rnnfast::cpu {

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
RNNFAST_FN void multiply(const Member& member, const Weights<S>& w, const S* a, int64_t a_stride,
                         Range rows, Range panel_range, Consume&& consume) {
  if constexpr (kByTiles<S>)
    if (member.tiles && w.packed)
      return multiply_by_tiles(*member.tiles, w.panels, w.packed, a, a_stride, rows, panel_range,
                               consume);
  if (w.packed) {
    multiply(w.panels, w.packed, a, a_stride, rows, panel_range, member.block_rows, consume);
  } else {
    multiply_unpacked(w.panels, w.plain, a, a_stride, rows, panel_range, consume);
  }
}

// The same where all rows of a are zeros: one product for all, which is zero but where a weight is
// NaN or infinite.
template <class S, class Consume>
RNNFAST_FN void multiply_first(const Member& member, const Weights<S>& w, const S* a,
                               int64_t a_stride, Range rows, Range panel_range, Consume&& consume) {
  const Range one{rows.begin, rows.begin < rows.end ? rows.begin + 1 : rows.end};
  const auto for_all = [&](int64_t, int64_t unit, const Compute<S>* sums) {
    for (int64_t row = rows.begin; row < rows.end; ++row) consume(row, unit, sums);
  };
  multiply(member, w, a, a_stride, one, panel_range, for_all);
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

// One direction of a layer, forward. S: the type of what is multiplied; N: of the other tensors;
// sums, gates and states are kept as T.
template <class S, class N = S>
struct ForwardDirection {
  using T = Compute<S>;
  Walk walk;
  int64_t hidden, input;  // H, I
  const S* x;             // [rows, I]
  Weights<S> w_ih, w_hh;
  const N *b_ih, *b_hh;                  // [G*H] or null
  bool starts_with_zeros;                // h_0 is zero: the first step is alike for all rows
  const N* initial[kMaxStates];          // [B, H] or null: zeros
  int64_t chunk_rows;                    // rows of the longest chunk
  T *state_memory, *x_gates_memory;      // of all threads: for the running states, and for a chunk
  S* operand_memory;                     // the same for h in S; null where S is T
  int64_t state_stride, operand_stride;  // padded to whole registers
  N* output;                 // [rows, output_stride], from the first column of this direction
  int64_t output_stride;     // D*H
  N* states_n[kMaxStates];   // [B, H]
  T* timelines[kMaxStates];  // [rows + B, H] per state, initial states filled in, or null:
                             // inference
  T* gates;                  // [rows, reserve*H] or null: inference, or a cell without

  // Where this thread finds its rows and units, see `take_place`.
  T* h[2];  // [B, state_stride] h by the parity of the step: read from one, written to the other
  S* h_operand[2];  // [B, operand_stride] h as the product reads it: h itself, or its copy in S
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

template <class Cell, class S, class N>
void take_place(ForwardDirection<S, N>& d, const Member& member) {
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
      d.h_operand[parity] = own_rows(d.operand_memory, member, B, d.operand_stride, 2, parity);
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
template <class Cell, class S, class N>
void fill_initial(const ForwardDirection<S, N>& d, const Member& member) {
  const int64_t B = d.walk.batch_size(), H = d.hidden;
  const int buffers = d.walk.steps.batch_at(d.walk.steps.count - 1) < B ? 2 : 1;
  const Range units = d.w_hh.panels.units(member.panels(d.w_hh.panels.count()));
  if (units.begin == units.end) return;
  const int64_t count = (units.end < H ? units.end : H) - units.begin;
  const auto fill = [&](auto* to, const N* from) {
    for (int64_t j = 0; j < units.end - units.begin; j += Vec<S>::kWidth) {
      const int64_t left = count - j < Vec<S>::kWidth ? count - j : Vec<S>::kWidth;
      const Vec<S> numbers = from ? Vec<S>::load(from + j, left) : Vec<S>(0);
      numbers.store(to + j, Vec<S>::kWidth);
    }
  };
  const Range rows = member.rows(B, 0, B);
  for (int k = 0; k < Cell::kStates; ++k)
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const N* from = d.initial[k] ? d.initial[k] + row * H + units.begin : nullptr;
      const int64_t at = row * d.state_stride + units.begin;
      if (k == 1) fill(d.c + at, from);
      for (int parity = 0; k == 0 && parity < buffers; ++parity) {
        fill(d.h[parity] + at, from);
        if constexpr (!std::is_same_v<S, Compute<S>>)
          fill(d.h_operand[parity] + row * d.operand_stride + units.begin, from);
      }
      if (!d.timelines[k]) continue;
      auto* timeline = d.timelines[k] + d.walk.initial(0) * H + row * H + units.begin;
      for (int64_t j = 0; j < count; ++j) timeline[j] = from ? Compute<S>(from[j]) : 0;
    }
}

// The x_gates of a chunk of steps, those parts of them that this thread will read.
template <class Cell, class S, class N>
void project(const ForwardDirection<S, N>& d, Range steps, const Member& member) {
  using T = Compute<S>;
  using V = Vec<S>;
  const Range rows = rows_of(d.walk, steps), panels = member.panels(d.w_ih.panels.count());
  const auto multiply_rows = [&](Range some, Range of_panels, int64_t first) {
    const auto consume = [&](int64_t row, int64_t unit, const T* sums) {
      T* x_gates = d.x_gates + (row - first) * d.x_gates_stride + unit * Cell::kGates;
      const int64_t units = d.w_ih.panels.units_from(unit);
#pragma GCC unroll 4
      for (int g = 0; g < Cell::kGates; ++g) {
        V sum = V::load(sums + g * V::kWidth);
        if (d.b_ih) sum = sum + V::load(d.b_ih + g * d.hidden + unit, units);
        sum.store(x_gates + g * V::kWidth);
      }
    };
    multiply(member, d.w_ih, d.x, d.input, some, of_panels, consume);
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

// Where the rows of one step stand.
template <class S, class N>
struct ForwardStep {
  using T = Compute<S>;
  const T *x_gates, *h_in;
  const S* operand_in;
  T* h_out;
  S* operand_out;
  N* output;
  T *gates, *after[kMaxStates];
  int64_t staying;  // from this row on, rows end here
};

template <class Cell, class S, class N>
ForwardStep<S, N> forward_step(const ForwardDirection<S, N>& d, int64_t i, int64_t x_gates_row) {
  const StepRows rows = StepRows::of(d.walk, d.walk.time(i));
  const int64_t H = d.hidden;
  ForwardStep<S, N> step{d.x_gates + x_gates_row * d.x_gates_stride,
                         d.h[i & 1],
                         d.h_operand[i & 1],
                         d.h[1 - (i & 1)],
                         d.h_operand[1 - (i & 1)],
                         d.output + rows.row * d.output_stride,
                         d.gates ? d.gates + rows.row * Cell::kReserve * H : nullptr,
                         {},
                         rows.staying};
  for (int k = 0; k < Cell::kStates; ++k)
    if (d.timelines[k]) step.after[k] = d.timelines[k] + rows.after * H;
  return step;
}

// One register of units of one row: sums are W_hh h, gate by gate.
template <class Cell, class S, class N>
struct ForwardUnits {
  using T = Compute<S>;
  using V = Vec<S>;
  const ForwardDirection<S, N>& d;
  const ForwardStep<S, N>& step;
  const int64_t row, unit, units;  // the last: how many there are
  const T* sums;

  RNNFAST_FN int64_t in_states() const { return row * d.state_stride + unit; }
  RNNFAST_FN V x(int g) const {
    return V::load(step.x_gates + row * d.x_gates_stride + unit * Cell::kGates + g * V::kWidth);
  }
  RNNFAST_FN V h(int g) const {
    const V sum = V::load(sums + g * V::kWidth);
    return d.b_hh ? sum + V::load(d.b_hh + g * d.hidden + unit, units) : sum;
  }
  RNNFAST_FN V state(int k) const { return V::load((k == 0 ? step.h_in : d.c) + in_states()); }

  RNNFAST_FN void put_state(int k, V s) const {
    s.store((k == 0 ? step.h_out : d.c) + in_states());
    if (k == 0) {
      if constexpr (!std::is_same_v<S, T>)
        s.store(step.operand_out + row * d.operand_stride + unit, units);
      s.store(step.output + row * d.output_stride + unit, units);
    }
    if (row >= step.staying) s.store(d.states_n[k] + row * d.hidden + unit, units);
    if (step.after[k]) s.store(step.after[k] + row * d.hidden + unit, units);
  }
  RNNFAST_FN void put_gate(int i, V q) const {
    if (step.gates) q.store(step.gates + (row * Cell::kReserve + i) * d.hidden + unit, units);
  }
};

template <class Cell, class S, class N>
void forward_direction(ForwardDirection<S, N> d, int64_t chunk_steps, Member member) {
  take_place<Cell>(d, member);
  d.w_ih.pack(member, pack_forward<S>);
  d.w_hh.pack(member, pack_forward<S>);
  fill_initial<Cell>(d, member);
  member.wait();  // for what the others have packed or filled
  const Range panels = member.panels(d.w_hh.panels.count());
  for_chunks(d.walk.steps.count, chunk_steps, [&](Range steps) {
    project<Cell>(d, steps, member);
    for (int64_t i = steps.begin; i < steps.end; ++i) {
      const ForwardStep<S, N> step =
          forward_step<Cell>(d, i, x_gates_row(d.walk, member, steps, i));
      const Range rows = member.rows(d.walk.batch_size(), 0, d.walk.steps.batch_at(d.walk.time(i)));
      const auto consume = [&](int64_t row, int64_t unit, const Compute<S>* sums) {
        forward_unit<Cell, Vec<S>>(
            ForwardUnits<Cell, S, N>{d, step, row, unit, d.w_hh.panels.units_from(unit), sums});
      };
      if (i == 0 && d.starts_with_zeros) {
        multiply_first(member, d.w_hh, step.operand_in, d.operand_stride, rows, panels, consume);
      } else {
        multiply(member, d.w_hh, step.operand_in, d.operand_stride, rows, panels, consume);
      }
      member.wait_for_step();
    }
  });
}

}  // namespace rnnfast::cpu
