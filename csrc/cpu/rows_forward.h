// What one thread of a team does for a recurrence (see check_recurrence.h), forward: at each step
// the product for all rows, then row by row what wants the whole row, or more than the product.
#pragma once

#include <cmath>

#include "cpu/steps_forward.h"

namespace rnnfast::cpu {

// One recurrence, forward. What is not asked for is null.
template <class T>
struct RecurrenceForward {
  Walk walk;
  int64_t hidden;                    // H
  Weights<T> w_hh;                   // or, of independent units,
  const T* w_own;                    // [G*H]
  const T *x_gates, *b_hh;           // [rows, G*H], [G*H]
  const T *gain, *gain_c, *bias_c;   // [G*H], [H], [H]
  const T *keep, *drop;              // [rows or one, K*H], [B, H]
  int64_t keep_stride;               // 0: the same for all rows
  T* products;                       // [B, G*H]
  T* states[kMaxStates];             // [B, state_stride] the running states
  T* operand;                        // the same of what is multiplied: states[0], or
                                     // with `drop` a copy
  int64_t state_stride;              // padded to whole registers
  T* output;                         // [rows, H]
  T *timelines[kMaxStates], *gates;  // the reserve; null: inference
  T *normalised, *statistics, *fresh;
};

// A thread's part of each step, beside the product.
struct RowsPart {
  bool by_batch;
  Range units;

  // Of independent units that are not normalised every unit is on its own.
  static RowsPart of(const Member& member, int64_t batch, int64_t hidden, bool single_units,
                     int64_t width) {
    if (single_units && batch < member.size) return {false, member.share(hidden, width)};
    return {true, {0, hidden}};
  }
  // With a split of the batch, and where no thread waits for another, a row stays with its thread.
  Range rows(const Member& member, int64_t batch, int64_t alive, bool stays) const {
    if (!by_batch) return {0, alive};
    if (!stays && !member.splits_batch()) return member.share(alive);
    const Range mine = member.share(batch);
    return {mine.begin < alive ? mine.begin : alive, mine.end < alive ? mine.end : alive};
  }
};

template <class T>
RNNFAST_FN T lane_sum(Vec<T> v) {
  T lanes[Vec<T>::kWidth], sum = 0;
  v.store(lanes);
  for (const T lane : lanes) sum += lane;
  return sum;
}

// Sum over i < count of value(i), a Vec or the first so many of its lanes.
template <class T, class Value>
RNNFAST_FN T sum_of(int64_t count, const Value& value) {
  constexpr int64_t kWidth = Vec<T>::kWidth;
  Vec<T> sums(T(0));
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sums = sums + value(i, kWidth);
  T sum = lane_sum(sums);
  if (i == count) return sum;
  T lanes[kWidth];
  value(i, count - i).store(lanes);
  for (int64_t j = 0; j < count - i; ++j) sum += lanes[j];
  return sum;
}

// Calls body(unit, units from there on, at most a register) for all of a range.
template <class T, class Body>
RNNFAST_FN void for_registers(Range range, const Body& body) {
  constexpr int64_t kWidth = Vec<T>::kWidth;
  for (int64_t unit = range.begin; unit < range.end; unit += kWidth)
    body(unit, range.end - unit < kWidth ? range.end - unit : kWidth);
}

// Ba, Kiros and Hinton 2016, arXiv 1607.06450; the deviation is that of the row itself.
template <class T>
struct Moments {
  T mean, rstd;

  static RNNFAST_FN Moments of(const T* row, int64_t count) {
    using V = Vec<T>;
    const T mean =
        sum_of<T>(count, [&](int64_t i, int64_t n) { return V::load(row + i, n); }) / T(count);
    const T squares = sum_of<T>(count, [&](int64_t i, int64_t n) {
      const V x = V::load(row + i, n) - V(mean);
      return x * x;
    });
    return {mean, T(1) / std::sqrt(squares / T(count) + T(kNormEpsilon))};
  }
  RNNFAST_FN Vec<T> apply(Vec<T> x) const { return (x - Vec<T>(mean)) * Vec<T>(rstd); }
};

// One row of one step of the recurrence.
template <class Cell, class T>
struct ForwardRow {
  using V = Vec<T>;
  const RecurrenceForward<T>& d;
  const int64_t H, row, b, after;  // of the sequence, of the batch, of the timeline
  T* const products;               // of this row
  T* scratch;                      // [(K + Q) * H] of this thread

  const T* x_gates() const { return d.x_gates + row * Cell::kGates * H; }
  T* gates() const {
    return d.gates ? d.gates + row * Cell::kReserve * H : scratch + Cell::kStates * H;
  }

  T* statistics() const { return d.statistics ? d.statistics + row * kStatistics<Cell> : nullptr; }

  RNNFAST_FN void multiply_own(Range units) const {
    for_registers<T>(units, [&](int64_t j, int64_t n) {
      const V h = V::load(d.operand + b * d.state_stride + j, n);
      for (int g = 0; g < Cell::kGates; ++g)
        (V::load(d.w_own + g * H + j, n) * h).store(products + g * H + j, n);
    });
  }

