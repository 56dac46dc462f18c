// The backward pass of the kernels for small layers.
#pragma once

#include "cuda/small.h"

namespace rnnfast::cuda {

template <class S, bool kRegular>
struct SmallBackward {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  using W = SmallWorker<S, kRegular>;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  static constexpr int kReserve = Cell::kReserve;
  using Kept = typename S::Kept;
  static constexpr int kLast = kStates - 1;  // the state that cells read
  // Words in the ring, behind those of the reserve.
  static constexpr int kBefore = kReserve, kAfter = kBefore + Cell::kReadsBefore,
                       kGrad = kAfter + Cell::kReadsAfter, kWords = S::kWords;
  const BackwardArgs<E>& a;
  W self;
  SmallWeights<W> weights;
  SmallRing<W> ring;
  SmallTrack<W, const Kept> gates;  // of the step to be asked for, as these two
  SmallTrack<W, const E> timeline, grad_output;
  SmallTrack<W, E> grad_x, grad_h;
  const E* initial;                     // the last state before all steps
  float grads[kStates][2];              // of the states after the step to come
  uint32_t to_x[kGates], to_h[kGates];  // of the step done, to be stored

  DEVICE explicit SmallBackward(const BackwardArgs<E>& args)
      : a(args),
        self(args.steps, args.hidden, words(args)),
        gates(self, reinterpret_cast<const Kept*>(args.gates) + self.unit, first_row(), args.hidden,
              forward()),
        timeline(self, args.timelines[kLast] + self.unit,
                 first_row() + self.direction * args.steps.largest +
                     (self.direction == 0 ? args.steps.largest : 0),
                 args.hidden, forward()),
        grad_output(self, args.grad_output + self.direction * args.hidden + self.unit,
                    first_row() - self.direction * args.steps.rows, dev::grid_y() * args.hidden,
                    forward()),
        grad_x(self, args.grad_x_gates + self.unit, first_row(), kGates * args.hidden, forward()),
        grad_h(self, args.grad_h_gates + self.unit, first_row(), kGates * args.hidden, forward()),
        initial(args.timelines[kLast] + self.initial_row() * args.hidden + self.unit) {}

  static RNNFAST_FN bool words(const BackwardArgs<E>& a) {
    return whole_pairs(a.hidden, a.timelines[kLast], a.grad_output, a.grad_x_gates, a.grad_h_gates);
  }

  // In time: the steps are taken from the last one to the first of the layer's direction.
  DEVICE bool forward() const { return self.direction == 1; }
  DEVICE int time(int n) const { return forward() ? n : self.count - 1 - n; }
  DEVICE SmallStep step(int n) const { return self.step(time(n)); }
  DEVICE int64_t first_row() const {
    return self.direction * a.steps.rows + step(0).offset + self.row;
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < kStates; ++k)
      self.load(grads[k], a.grad_states_n[k] + self.in_state(),
                a.grad_states_n[k] != nullptr && self.exists());
  }

  // The inputs of step n. `then`: the step that it followed; rows not alive there began here.
  DEVICE void ask(int n, const SmallStep& at, const SmallStep& then) {
    const bool wanted = n < self.count && self.alive(at);
    if constexpr (kReserve > 0) ring.copy_kept(self, gates.at, wanted);
    if constexpr (Cell::kReadsAfter) ring.copy(self, kAfter, timeline.at, wanted);
    if constexpr (Cell::kReadsBefore) {
      const bool continued = n + 1 < self.count && self.alive(then);
      const int64_t back = kRegular ? timeline.advance : (then.offset - at.offset) * self.hidden;
      ring.copy(self, kBefore, continued ? timeline.at + back : initial, wanted);
    }
    ring.copy(self, kGrad, grad_output.at, wanted && a.grad_output != nullptr);
    ring.advance(n);
  }
  DEVICE void ask_next(const SmallStep& from, const SmallStep& to) {
    if constexpr (kReserve > 0) gates.go(from, to);
    timeline.go(from, to);
    grad_output.go(from, to);
  }

