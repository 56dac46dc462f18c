// The kernels of the grid family backward: the hidden-side gate gradients of all units are
// exchanged, and each CTA multiplies them with its units' columns of w_hh.
#pragma once

#include "cuda/grid_worker.h"

namespace rnnfast::cuda {

template <class S>
struct GridBackward {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  using Worker = GridWorker<S>;
  using Pair = typename Worker::Pair;
  using Stored = typename Worker::Stored;
  using Place = typename Worker::Place;
  using Kept = KeptOf<Cell, E>;
  static constexpr int kGates = Cell::kGates, kReserve = Cell::kReserve;
  struct Inputs {  // pairs, of the step to come
    Kept gates[2];
    Stored before[Cell::kStates], after[Cell::kStates], grad;
  };
  const BackwardArgs<E>& a;
  Worker self;
  Inputs in;

  DEVICE GridBackward(const GridBackwardArgs<E>& args)
      : a(args.layer), self(a.steps, a.hidden, args.parts, a.packed, a.packed_bytes, a.exchange) {
    bool even = self.aligned(a.grad_output);
    for (const E* timeline : a.timelines) even = even && self.aligned(timeline);
    self.even = even && self.aligned(a.grad_x_gates) && self.aligned(a.grad_h_gates);
  }

  // The gradients of the states after the last step of a part.
  DEVICE void begin(int part) const {
    if (!self.active) return;
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k)
      self.state(part, k) =
          self.widen_pair(a.grad_states_n[k], self.in_state(part), self.exists(part));
  }

