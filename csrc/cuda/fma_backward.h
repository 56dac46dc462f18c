// The float32 kernels backward. A step: the cell's maths gives the gate gradients of a row, which
// the CTA puts into shared memory and multiplies with w_hh: in one CTA, a lane then has what the
// step before gets. In a cluster a CTA multiplies the gradients of its own units, for all units,
// and sends each peer its part of these sums; peers add them up in the order of the ranks. Results
// are stored, and inputs asked for, while the product waits for its first operands.
#pragma once

#include "cuda/fma.h"

namespace rnnfast::cuda {

template <class S, bool kPacked>
struct FmaBackward {
  using Cell = typename S::Cell;
  using V = typename S::Number;
  using Ring = FmaRing<S>;
  using Kept = KeptOf<Cell, float>;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kReserve = Cell::kReserve;
  static constexpr int kLast = kStates - 1;  // the one state that the maths of cells reads
  static constexpr int kBefore = kReserve, kGrad = kReserve + 1;  // in the ring, after the gates
  static_assert(Ring::kInputs == kReserve + 2);
  // What a step stores, by two threads in turns as forward: gradients of the input side and of the
  // hidden side, gate by gate, where they differ. The second one then has those of the hidden side.
  static constexpr bool kBothSides = Cell::kSharedGates < kGates;
  static constexpr int kResults = kBothSides ? 2 * kGates : kGates;
  static constexpr int kElements = S::kRows * S::kOwn;  // of a CTA
  static constexpr int kStores = (kResults + 1) / 2;
  static_assert(!S::kSums || (S::kThreads >= 2 * kElements && kElements % kWarpSize == 0));

  const BackwardArgs<float>& a;
  FmaWorker<S, kPacked> self;
  const Ring ring;
  float grads[kStates];  // of the states after the step to come
  Kept gates;            // of the step to come, as these three
  float before, after, grad;
  FmaCursor<const Kept, kPacked> saved;
  FmaCursor<const float, kPacked> timeline, grad_output;
  FmaCursor<float, kPacked> results;  // the first, and how far apart they lie
  int64_t result_bytes;
  bool has_grad, writes;
  // Packed: where the step to be copied, and the one after it, begin; the one to be stored.
  int copied_offset = 0, earlier_offset = 0, stored_offset = 0;

  DEVICE FmaBackward(const BackwardArgs<float>& args) : a(args), self(args.steps, args.hidden) {}

  // Whether this thread has a row and a unit at all: in a cluster, as whole warps do.
  DEVICE bool works() const { return !S::kSums || self.copy < 2; }

  DEVICE void place() {
    const int H = self.hidden, D = dev::grid_y();
    if constexpr (kReserve > 0)
      saved = {self, reinterpret_cast<const Kept*>(a.gates) + self.rows_before() * H + self.unit, H,
               0};
    // A dense sequence has the state before a row B rows before the one after it.
    const float* states = a.timelines[kLast] + self.timeline();
    const int64_t way = kPacked ? 0 : self.direction == 1 ? a.steps.largest : 0;
    timeline = {self, states + way * H, H, 0};
    has_grad = a.grad_output != nullptr;
    grad_output = {self, has_grad ? a.grad_output + self.in_output() : nullptr, D * H, 0};
    const bool second = self.copy == 1;
    float* const dx = a.grad_x_gates + self.rows_before() * kGates * H + self.unit;
    float* const dh = a.grad_h_gates + self.rows_before() * kGates * H + self.unit;
    writes = self.last > 0 && self.copy < 2;
    if (kBothSides && second && a.grad_h_gates == nullptr) writes = false;
    results = {self, kBothSides ? (second ? dh : dx) : dx + (second ? H : 0), kGates * H, 0};
    result_bytes = dev::opaque((kBothSides ? 1 : 2) * self.gate_bytes);
    if constexpr (kPacked)
      copied_offset = self.offset(0), earlier_offset = self.offset(1),
      stored_offset = self.offset(0);
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      const bool given = a.grad_states_n[k] != nullptr && self.exists;
      grads[k] = given ? a.grad_states_n[k][self.in_state()] : 0.f;
    }
    const int64_t row = self.offset(0) + self.after() + self.row;
    after = self.alive(0) ? a.timelines[kLast][self.timeline() + row * self.hidden] : 0.f;
  }

  // Asks for the inputs of step n. The state before it is the one after step n + 1, or the initial
  // one.
  DEVICE void copy(int n) {
    const bool here = self.alive(n), earlier = self.alive(n + 1);
    if constexpr (kReserve > 0) ring.copy_kept(n, saved.at(copied_offset), here);
    const int row = earlier ? earlier_offset + self.after() : self.initial();
    ring.copy(n, kBefore, timeline.at(row), here || (kPacked && earlier));
    ring.copy(n, kGrad, grad_output.at(copied_offset), here && has_grad);
    dev::cp_commit();
    saved.go_on(), timeline.go_on(), grad_output.go_on();
    if constexpr (kPacked) copied_offset = earlier_offset, earlier_offset = self.offset(n + 2);
  }
  DEVICE void read(int n) {
    dev::cp_wait<Ring::kAhead - 1>();
    if constexpr (kReserve > 0) gates = *ring.template kept<Kept>(n);
    before = *ring.place(n, kBefore), grad = *ring.place(n, kGrad);
  }