  static DEVICE float part(uint32_t pair, int half) {
    return half == 0 ? dev::low_float<E>(pair) : dev::high_float<E>(pair);
  }

  // The gate gradients of a step.
  DEVICE void update(const SmallStep& at, const KeptPair<Kept>& kept,
                     const uint32_t (&in)[kWords]) {
    const bool alive = kRegular || self.alive(at);
    float x[kGates][2], h[kGates][2];
    UNROLL
    for (int half = 0; half < 2; ++half) {
      backward_unit<Cell, V>(
          [&](int i) { return V(kept.of[half].gate(i)); },
          [&](int k) {
            return V(Cell::kReadsBefore && k == kLast ? part(in[kBefore], half) : 0.f);
          },
          [&](int k) { return V(Cell::kReadsAfter && k == kLast ? part(in[kAfter], half) : 0.f); },
          [&](int k) {
            const float ds = grads[k][half];
            return V(k == 0 ? ds + part(in[kGrad], half) : ds);
          },
          [&](int k, V ds) { grads[k][half] = alive ? plain(ds) : grads[k][half]; },
          [&](int g, V dx) { x[g][half] = plain(dx); },
          [&](int g, V dh) { h[g][half] = plain(dh); });
    }
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      to_h[g] = dev::pack2<E>(h[g][0], h[g][1]);
      to_x[g] = g < Cell::kSharedGates ? to_h[g] : dev::pack2<E>(x[g][0], x[g][1]);
    }
  }

  // The hidden-side ones where the products of a round find them.
  DEVICE void send(const SmallStep& at, int round) const {
    UNROLL
    for (int g = 0; g < kGates; ++g)
      *reinterpret_cast<uint32_t*>(self.vector(round) + self.place(g)) =
          to_h[g] & self.mask(self.alive(at));
  }

  DEVICE void store(const SmallStep& at) const {
    const bool alive = self.alive(at);
    UNROLL
    for (int g = 0; g < kGates; ++g) self.store(grad_x.at + g * self.hidden, to_x[g], alive);
    if constexpr (Cell::kSharedGates < kGates) {
      if (a.grad_h_gates == nullptr) return;
      UNROLL
      for (int g = 0; g < kGates; ++g) self.store(grad_h.at + g * self.hidden, to_h[g], alive);
    }
  }

  DEVICE void run() {
    load_states();
    SmallStep at = step(0), asked = at, then = step(1);
    for (int n = 0; n < kSmallAhead; ++n) {
      ask(n, asked, then);
      ask_next(asked, then), asked = then, then = step(n + 2);
    }
    weights.load(self, a.w_hh[self.direction]);
    for (int n = 0; n < self.count; ++n) {
      uint32_t in[kWords];
      ring.wait();
      UNROLL
      for (int i = kReserve; i < kWords; ++i) in[i] = ring.word(i);
      KeptPair<Kept> kept;
      if constexpr (kReserve > 0) kept = *ring.kept();
      update(at, kept, in);
      send(at, n);
      dev::cta_sync();
      typename SmallWeights<W>::Early early;
      weights.begin(self.vector(n), early);
      store(at);
      ask(n + kSmallAhead, asked, then);
      float sum[2][1];
      weights.multiply(self.vector(n), early, sum);
      ask_next(asked, then), asked = then, then = step(n + 2 + kSmallAhead);
      const SmallStep next = step(n + 1);
      grad_x.go(at, next);
      if constexpr (Cell::kSharedGates < kGates) grad_h.go(at, next);
      at = next;
      UNROLL
      for (int half = 0; half < 2; ++half) grads[0][half] += sum[half][0];
    }
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      E* to = a.grad_states_0[k] + self.in_state();
      if (a.grad_states_0[k] == nullptr || !self.exists()) continue;
      to[0] = narrow<E>(grads[k][0]);
      if (self.second()) to[1] = narrow<E>(grads[k][1]);
    }
  }
};

template <class S, bool kRegular>
KERNEL LAUNCH_BOUNDS(S::kThreads) small_backward(const BackwardArgs<typename S::Element> args) {
  SmallBackward<S, kRegular>(args).run();
}

}  // namespace rnnfast::cuda