  RNNFAST_FN void normalise() const {
    const Moments<T> moments = Moments<T>::of(products, Cell::kGates * H);
    if (T* const own = statistics()) own[0] = moments.rstd;
    for_registers<T>({0, Cell::kGates * H}, [&](int64_t j, int64_t n) {
      const V p = moments.apply(V::load(products + j, n));
      p.store(products + j, n);
      if (d.normalised) p.store(d.normalised + row * Cell::kGates * H + j, n);
    });
  }

  // A register of units of the row, see unit.h. Their states are put where those before the step
  // stand.
  struct Units {
    const ForwardRow& at;
    const int64_t j, n;

    RNNFAST_FN T* running(int k) const { return at.d.states[k] + at.b * at.d.state_stride + j; }
    RNNFAST_FN V x(int g) const { return V::load(at.x_gates() + g * at.H + j, n); }
    RNNFAST_FN V h(int g) const {
      V p = V::load(at.products + g * at.H + j, n);
      if (at.d.gain) p = p * V::load(at.d.gain + g * at.H + j, n);
      return at.d.b_hh ? p + V::load(at.d.b_hh + g * at.H + j, n) : p;
    }
    RNNFAST_FN V state(int k) const { return V::load(running(k), n); }

    RNNFAST_FN void put_state(int k, V s) const {
      const RecurrenceForward<T>& d = at.d;
      const int64_t kept_at = k * at.H + j;
      if (d.fresh) s.store(d.fresh + at.row * Cell::kStates * at.H + kept_at, n);
      if (d.keep) s = kept(V::load(d.keep + at.row * d.keep_stride + kept_at, n), state(k), s);
      s.store(running(k), n);
      if (d.timelines[k]) s.store(d.timelines[k] + at.after * at.H + j, n);
      if (k > 0) return;
      if (d.drop)
        (s * V::load(d.drop + at.b * at.H + j, n)).store(d.operand + at.b * d.state_stride + j, n);
      s.store(d.output + at.row * at.H + j, n);
    }
    RNNFAST_FN void put_gate(int i, V q) const {
      if (at.d.gates) q.store(at.gates() + i * at.H + j, n);
    }
  };

  RNNFAST_FN void run(Range units) const {
    for_registers<T>(units,
                     [&](int64_t j, int64_t n) { forward_unit<Cell, V>(Units{*this, j, n}); });
  }

  // The same where c is normalised before h is made of it: needs the whole row.
  RNNFAST_FN void run_normalised_c() const {
    T *const c = scratch, *const own_gates = gates();
    for_registers<T>({0, H}, [&](int64_t j, int64_t n) {
      advance_unit<Cell, V>(
          Units{*this, j, n}, [&](int i, V q) { q.store(own_gates + i * H + j, n); },
          [&](V s) { s.store(c + j, n); });
    });
    const Moments<T> moments = Moments<T>::of(c, H);
    if (T* const own = statistics()) own[1] = moments.mean, own[2] = moments.rstd;
    for_registers<T>({0, H}, [&](int64_t j, int64_t n) {
      const Units units{*this, j, n};
      V q[Cell::kReserve];
#pragma GCC unroll 4
      for (int k = 0; k < Cell::kReserve; ++k) q[k] = V::load(own_gates + k * H + j, n);
      const V made = V::load(c + j, n), gain = V::load(d.gain_c + j, n);
      units.put_state(0, Cell::emit(q, fma(gain, moments.apply(made), V::load(d.bias_c + j, n))));
      units.put_state(1, made);
    });
  }
};

// scratch: [(K + Q) * H] of this thread.
template <class Cell, class T>
void recurrence_forward(const RecurrenceForward<T>& d, T* scratch, Member member) {
  const int64_t B = d.walk.batch_size(), H = d.hidden, gates = Cell::kGates * H;
  const bool independent = d.w_own;
  const RowsPart part = RowsPart::of(member, B, H, independent && !d.gain, Vec<T>::kWidth);
  d.w_hh.pack(member, pack_forward<T>);
  member.wait();
  const Range panels = member.panels(d.w_hh.panels.count());
  for (int64_t i = 0; i < d.walk.steps.count; ++i) {
    const int64_t t = d.walk.time(i), alive = d.walk.steps.batch_at(t);
    if (!independent) {
      multiply(member, d.w_hh, d.operand, d.state_stride, member.rows(B, 0, alive), panels,
               [&](int64_t b, int64_t unit, const T* sums) {
                 for (int g = 0; g < Cell::kGates; ++g)
                   Vec<T>::load(sums + g * Vec<T>::kWidth)
                       .store(d.products + b * gates + g * H + unit,
                              d.w_hh.panels.units_from(unit));
               });
      member.wait_for_step();
    }
    const Range rows = part.rows(member, B, alive, independent);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const ForwardRow<Cell, T> row{
          d,      H, d.walk.steps.offset_at(t) + b, b, d.walk.after(t, b), d.products + b * gates,
          scratch};
      if (independent) row.multiply_own(part.units);
      if (d.gain) row.normalise();
      if constexpr (Cell::kEmits)
        if (d.gain) {
          row.run_normalised_c();
          continue;
        }
      row.run(part.units);
    }
    if (!independent) member.wait_for_step();
  }
}

}  // namespace rnnfast::cpu
