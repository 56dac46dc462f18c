// The time loop forward: see persistent.h.
#pragma once

#include "cuda/inputs.h"
#include "cuda/worker.h"

namespace rnnfast::cuda {

template <class S>
struct ForwardWorker {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  static constexpr int kElements = S::kElements, kGates = Cell::kGates;
  using Kept = KeptOf<Cell, E>;
  static constexpr int kShared = Cell::kSharedGates, kApart = kGates - kShared;
  using Ring = InputRing<S>;
  const ForwardArgs<E>& a;
  Worker<S> self;
  const Ring ring;
  const bool staged;    // inputs come through the ring
  const E* input_from;  // what this lane copies, at position 0
  Place asked;          // of the next step to be copied
  float states[Cell::kStates][kElements];
  float bias[kGates][S::kOwnUnits];
  float bias_apart[kApart > 0 ? kApart : 1][S::kOwnUnits];  // b_ih, where it stands alone
  E x[kElements][kGates];                                   // of the step to come
  Kept kept[kElements];                                     // of the step done, to be stored

  DEVICE ForwardWorker(const ForwardArgs<E>& args)
      : a(args),
        self(args.steps, args.hidden, args.packed, args.packed_bytes, args.exchange),
        ring(self),
        staged(Ring::copies(self.hidden, a.x_gates)) {
    input_from = a.x_gates + (ring.shift(self) * kGates + ring.line * self.hidden + ring.unit);
  }

  DEVICE float bias_of(const E* b, int gate, int unit) const {
    return b != nullptr && unit < self.hidden ? widen(b[gate * a.hidden + unit]) : 0.f;
  }
  // Added once: by the warp that finishes the element.
  DEVICE void load_bias() {
    const E *b_ih = a.b_ih[self.direction], *b_hh = a.b_hh[self.direction];
    UNROLL
    for (int u = 0; u < S::kOwnUnits; ++u) {
      const int unit = self.unit(2 * u);
      UNROLL
      for (int g = 0; g < kGates; ++g) {
        const float input_side = bias_of(b_ih, g, unit);
        bias[g][u] = bias_of(b_hh, g, unit) + (g < kShared ? input_side : 0.f);
        if (g >= kShared) bias_apart[g - kShared][u] = input_side;
      }
    }
  }

