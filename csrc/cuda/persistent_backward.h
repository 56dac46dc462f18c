// The time loop backward: see persistent.h.
#pragma once

#include "cuda/inputs.h"
#include "cuda/worker.h"

namespace rnnfast::cuda {

template <class S>
struct BackwardWorker {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  static constexpr int kElements = S::kElements, kGates = Cell::kGates;
  static constexpr int kReserve = Cell::kReserve;
  using Kept = KeptOf<Cell, E>;
  static constexpr int kState = Cell::kStates - 1;  // the one that the cell reads
  using Ring = InputRing<S>;
  // Lines of the inputs: the gates, and those that lie in other tensors.
  static constexpr int kOthers = S::kLines - kReserve, kGradLine = kOthers - 1;
  static constexpr int kCopies = (kOthers + Ring::kLinesAtOnce - 1) / Ring::kLinesAtOnce;
  struct Inputs {  // of one element at the step to come
    Kept gates;
    E before, after, grad;
  };
  const BackwardArgs<E>& a;
  Worker<S> self;
  const Ring ring;
  const bool staged;    // inputs come through the ring
  const E* gates_from;  // what this lane copies, at position 0
  const E* others_from[kCopies];
  Place asked;                            // of the next step to be copied
  float grads[Cell::kStates][kElements];  // of the states after the step to come
  Inputs in[kElements];
  E to_x[kElements][kGates], to_h[kElements][kGates];  // of the step done, to be stored

  DEVICE BackwardWorker(const BackwardArgs<E>& args)
      : a(args),
        self(args.steps, args.hidden, args.packed, args.packed_bytes, args.exchange),
        ring(self),
        staged(Ring::copies(self.hidden, a.gates, a.timelines[kState], a.grad_output)) {
    gates_from =
        a.gates + ((ring.shift(self) + ring.unit) * kReserve + ring.line * Ring::kPieceUnits);
    UNROLL
    for (int i = 0; i < kCopies; ++i) {
      others_from[i] = a.timelines[kState] + self.step_numbers + (ring.shift(self) + ring.unit);
      if (is_grad(i))
        others_from[i] = a.grad_output + self.output_shift +
                         (ring.shift(self) * static_cast<int>(dev::grid_y()) + ring.unit);
    }
  }