  // `then`: the step that this one followed, for the same part. Rows that are not alive there began
  // here.
  DEVICE void load_inputs(const Place& at, const Place& then, int part) {
    if (!self.alive(at)) return;
    if constexpr (kReserve > 0) {
      const Kept* p = reinterpret_cast<const Kept*>(a.gates) + self.in_rows(at.position, 1);
      in.gates[0] = p[0], in.gates[1] = Kept{};
      if (self.even || self.second) in.gates[1] = p[1];
    }
    const int64_t before = self.alive(then) ? then.position : self.initial(part);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      in.after[k] = self.load_pair(a.timelines[k] + self.in_timeline(at.position));
      in.before[k] = self.load_pair(a.timelines[k] + self.in_timeline(before));
    }
    in.grad = Stored::of(0.f, 0.f);
    if (a.grad_output != nullptr)
      in.grad = self.load_pair(a.grad_output + self.in_output(at.position));
  }
  // Cells read the gates, their last state and grad_output.
  DEVICE typename Worker::Prefetch prefetch() const {
    const auto piece = self.piece(kReserve + 2);
    if (piece.slot < kReserve)
      return {a.gates + self.ahead(piece, 1, 0) * kReserve + piece.slot * S::kUnits,
              self.prefetched_row(piece, self.begins_inside(piece, kReserve)), kReserve};
    if (piece.slot == kReserve)
      return {a.timelines[Cell::kStates - 1] + self.step_numbers + self.ahead(piece, 1, 0),
              self.prefetched_row(piece, true), 1};
    const int d = dev::grid_y();
    return {a.grad_output + self.output_shift + self.ahead(piece, d, 0),
            self.prefetched_row(piece, a.grad_output != nullptr), d};
  }

  // The gate gradients of a step, as pairs; leaves in `grads` what bypasses the weights.
  DEVICE void update(Pair (&grads)[Cell::kStates], Stored (&to_x)[kGates],
                     Stored (&to_h)[kGates]) const {
    Pair x[kGates], h[kGates];
    UNROLL
    for (int i = 0; i < 2; ++i) {
      backward_unit<Cell, V>([&](int r) { return V(in.gates[i].gate(r)); },
                             [&](int k) { return V(in.before[k].number(i)); },
                             [&](int k) { return V(in.after[k].number(i)); },
                             [&](int k) {
                               const float ds = grads[k].number[i];
                               return V(k == 0 ? ds + in.grad.number(i) : ds);
                             },
                             [&](int k, V ds) { grads[k].number[i] = plain(ds); },
                             [&](int g, V dx) { x[g].number[i] = plain(dx); },
                             [&](int g, V dh) { h[g].number[i] = plain(dh); });
    }
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      to_x[g] = Stored::of(x[g].number[0], x[g].number[1]);
      to_h[g] = Stored::of(h[g].number[0], h[g].number[1]);
    }
  }

  DEVICE void store(int64_t position, const Stored (&to_x)[kGates],
                    const Stored (&to_h)[kGates]) const {
    E* p = a.grad_x_gates + self.in_rows(position, kGates);
    UNROLL
    for (int g = 0; g < kGates; ++g, p += self.hidden) self.store_pair(p, to_x[g]);
    if constexpr (Cell::kSharedGates < kGates) {
      if (a.grad_h_gates == nullptr) return;
      p = a.grad_h_gates + self.in_rows(position, kGates);
      UNROLL
      for (int g = 0; g < kGates; ++g, p += self.hidden) self.store_pair(p, to_h[g]);
    }
  }

  // What the step before sent back through w_hh.
  DEVICE void add_product(int round, int part, const typename Worker::Next& following) {
    float sum[1][2];
    self.product(round, part, following, sum);
    if (!self.active) return;
    Pair grad = self.state(part, 0);
    grad.number[0] += sum[0][0];
    if (self.even || self.second) grad.number[1] += sum[0][1];  // as forward
    self.state(part, 0) = grad;
  }

  // Gate gradients of step n. A row that is not alive sends zeros. First what the others wait for.
  DEVICE void step(int n, int part, const Place& at) {
    if (!self.active) return;
    Stored to_x[kGates] = {}, to_h[kGates] = {};
    const bool alive = self.alive(at);
    Pair grads[Cell::kStates];
    if (alive) {
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k) grads[k] = self.state(part, k);
      update(grads, to_x, to_h);
    }
    UNROLL
    for (int g = 0; g < kGates; ++g) self.exchange.publish(n, part, g, to_h[g]);
    UNROLL
    for (int g = 0; g < kGates; ++g) self.exchange.clear(n - 2, part, g);
    if (!alive) return;
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) self.state(part, k) = grads[k];
    store(at.position, to_x, to_h);
  }

  DEVICE int time(int n) const { return self.direction == 1 ? n : self.count - 1 - n; }

  // A part takes part from its first step to the one after its last, which only adds the product.
  DEVICE void run() {
    for (int part = 0; part < self.parts; ++part) begin(part);
    const bool to_start = a.grad_states_0[0] != nullptr;
    const typename Worker::Prefetch ahead = prefetch();
    Place at = self.place(time(0)), next = self.place(time(1));
    int before = 0, fence = 0;  // parts that were alive a step ago
    load_inputs(at, next, 0);
    ahead.run(next);
    for (int n = 0; n <= self.count; ++n) {
      const Place then = self.place(time(n + 2));
      const int living = self.living_parts(at), most = living > before ? living : before,
                sums = to_start || before < living ? before : living;
      Place here = at, followed = next, far = then;
      for (int part = 0; part < most; ++part) {
        if (part < sums) {  // as forward
          const bool last = part + 1 == sums;
          add_product(n - 1, part, {sums > 1, last ? n : n - 1, last ? 0 : part + 1});
        }
        if (part < living) {
          step(n, part, here);
          const bool last = part + 1 == living;
          here = self.choose(last, next, self.next_part(here));
          followed = self.choose(last, then, self.next_part(followed));
          load_inputs(here, followed, last ? 0 : part + 1);
          ahead.run(far);
          far = self.next_part(far);
        }
      }
      at = next, next = then, before = living;
      if (++fence == kGridFence) {
        fence = 0;
        dev::fence_words();
      }
      if (sums <= 1) self.exchange.request(self.asked, n, 0);
    }
    for (int part = 0; part < self.parts; ++part) {
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k)
        if (a.grad_states_0[k] != nullptr && self.exists(part))
          self.narrow_pair(a.grad_states_0[k], self.in_state(part), self.state(part, k));
    }
  }
};

template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads) grid_backward(const GridBackwardArgs<typename S::Element> args) {
  GridBackward<S>(args).run();
}

}  // namespace rnnfast::cuda
