// The kernels of the grid family forward; see grid_worker.h.
#pragma once

#include "cuda/grid_worker.h"

namespace rnnfast::cuda {

template <class S>
struct GridForward {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  using Worker = GridWorker<S>;
  using Pair = typename Worker::Pair;
  using Stored = typename Worker::Stored;
  using Place = typename Worker::Place;
  using Kept = KeptOf<Cell, E>;
  static constexpr int kGates = Cell::kGates, kReserve = Cell::kReserve;
  const ForwardArgs<E>& a;
  Worker self;
  Stored x[kGates];  // of the step to come

  DEVICE GridForward(const GridForwardArgs<E>& args)
      : a(args.layer), self(a.steps, a.hidden, args.parts, a.packed, a.packed_bytes, a.exchange) {
    bool even = self.aligned(a.x_gates) && self.aligned(a.output);
    for (const E* timeline : a.timelines) even = even && self.aligned(timeline);
    self.even = even;
  }

  // [2][G][units] of the CTA: on the hidden side, and of the gates that do not share it on x's.
  DEVICE float* bias(int side, int gate) const {
    return reinterpret_cast<float*>(dev::smem() + S::kBiasAt) + (side * kGates + gate) * S::kUnits;
  }
  DEVICE void load_bias() const {
    const E *b_ih = self.direction == 1 ? a.b_ih[1] : a.b_ih[0],
            *b_hh = self.direction == 1 ? a.b_hh[1] : a.b_hh[0];
    for (int i = dev::tid(); i < kGates * S::kUnits; i += S::kThreads) {
      const int gate = i / S::kUnits, unit = self.rank * S::kUnits + i % S::kUnits;
      const int64_t at = gate * a.hidden + unit;
      const float x = b_ih != nullptr && unit < self.hidden ? widen(b_ih[at]) : 0.f,
                  h = b_hh != nullptr && unit < self.hidden ? widen(b_hh[at]) : 0.f;
      const bool shared = gate < Cell::kSharedGates;
      bias(0, gate)[i % S::kUnits] = shared ? x + h : h;
      bias(1, gate)[i % S::kUnits] = shared ? 0.f : x;
    }
  }

  // The states before the first step of a part, and its first vector.
  DEVICE void begin(int part) {
    if (!self.active) return;
    const bool exists = self.exists(part);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      const Pair s = self.widen_pair(a.states_0[k], self.in_state(part), exists);
      self.state(part, k) = s;
      if (exists && a.timelines[k] != nullptr)
        self.narrow_pair(a.timelines[k], self.in_timeline(self.initial(part)), s);
    }
    const Pair h = self.state(part, 0);
    // In the reverse direction the part begins when its longest row does.
    const int living = self.steps.living(self.first_row + part * S::kRows);
    const int first = self.direction == 1 ? self.count - living : 0;
    self.exchange.publish(first, part, 0, Stored::of(h.number[0], h.number[1]));
  }

  DEVICE void load_inputs(const Place& at) {
    if (!self.alive(at)) return;
    const E* p = a.x_gates + self.in_rows(at.position, kGates);
    UNROLL
    for (int g = 0; g < kGates; ++g, p += self.hidden) x[g] = self.load_pair(p);
  }
  DEVICE typename Worker::Prefetch prefetch() const {
    const auto piece = self.piece(kGates);
    return {a.x_gates + self.ahead(piece, kGates, piece.slot), self.prefetched_row(piece, true),
            kGates};
  }

  // The states after the step, and what is kept of it; a row that is not alive keeps its states.
  DEVICE void update(const Place& at, const float (&sum)[kGates][2], Pair (&states)[Cell::kStates],
                     Kept (&kept)[2]) const {
    const bool alive = self.alive(at);
    UNROLL
    for (int i = 0; i < 2; ++i) {
      const int unit = self.unit - self.rank * S::kUnits + i;
      // Or what is not finite would spread to the whole row from a unit that is not there.
      const bool exists = alive && (i == 0 || self.even || self.second);
      float gates[kReserveSlots<Cell>] = {};
      forward_unit<Cell, V>(
          [&](int g) {
            const V in(x[g].number(i));
            return g < Cell::kSharedGates ? in : in + V(bias(1, g)[unit]);
          },
          [&](int g) { return V(sum[g][i] + bias(0, g)[unit]); },
          [&](int k) { return V(states[k].number[i]); },
          [&](int k, V s) { states[k].number[i] = exists ? plain(s) : states[k].number[i]; },
          [&](int r, V q) { gates[r] = plain(q); });
      kept[i] = Kept::of(gates);
    }
  }

  DEVICE void store(const Place& at, const Stored (&states)[Cell::kStates],
                    const Kept (&kept)[2]) const {
    if (!self.alive(at)) return;
    const int64_t position = at.position;
    self.store_pair(a.output + self.in_output(position), states[0]);
    if (a.timelines[0] == nullptr) return;
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k)
      self.store_pair(a.timelines[k] + self.in_timeline(position), states[k]);
    if constexpr (kReserve > 0) {
      Kept* p = reinterpret_cast<Kept*>(a.gates) + self.in_rows(position, 1);
      p[0] = kept[0];
      if (self.even || self.second) p[1] = kept[1];
    }
  }

  // First what the other CTAs wait for.
  DEVICE void step(int n, int part, const Place& at, const typename Worker::Next& following) {
    float sum[kGates][2];
    self.product(n, part, following, sum);
    if (!self.active) return;
    Pair states[Cell::kStates];
    Stored stored[Cell::kStates];
    Kept kept[2];
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) states[k] = self.state(part, k);
    update(at, sum, states, kept);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k)
      stored[k] = Stored::of(states[k].number[0], states[k].number[1]);
    self.exchange.publish(n + 1, part, 0, stored[0]);
    self.exchange.clear(n - 1, part, 0);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) self.state(part, k) = states[k];
    store(at, stored, kept);
  }

  DEVICE int time(int n) const { return self.direction == 1 ? self.count - 1 - n : n; }

  DEVICE void run() {
    load_bias();
    for (int part = 0; part < self.parts; ++part) begin(part);
    const typename Worker::Prefetch ahead = prefetch();
    Place at = self.place(time(0)), next = self.place(time(1));
    load_inputs(at);
    ahead.run(next);
    self.exchange.request(self.asked, 0, 0);
    int fence = 0;
    for (int n = 0; n < self.count; ++n) {
      const Place then = self.place(time(n + 2));
      const int living = self.living_parts(at);
      Place here = at, far = then;
      for (int part = 0; part < living; ++part) {
        const bool last = part + 1 == living;
        // What the next part needs has been sent while others were multiplied, if there are any.
        step(n, part, here, {living > 1, last ? n + 1 : n, last ? 0 : part + 1});
        here = self.choose(last, next, self.next_part(here));
        load_inputs(here);
        ahead.run(far);
        far = self.next_part(far);
      }
      at = next, next = then;
      if (++fence == kGridFence) {
        fence = 0;
        dev::fence_words();
      }
      if (living == 1) self.exchange.request(self.asked, n + 1, 0);
    }
    for (int part = 0; part < self.parts; ++part) {
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k)
        if (self.exists(part))
          self.narrow_pair(a.states_n[k], self.in_state(part), self.state(part, k));
    }
  }
};

template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads) grid_forward(const GridForwardArgs<typename S::Element> args) {
  GridForward<S>(args).run();
}

}  // namespace rnnfast::cuda
