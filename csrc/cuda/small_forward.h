// The forward pass of the kernels for small layers.
#pragma once

#include "cuda/small.h"

namespace rnnfast::cuda {

// kSave: for a backward pass.
template <class S, bool kSave, bool kRegular>
struct SmallForward {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  using W = SmallWorker<S, kRegular>;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  using Kept = typename S::Kept;
  static constexpr bool kKeeps = Cell::kReserve > 0;
  const ForwardArgs<E>& a;
  W self;
  SmallWeights<W> weights;
  SmallRing<W> ring;
  SmallTrack<W, const E> inputs;  // of the step to be asked for
  SmallTrack<W, E> output, timelines[kMaxStates];
  SmallTrack<W, Kept> gates;
  float states[kStates][2];
  float bias_x[kGates][2], bias_h[kGates][2];  // those of shared gates are added in bias_x
  uint32_t now[kStates];                       // of the step done, to be stored, as what is kept
  KeptPair<Kept> kept;

  DEVICE explicit SmallForward(const ForwardArgs<E>& args)
      : a(args),
        self(args.steps, args.hidden, words(args)),
        inputs(self, args.x_gates + self.unit, first_row(), kGates * args.hidden, forward()),
        output(self, args.output + self.direction * args.hidden + self.unit,
               first_row() - self.direction * args.steps.rows, dev::grid_y() * args.hidden,
               forward()),
        timelines{timeline(0), timeline(kStates - 1)},
        gates(self, reinterpret_cast<Kept*>(args.gates) + self.unit, first_row(), args.hidden,
              forward()) {}

  static RNNFAST_FN bool words(const ForwardArgs<E>& a) {
    return whole_pairs(a.hidden, a.x_gates, a.output, a.timelines[0], a.timelines[1]);
  }

  DEVICE bool forward() const { return self.direction == 0; }
  DEVICE int time(int n) const { return forward() ? n : self.count - 1 - n; }
  DEVICE SmallStep step(int n) const { return self.step(time(n)); }
  // Of the tile's first step, in [D, rows].
  DEVICE int64_t first_row() const {
    return self.direction * a.steps.rows + step(0).offset + self.row;
  }
  DEVICE SmallTrack<W, E> timeline(int k) const {
    const int64_t row =
        self.timeline_rows() + step(0).offset + self.row + (forward() ? a.steps.largest : 0);
    return {self, a.timelines[k] + self.unit, row, a.hidden, forward()};
  }

  DEVICE float bias_of(const E* b, int g, int half) const {
    const int unit = self.unit + half;
    return b != nullptr && unit < self.hidden ? widen(b[g * self.hidden + unit]) : 0.f;
  }
  DEVICE void load_bias() {
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      UNROLL
      for (int half = 0; half < 2; ++half) {
        bias_x[g][half] = bias_of(a.b_ih[self.direction], g, half);
        bias_h[g][half] = bias_of(a.b_hh[self.direction], g, half);
        if (g < Cell::kSharedGates) bias_x[g][half] += bias_h[g][half];
      }
    }
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      self.load(states[k], a.states_0[k] + self.in_state(),
                a.states_0[k] != nullptr && self.exists());
      now[k] = dev::pack2<E>(states[k][0], states[k][1]);
      if constexpr (kSave)
        self.store(a.timelines[k] + self.initial_row() * self.hidden + self.unit, now[k],
                   self.exists());
    }
  }

  // The inputs of step n.
  DEVICE void ask(int n, const SmallStep& at) {
    const bool wanted = n < self.count && self.alive(at);
    UNROLL
    for (int g = 0; g < kGates; ++g) ring.copy(self, g, inputs.at + g * self.hidden, wanted);
    ring.advance(n);
  }

  DEVICE void update(const SmallStep& at, const uint32_t (&x)[kGates],
                     const float (&sum)[2][kGates]) {
    float next[kStates][2];
    UNROLL
    for (int half = 0; half < 2; ++half) {
      float gates[kReserveSlots<Cell>] = {};
      forward_unit<Cell, V>(
          [&](int g) {
            const float in = half == 0 ? dev::low_float<E>(x[g]) : dev::high_float<E>(x[g]);
            return V(in + bias_x[g][half]);
          },
          [&](int g) {
            return V(g < Cell::kSharedGates ? sum[half][g] : sum[half][g] + bias_h[g][half]);
          },
          [&](int k) { return V(states[k][half]); }, [&](int k, V s) { next[k][half] = plain(s); },
          [&](int i, V q) { gates[i] = plain(q); });
      kept.of[half] = Kept::of(gates);
    }
    const bool alive = kRegular || self.alive(at);
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      UNROLL
      for (int half = 0; half < 2; ++half)
        states[k][half] = alive ? next[k][half] : states[k][half];
      now[k] = dev::pack2<E>(states[k][0], states[k][1]);
    }
  }

  // h where the products of a round find it.
  DEVICE void send(int round) const {
    *reinterpret_cast<uint32_t*>(self.vector(round) + self.place(0)) =
        now[0] & self.mask(self.exists());
  }

  DEVICE void store(const SmallStep& at) const {
    const bool alive = self.alive(at);
    self.store(output.at, now[0], alive);
    if constexpr (kSave) {
      UNROLL
      for (int k = 0; k < kStates; ++k) self.store(timelines[k].at, now[k], alive);
      if constexpr (kKeeps)
        if (alive) kept.store(gates.at, self.words, self.second());
    }
  }

  DEVICE void go(const SmallStep& from, const SmallStep& to) {
    output.go(from, to);
    if constexpr (kSave) {
      UNROLL
      for (int k = 0; k < kStates; ++k) timelines[k].go(from, to);
      if constexpr (kKeeps) gates.go(from, to);
    }
  }

  // All that comes from global memory is asked for before anything of it is waited for.
  DEVICE void run() {
    SmallStep asked = step(0), at = asked;
    for (int n = 0; n < kSmallAhead; ++n) {
      ask(n, asked);
      const SmallStep next = step(n + 1);
      inputs.go(asked, next), asked = next;
    }
    weights.load(self, a.w_hh[self.direction]);
    load_bias();
    load_states();
    send(0);
    dev::cta_sync();
    typename SmallWeights<W>::Early early;
    weights.begin(self.vector(0), early);
    for (int n = 0; n < self.count; ++n) {
      uint32_t x[kGates];
      ring.wait();
      UNROLL
      for (int g = 0; g < kGates; ++g) x[g] = ring.word(g);
      float sum[2][kGates];
      weights.multiply(self.vector(n), early, sum);
      update(at, x, sum);
      send(n + 1);
      dev::cta_sync();
      weights.begin(self.vector(n + 1), early);
      store(at);
      ask(n + kSmallAhead, asked);
      const SmallStep next = step(n + 1), ahead = step(n + 1 + kSmallAhead);
      go(at, next), at = next;
      inputs.go(asked, ahead), asked = ahead;
    }
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      E* to = a.states_n[k] + self.in_state();
      if (!self.exists()) continue;
      to[0] = narrow<E>(states[k][0]);
      if (self.second()) to[1] = narrow<E>(states[k][1]);
    }
  }
};

template <class S, bool kSave, bool kRegular>
KERNEL LAUNCH_BOUNDS(S::kThreads) small_forward(const ForwardArgs<typename S::Element> args) {
  SmallForward<S, kSave, kRegular>(args).run();
}

}  // namespace rnnfast::cuda