  // The vector of round 0: every CTA reads all of h_0 for itself.
  DEVICE void load_first_vector() const {
    for (int i = dev::tid(); i < S::kHidden * S::kBatch; i += S::kThreads) {
      const int batch = i / S::kHidden, unit = i % S::kHidden;
      const int row = self.first_row + batch;
      float value = 0.f;
      if (a.states_0[0] != nullptr && row < a.steps.largest && unit < self.hidden)
        value = widen(a.states_0[0][(self.direction * a.steps.largest + row) * a.hidden + unit]);
      uint8_t* part = self.exchanger.vector(0) + unit / kMmaUnits * S::kGroupBytes;
      Exchanger<S>::store(part, 0, unit % kMmaUnits, batch, value);
    }
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e) {
        states[k][e] = 0.f;
        if (!self.exists(e)) continue;
        if (a.states_0[k] != nullptr) states[k][e] = widen(a.states_0[k][self.in_state(e)]);
        if (a.timelines[k] != nullptr)
          a.timelines[k][self.in_timeline(self.initial) + Accumulator::batch(e) * self.hidden +
                         Accumulator::unit(e)] = narrow<E>(states[k][e]);
      }
    }
  }

  // Has the inputs of step n copied, at `asked`.
  DEVICE void ask(int n) {
    const Place at = asked;
    if (ring.seat < at.living) {
      const E* from = input_from + at.position * kGates;
      ring.template copy<0, kGates>(
          n, [&](int i) { return from + i * Ring::kLinesAtOnce * self.hidden; });
    }
    dev::cp_commit();
    asked = self.next_place(at, n + 1);
  }
  DEVICE void ask_first() {
    if constexpr (Ring::kExists) {
      if (!staged) return;
      asked = self.first_place();
      for (int n = 0; n + 1 < Ring::kSlots; ++n) ask(n);
    }
  }

  DEVICE void load_inputs(int n, const Place& at) {
    if constexpr (Ring::kExists) {
      if (staged) {
        const uint8_t* slot = ring.template wait<Ring::kSlots - 2>(n);
        ask(n + Ring::kSlots - 1);  // over what the step before has read
        UNROLL
        for (int e = 0; e < kElements; ++e) {
          UNROLL
          for (int g = 0; g < kGates; ++g) x[e][g] = Ring::number(slot, g, e);
        }
        return;
      }
    }
    self.template walk_rows<kGates>(a.x_gates + self.in_rows(at.position, kGates),
                                    [&](const E* p, int e, int g) {
                                      x[e][g] = self.alive(e, at.living) ? *p : narrow<E>(0.f);
                                    });
  }

  DEVICE void update(const Place& at, int e, const float (&sum)[kGates]) {
    const bool alive = self.alive(e, at.living);
    float gates[kReserveSlots<Cell>] = {};
    forward_unit<Cell, V>(
        [&](int g) {
          const V in(widen(x[e][g]));
          return g < kShared ? in : in + V(bias_apart[g - kShared][S::own_unit(e)]);
        },
        [&](int g) { return V(sum[g]); }, [&](int k) { return V(states[k][e]); },
        [&](int k, V s) { states[k][e] = alive ? plain(s) : states[k][e]; },
        [&](int i, V q) { gates[i] = plain(q); });
    kept[e] = Kept::of(gates);
  }

  DEVICE void store(const Place& at) const {
    self.walk_output(a.output + self.in_output(at.position), [&](E* p, int e) {
      if (self.alive(e, at.living)) *p = narrow<E>(states[0][e]);
    });
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      if (a.timelines[k] != nullptr)
        self.template walk_rows<1>(a.timelines[k] + self.in_timeline(at.position),
                                   [&](E* p, int e, int) {
                                     if (self.alive(e, at.living)) *p = narrow<E>(states[k][e]);
                                   });
    }
    if constexpr (Cell::kReserve > 0) {
      if (a.gates != nullptr)
        self.template walk_rows<1>(reinterpret_cast<Kept*>(a.gates) + self.in_rows(at.position, 1),
                                   [&](Kept* p, int e, int) {
                                     if (self.alive(e, at.living)) *p = kept[e];
                                   });
    }
  }

  // Rows that begin anew after this step leave nothing for the next one.
  DEVICE void forget(const Border<S>& border) {
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e) states[k][e] = border.is_at(e) ? 0.f : states[k][e];
    }
  }

  // First what the peers wait for, then what the next step needs, then the results.
  DEVICE void run() {
    load_bias();
    load_first_vector();
    self.exchanger.init();
    load_states();
    Place at = self.first_place();
    ask_first();
    load_inputs(0, at);
    for (int n = 0; n < self.count; ++n) {
      if (n > 0) self.exchanger.receive(n);
      float sum[kElements][kGates];
      self.product(n, bias, sum);
      UNROLL
      for (int e = 0; e < kElements; ++e) update(at, e, sum[e]);
      const bool last = n + 1 == self.count, forgets = self.has_border(a.begins, n);
      if (forgets) {  // what is sent and kept is not what is stored
        const Border<S> border = self.border(a.begins, n);
        store(at);
        forget(border);
      }
      if (!last) {
        float sent[1][kElements];
        UNROLL
        for (int e = 0; e < kElements; ++e) sent[0][e] = states[0][e];
        self.send(n + 1, sent);
      }
      if (!forgets) store(at);
      at = self.next_place(at, n + 1);
      load_inputs(n + 1, at);
    }
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e)
        if (self.exists(e)) a.states_n[k][self.in_state(e)] = narrow<E>(states[k][e]);
    }
  }
};

}  // namespace rnnfast::cuda
