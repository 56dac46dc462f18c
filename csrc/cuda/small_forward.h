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
  static constexpr int kPairs = S::kPairs, kGates = Cell::kGates, kStates = Cell::kStates;
  static constexpr int kReserve = Cell::kReserve, kSlots = S::kSlots;
  const ForwardArgs<E>& a;
  W self;
  SmallWeights<W> weights;
  SmallRing<W> ring;
  SmallTrack<W, const E> inputs;  // of the step to be asked for
  SmallTrack<W, E> output, timelines[kMaxStates], gates;
  float states[kStates][kPairs][2];
  float bias[kGates][2], bias_x[kGates][2];      // hidden side, input side
  uint32_t now[kStates][kPairs], kept[kSlots][kPairs];  // of the step done, to be stored

  DEVICE explicit SmallForward(const ForwardArgs<E>& args)
      : a(args),
        self(args.steps, args.hidden, words(args)),
        inputs(self, args.x_gates + self.unit, first_row(), kGates * args.hidden, forward()),
        output(self, args.output + self.direction * args.hidden + self.unit,
               first_row() - self.direction * args.steps.rows, dev::grid_y() * args.hidden,
               forward()),
        timelines{timeline(0), timeline(kStates - 1)},
        gates(self, args.gates + self.unit, first_row(), kReserve * args.hidden, forward()) {}

  static RNNFAST_FN bool words(const ForwardArgs<E>& a) {
    return whole_pairs(a.hidden, a.x_gates, a.output, a.timelines[0], a.timelines[1], a.gates);
  }

  DEVICE bool forward() const { return self.direction == 0; }
  DEVICE int time(int n) const { return forward() ? n : self.count - 1 - n; }
  DEVICE SmallStep step(int n) const { return self.step(time(n)); }
  // Of the tile's first step, in [D, rows].
  DEVICE int64_t first_row() const {
    return self.direction * a.steps.rows + step(0).offset + self.row;
  }
  DEVICE SmallTrack<W, E> timeline(int k) const {
    const int64_t row = self.timeline_rows() + step(0).offset + self.row +
                        (forward() ? a.steps.largest : 0);
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
        bias[g][half] = bias_of(a.b_hh[self.direction], g, half);
        bias_x[g][half] = bias_of(a.b_ih[self.direction], g, half);
        if (g < Cell::kSharedGates) bias[g][half] += bias_x[g][half];
      }
    }
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      UNROLL
      for (int p = 0; p < kPairs; ++p) {
        self.load(states[k][p], a.states_0[k] + self.in_state(p),
                  a.states_0[k] != nullptr && self.exists(p));
        now[k][p] = dev::pack2<E>(states[k][p][0], states[k][p][1]);
        if constexpr (kSave)
          self.store(a.timelines[k] + (self.initial_row() + p) * self.hidden + self.unit, now[k][p],
                     self.exists(p));
      }
    }
  }

  // The inputs of step n.
  DEVICE void ask(int n, const SmallStep& at) {
    UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const bool wanted = n < self.count && self.alive(p, at.living);
      UNROLL
      for (int g = 0; g < kGates; ++g)
        ring.copy(self, p * kGates + g, inputs.slot(p, g, self.hidden), wanted);
    }
    ring.advance(n);
  }

  DEVICE void update(const SmallStep& at, int p, const uint32_t (&x)[kGates],
                     const float (&sum)[2][kGates]) {
    float next[kStates][2], reserve[kSlots][2];
    UNROLL
    for (int half = 0; half < 2; ++half) {
      V in[kGates], h[kGates], s[kStates], q[kSlots];
      UNROLL
      for (int g = 0; g < kGates; ++g) {
        h[g] = sum[half][g] + bias[g][half];
        in[g] = half == 0 ? dev::low_float<E>(x[g]) : dev::high_float<E>(x[g]);
        if (g >= Cell::kSharedGates) in[g] = in[g] + V(bias_x[g][half]);
      }
      UNROLL
      for (int k = 0; k < kStates; ++k) s[k] = states[k][p][half];
      Cell::forward(in, h, s, q);
      UNROLL
      for (int k = 0; k < kStates; ++k) next[k][half] = plain(s[k]);
      UNROLL
      for (int k = 0; k < kReserve; ++k) reserve[k][half] = plain(q[k]);
    }
    const bool alive = kRegular || self.alive(p, at.living);
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      UNROLL
      for (int half = 0; half < 2; ++half)
        states[k][p][half] = alive ? next[k][half] : states[k][p][half];
      now[k][p] = dev::pack2<E>(states[k][p][0], states[k][p][1]);
    }
    UNROLL
    for (int k = 0; k < kReserve; ++k) kept[k][p] = dev::pack2<E>(reserve[k][0], reserve[k][1]);
  }

  // h where the products of a round find it. What does not exist is 0 there: products with it are.
  DEVICE void send(int round) const {
    UNROLL
    for (int p = 0; p < kPairs; ++p)
      *reinterpret_cast<uint32_t*>(self.vector(round) + self.place(0, p)) = now[0][p] & mask(p);
  }
  DEVICE uint32_t mask(int p) const {
    return !self.exists(p) ? 0 : self.second() ? 0xffffffff : 0xffff;
  }

  DEVICE void store(const SmallStep& at) const {
    UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const bool alive = self.alive(p, at.living);
      self.store(output.slot(p, 0, self.hidden), now[0][p], alive);
      if constexpr (kSave) {
        UNROLL
        for (int k = 0; k < kStates; ++k)
          self.store(timelines[k].slot(p, 0, self.hidden), now[k][p], alive);
        UNROLL
        for (int k = 0; k < kReserve; ++k)
          self.store(gates.slot(p, k, self.hidden), kept[k][p], alive);
      }
    }
  }

  DEVICE void go(const SmallStep& from, const SmallStep& to) {
    output.go(from, to);
    if constexpr (kSave) {
      UNROLL
      for (int k = 0; k < kStates; ++k) timelines[k].go(from, to);
      if constexpr (kReserve > 0) gates.go(from, to);
    }
  }

  DEVICE void run() {
    load_bias();
    load_states();
    send(0);
    SmallStep asked = step(0), at = asked;
    for (int n = 0; n < kSmallAhead; ++n) {
      ask(n, asked);
      const SmallStep next = step(n + 1);
      inputs.go(asked, next), asked = next;
    }
    weights.load(self, a.w_hh[self.direction]);
    const int column = self.column();
    dev::cta_sync();
    typename SmallWeights<W>::Early early;
    weights.begin(self.vector(0) + column, early);
    for (int n = 0; n < self.count; ++n) {
      uint32_t x[kPairs][kGates];
      ring.wait();
      UNROLL
      for (int i = 0; i < kPairs * kGates; ++i) x[i / kGates][i % kGates] = ring.word(i);
      float sum[kPairs][2][kGates];
      weights.multiply(self.vector(n) + column, early, sum);
      ask(n + kSmallAhead, asked);
      UNROLL
      for (int p = 0; p < kPairs; ++p) update(at, p, x[p], sum[p]);
      send(n + 1);
      dev::cta_sync();
      weights.begin(self.vector(n + 1) + column, early);
      store(at);
      const SmallStep next = step(n + 1), ahead = step(n + 1 + kSmallAhead);
      go(at, next), at = next;
      inputs.go(asked, ahead), asked = ahead;
    }
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      UNROLL
      for (int p = 0; p < kPairs; ++p) {
        E* to = a.states_n[k] + self.in_state(p);
        if (!self.exists(p)) continue;
        to[0] = narrow<E>(states[k][p][0]);
        if (self.second()) to[1] = narrow<E>(states[k][p][1]);
      }
    }
  }
};

template <class S, bool kSave, bool kRegular>
KERNEL LAUNCH_BOUNDS(S::kThreads) small_forward(const ForwardArgs<typename S::Element> args) {
  SmallForward<S, kSave, kRegular>(args).run();
}

}  // namespace rnnfast::cuda