  // The gate gradients of step n; the hidden-side ones go into its vector.
  DEVICE void update(int n, float (&values)[2 * kStores]) {
    // Of a row or unit that does not exist all is zero anyway.
    const bool here = S::kRows == 1 || self.alive(n);
    float* to = self.vector(n) + self.tile_row * S::kDepth + self.unit % S::kOwn;
    backward_unit<Cell, V>([&](int i) { return V(gates.gate(i)); },
                           [&](int k) { return V(k == kLast ? before : 0.f); },
                           [&](int k) { return V(k == kLast ? after : 0.f); },
                           [&](int k) { return V(k == 0 ? grads[0] + grad : grads[k]); },
                           [&](int k, V ds) { grads[k] = here ? plain(ds) : grads[k]; },
                           [&](int g, V dx) { values[kBothSides ? 2 * g : g] = plain(dx); },
                           [&](int g, V dh) {
                             const float hidden_side = dev::opaque(here ? plain(dh) : 0.f);
                             if (self.copy == 0) to[g * S::kOwn] = hidden_side;
                             if (kBothSides) values[2 * g + 1] = hidden_side;
                           });
    after = before;
  }

  DEVICE void store(int n, const float (&values)[2 * kStores]) {
    const bool second = self.copy == 1;
    const bool alive = writes && (S::kRows == 1 || self.alive(n));
    float* to = results.at(stored_offset);
    UNROLL
    for (int i = 0; i < kStores; ++i) {
      const float value = dev::opaque(second ? values[2 * i + 1] : values[2 * i]);
      if (alive && (2 * i + 2 <= kResults || !second)) *to = value;
      to = dev::advance(to, result_bytes);
    }
    results.go_on();
    if constexpr (kPacked) stored_offset = self.offset(n + 1);
  }

  // What step n adds to the gradient of h before it, of all rows and units that this lane computes.
  template <class Between>
  DEVICE void multiply(int n, Between between) {
    const float zeros[S::kUnits][S::kOut] = {};
    float sum[S::kOutputs][S::kValues];
    self.product.run(self.vector(n), self.part, zeros, sum, between);
    add_parts<S>(sum, self.part);
    if constexpr (S::kSums) {
      UNROLL
      for (int kept = 0; kept < S::kKept; ++kept) {
        const int unit = self.computed(kept);
        const int own = self.rank * S::kRows * S::kOwn + unit % S::kOwn / 4 * 4;
        UNROLL
        for (int r = 0; r < S::kRows; ++r) {
          const uint4 v = self.gather(sum[kept][r]);
          if (self.sender() == r)
            self.send(n + 1, unit / S::kOwn, (own + r * S::kOwn) * static_cast<int>(sizeof(float)),
                      v);
        }
      }
    } else {
      grads[0] += self.exists ? sum[0][0] : 0.f;
    }
  }

  // Adds what all CTAs sent after step n - 1.
  DEVICE void add_received(int n) {
    self.receive(n);
    const int element = self.tile_row * S::kOwn + self.unit % S::kOwn;
    const float* from =
        reinterpret_cast<const float*>(self.smem + S::kReceivedAt + (n & 1) * S::kReceivedBytes) +
        element;
    float sum = from[0];
    UNROLL
    for (int peer = 1; peer < S::kPeers; ++peer) sum += from[peer * kElements];
    grads[0] += self.exists ? sum : 0.f;
  }

  DEVICE void step(int n, bool multiplies) {
    float values[2 * kStores] = {};
    if (works()) update(n, values);
    dev::cta_sync();
    const auto finish = [&] {
      if (!works()) return;
      store(n, values);
      copy(n + Ring::kAhead);
      read(n + 1);
    };
    if (multiplies) {
      multiply(n, finish);
      if constexpr (S::kSums)
        if (works()) add_received(n + 1);
    } else {
      finish();
    }
  }

  DEVICE void run() {
    const bool to_start = a.grad_states_0[0] != nullptr;
    place();
    if (works())
      for (int n = 0; n < Ring::kAhead; ++n) copy(n);
    self.load_weights(a.w_hh);
    load_states();
    if (works()) read(0);
    self.start();
    for (int n = 0; n + 1 < self.count; ++n) step(n, true);
    if (self.count > 0) step(self.count - 1, to_start);
    UNROLL
    for (int k = 0; k < kStates; ++k)
      if (a.grad_states_0[k] != nullptr && self.exists && self.copy == 0)
        a.grad_states_0[k][self.in_state()] = grads[k];
  }
};

template <class S, bool kPacked>
KERNEL LAUNCH_BOUNDS(S::kThreads) fma_backward(const BackwardArgs<float> args) {
  FmaBackward<S, kPacked>(args).run();
}

}  // namespace rnnfast::cuda