  // Of this lane's i-th copy of the other lines. Without grad_output the lane copies what nobody
  // reads.
  DEVICE bool is_grad(int i) const {
    return ring.line + i * Ring::kLinesAtOnce == kGradLine && a.grad_output != nullptr;
  }
  DEVICE bool is_before(int i) const {
    return Cell::kReadsBefore && ring.line + i * Ring::kLinesAtOnce == 0;
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e) {
        const bool given = a.grad_states_n[k] != nullptr && self.exists(e);
        grads[k][e] = given ? widen(a.grad_states_n[k][self.in_state(e)]) : 0.f;
      }
    }
  }

  // Has the inputs of step n copied, at `asked`.
  DEVICE void ask(int n) {
    const Place at = asked, then = self.next_place(at, n + 1);
    if (ring.seat < at.living) {
      if constexpr (kReserve > 0) {
        const E* from = gates_from + at.position * kReserve;
        ring.template copy<0, kReserve>(
            n, [&](int i) { return from + i * Ring::kLinesAtOnce * Ring::kPieceUnits; });
      }
      const int64_t before = self.before(ring.seat, then);
      const int wide = static_cast<int>(dev::grid_y()) - 1;  // rows of grad_output: 2 H or H
      ring.template copy<kReserve, kOthers>(n, [&](int i) {
        return others_from[i] + (is_before(i) ? before : at.position << (is_grad(i) ? wide : 0));
      });
    }
    dev::cp_commit();
    asked = then;
  }
  DEVICE void ask_first() {
    if constexpr (Ring::kExists) {
      if (!staged) return;
      asked = self.first_place();
      for (int n = 0; n + 1 < Ring::kSlots; ++n) ask(n);
    }
  }

  DEVICE void take(const uint8_t* slot) {
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      if constexpr (kReserve > 0) in[e].gates = ring.kept(slot, e);
      if (Cell::kReadsBefore) in[e].before = Ring::number(slot, kReserve, e);
      if (Cell::kReadsAfter) in[e].after = Ring::number(slot, kReserve + Cell::kReadsBefore, e);
      in[e].grad = narrow<E>(0.f);
      if (a.grad_output != nullptr) in[e].grad = Ring::number(slot, kReserve + kGradLine, e);
    }
  }

  // A row that begins anew with step n in time has zeros for its states before it.
  DEVICE void begin_with_zeros(int n) {
    if constexpr (Cell::kReadsBefore) {
      if (!self.has_border(a.begins, n)) return;
      const Border<S> border = self.border(a.begins, n);
      UNROLL
      for (int e = 0; e < kElements; ++e)
        if (border.is_at(e)) in[e].before = narrow<E>(0.f);
    }
  }

  DEVICE void load_inputs(int n, const Place& at) {
    if constexpr (Ring::kExists) {
      if (staged) {
        const uint8_t* slot = ring.template wait<Ring::kSlots - 2>(n);
        ask(n + Ring::kSlots - 1);  // over what the step before has read
        take(slot);
        return begin_with_zeros(n);
      }
    }
    const Place then = self.next_place(at, n + 1);  // the step that this one followed
    UNROLL
    for (int e = 0; e < kElements; ++e) in[e] = Inputs{};
    if constexpr (kReserve > 0)
      self.template walk_rows<1>(
          reinterpret_cast<const Kept*>(a.gates) + self.in_rows(at.position, 1),
          [&](const Kept* p, int e, int) {
            if (self.alive(e, at.living)) in[e].gates = *p;
          });
    const E* timeline = a.timelines[kState];
    if constexpr (Cell::kReadsAfter)
      self.template walk_rows<1>(timeline + self.in_timeline(at.position),
                                 [&](const E* p, int e, int) {
                                   if (self.alive(e, at.living)) in[e].after = *p;
                                 });
    if constexpr (Cell::kReadsBefore) {
      UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int seat = self.seat[S::own_unit(e)] + Accumulator::batch(e);
        if (seat < at.living)
          in[e].before = timeline[self.in_timeline(self.before(seat, then)) +
                                  Accumulator::batch(e) * self.hidden + Accumulator::unit(e)];
      }
    }
    begin_with_zeros(n);
    if (a.grad_output != nullptr)
      self.walk_output(a.grad_output + self.in_output(at.position), [&](const E* p, int e) {
        if (self.alive(e, at.living)) in[e].grad = *p;
      });
  }

  // The gate gradients of a step: kept for the results, and the hidden-side ones to be sent.
  DEVICE void update(const Place& at, int e, float (&sent)[kGates][kElements]) {
    const bool alive = self.alive(e, at.living);
    backward_unit<Cell, V>(
        [&](int i) { return V(in[e].gates.gate(i)); },
        [&](int k) { return V(k == kState ? widen(in[e].before) : 0.f); },
        [&](int k) { return V(k == kState ? widen(in[e].after) : 0.f); },
        [&](int k) { return V(k == 0 ? grads[0][e] + widen(in[e].grad) : grads[k][e]); },
        [&](int k, V ds) { grads[k][e] = alive ? plain(ds) : grads[k][e]; },
        [&](int g, V dx) { to_x[e][g] = narrow<E>(plain(dx)); },
        [&](int g, V dh) {
          sent[g][e] = alive ? plain(dh) : 0.f;
          to_h[e][g] = narrow<E>(plain(dh));
        });
  }

  // Between this step and the next nothing goes back in rows that begin anew there.
  DEVICE void forget(int n, float (&sent)[kGates][kElements]) {
    const Border<S> border = self.border(a.begins, n);
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      const bool anew = border.is_at(e);
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k) grads[k][e] = anew ? 0.f : grads[k][e];
      UNROLL
      for (int g = 0; g < kGates; ++g) sent[g][e] = anew ? 0.f : sent[g][e];
    }
  }

  DEVICE void store(const Place& at) const {
    const int64_t first = self.in_rows(at.position, kGates);
    self.template walk_rows<kGates>(a.grad_x_gates + first, [&](E* p, int e, int g) {
      if (self.alive(e, at.living)) *p = to_x[e][g];
    });
    if constexpr (Cell::kSharedGates < kGates) {
      if (a.grad_h_gates != nullptr)
        self.template walk_rows<kGates>(a.grad_h_gates + first, [&](E* p, int e, int g) {
          if (self.alive(e, at.living)) *p = to_h[e][g];
        });
    }
  }

  // What the step before sent back through w_hh.
  DEVICE void add_product(int round) {
    self.exchanger.receive(round);
    float sum[kElements][1];
    if constexpr (S::kSums) {
      self.exchanger.add_sums(round, sum);
    } else {
      const float zeros[1][S::kOwnUnits] = {};
      self.product(round, zeros, sum);
    }
    UNROLL
    for (int e = 0; e < kElements; ++e) grads[0][e] += sum[e][0];
  }

  DEVICE void run() {
    self.exchanger.init();
    load_states();
    const bool to_start = a.grad_states_0[0] != nullptr;
    Place at = self.first_place();
    ask_first();
    load_inputs(0, at);
    for (int n = 0;; ++n) {
      if (n > 0) add_product(n);
      if (n == self.count) break;
      float sent[kGates][kElements];
      UNROLL
      for (int e = 0; e < kElements; ++e) update(at, e, sent);
      if (self.has_border(a.begins, n)) forget(n, sent);
      const bool last = n + 1 == self.count;
      if (!last || to_start) self.send(n + 1, sent);
      store(at);
      if (last && !to_start) break;
      at = self.next_place(at, n + 1);
      load_inputs(n + 1, at);
    }
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e)
        if (a.grad_states_0[k] != nullptr && self.exists(e))
          a.grad_states_0[k][self.in_state(e)] = narrow<E>(grads[k][e]);
    }
  }
};

}  // namespace rnnfast::cuda
