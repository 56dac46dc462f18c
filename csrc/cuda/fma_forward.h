// The float32 kernels forward. A step: receive h of all units, multiply, add up over the lanes that
// share K, the cell's maths, send the new h. Results are stored, and inputs asked for, while the
// next step waits for its first operands.
#pragma once

#include "cuda/fma.h"

namespace rnnfast::cuda {

// kSave: for training. A packed sequence finds that out as it runs.
template <class S, bool kPacked, bool kSave>
struct FmaForward {
  using Cell = typename S::Cell;
  using V = typename S::Number;
  using Ring = FmaRing<S>;
  using Worker = FmaWorker<S, kPacked>;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  using Kept = KeptOf<Cell, float>;
  static constexpr bool kKeeps = kSave && Cell::kReserve > 0;
  // What a step stores: the states (in training), h. Two lanes have the same numbers and take
  // turns; the first one stores what is kept of the gates, too.
  static constexpr int kResults = (kSave ? kStates : 0) + 1;
  static constexpr int kStores = (kResults + 1) / 2;
  static constexpr int kReceivers = (S::kPeers + Worker::kSenders - 1) / Worker::kSenders;

  const ForwardArgs<float>& a;
  Worker self;
  const Ring ring;
  float states[kStates], start[S::kUnits][kGates], bias[kGates], x[kGates];
  float values[2 * kStores];  // results of the step before
  Kept kept;
  FmaCursor<const float, kPacked> inputs;
  FmaCursor<float, kPacked> results[kStores];
  bool stores[kStores];
  FmaCursor<Kept, kPacked> kept_at;
  bool keeps;
  // Packed: where the step to be copied, and the one to be stored, begin.
  int copied_offset = 0, stored_offset = 0, next_offset = 0;

  DEVICE FmaForward(const ForwardArgs<float>& args) : a(args), self(args.steps, args.hidden) {}

  // Where both sides of a gate are only added up, the sums begin with both biases.
  DEVICE void load_bias() {
    const float *b_ih = a.b_ih[self.direction], *b_hh = a.b_hh[self.direction];
    const auto at = [this](const float* b, int gate, int unit) {
      return b == nullptr || unit >= self.hidden ? 0.f : b[gate * self.hidden + unit];
    };
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      const bool shared = g < Cell::kSharedGates;
      bias[g] = shared ? 0.f : at(b_ih, g, self.unit);
      UNROLL
      for (int u = 0; u < S::kUnits; ++u) {
        const int unit = self.first_unit() + self.computed(u);
        start[u][g] = self.part != 0 ? 0.f : at(b_hh, g, unit) + (shared ? at(b_ih, g, unit) : 0.f);
      }
    }
  }

  // Every CTA reads all of h_0 for itself.
  DEVICE void load_states() {
    for (int i = dev::tid(); i < S::kRows * S::kHidden; i += S::kThreads) {
      const int row = self.first_row + i / S::kHidden, unit = i % S::kHidden;
      const bool given = a.states_0[0] != nullptr && row < a.steps.largest && unit < self.hidden;
      self.vector(0)[i] =
          given ? a.states_0[0][(self.direction * a.steps.largest + row) * self.hidden + unit]
                : 0.f;
    }
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      const bool given = a.states_0[k] != nullptr && self.exists;
      states[k] = given ? a.states_0[k][self.in_state()] : 0.f;
      if (kSave && a.timelines[k] != nullptr && self.exists && self.copy == 0)
        a.timelines[k][self.timeline() + int64_t{self.initial() + self.row} * self.hidden] =
            states[k];
    }
  }

  DEVICE void place() {
    const int H = self.hidden;
    inputs = {self, a.x_gates + self.rows_before() * kGates * H + self.unit, kGates * H, 0};
    float* first[2 * kStores] = {};
    int sizes[2 * kStores] = {};
    UNROLL
    for (int k = 0; kSave && k < kStates; ++k) {
      first[k] = a.timelines[k] + self.timeline() + int64_t{self.after()} * H;
      sizes[k] = H;
    }
    first[kResults - 1] = a.output + self.in_output(), sizes[kResults - 1] = dev::grid_y() * H;
    const bool second = self.copy == 1, saves = a.timelines[0] != nullptr;
    UNROLL
    for (int i = 0; i < kStores; ++i) {
      const int which = 2 * i + (second ? 1 : 0);
      // The first call of store() has nothing to store.
      results[i] = {self, second ? first[2 * i + 1] : first[2 * i],
                    second ? sizes[2 * i + 1] : sizes[2 * i], 1};
      stores[i] = self.copy < 2 && which < kResults && (saves || which == kResults - 1);
    }
    if constexpr (kKeeps)
      kept_at = {self, reinterpret_cast<Kept*>(a.gates) + self.rows_before() * H + self.unit, H, 1};
    keeps = kKeeps && self.copy == 0 && saves;
  }

  // Asks for the inputs of step n.
  DEVICE void copy(int n) {
    const float* from = inputs.at(copied_offset);
    const bool there = self.alive(n);
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      ring.copy(n, g, from, there);
      from = dev::advance(from, self.gate_bytes);
    }
    dev::cp_commit();
    inputs.go_on();
    if constexpr (kPacked) copied_offset = self.offset(n + 1);
  }
  DEVICE void read(int n) {
    dev::cp_wait<Ring::kAhead - 1>();
    UNROLL
    for (int g = 0; g < kGates; ++g) x[g] = *ring.place(n, g);
  }

  // The results of step n; none of step -1.
  DEVICE void store(int n) {
    const bool alive = n >= 0 && self.alive(n), second = self.copy == 1;
    UNROLL
    for (int i = 0; i < kStores; ++i) {
      const float value = dev::opaque(second ? values[2 * i + 1] : values[2 * i]);
      if (alive && stores[i]) *results[i].at(stored_offset) = value;
      results[i].go_on();
    }
    if constexpr (kKeeps) {
      if (alive && keeps) *kept_at.at(stored_offset) = kept;
      kept_at.go_on();
    }
    if constexpr (kPacked) stored_offset = next_offset, next_offset = self.offset(n + 2);
  }

  // Hands the new h to all who need it, and waits for theirs.
  DEVICE void exchange(int round) const {
    if constexpr (S::kCluster) {
      if (round == self.count) return;
      const uint4 v = self.gather(states[0]);
      const int at =
          (self.tile_row * S::kHidden + (self.unit & ~3)) * static_cast<int>(sizeof(float));
      UNROLL
      for (int i = 0; i < kReceivers; ++i) {
        const int peer = self.sender() + i * self.kSenders;
        if (peer < S::kPeers) self.send(round, peer, at, v);
      }
      self.receive(round);
    } else {
      if (self.copy == 0) self.vector(round)[self.tile_row * S::kHidden + self.unit] = states[0];
      dev::cta_sync();
    }
  }

  DEVICE void step(int n) {
    float sum[S::kOutputs][S::kValues];
    self.product.run(self.vector(n), self.part, start, sum, [&] {
      store(n - 1);
      copy(n + Ring::kAhead);
      read(n);
    });
    add_parts<S>(sum, self.part);
    const bool alive = self.alive(n);
    float gates[kReserveSlots<Cell>] = {};
    forward_unit<Cell, V>([&](int g) { return V(g < Cell::kSharedGates ? x[g] : x[g] + bias[g]); },
                          [&](int g) { return V(sum[0][g]); }, [&](int k) { return V(states[k]); },
                          [&](int k, V s) { states[k] = alive ? plain(s) : states[k]; },
                          [&](int i, V q) { gates[i] = plain(q); });
    kept = Kept::of(gates);
    UNROLL
    for (int k = 0; kSave && k < kStates; ++k) values[k] = states[k];
    values[kResults - 1] = states[0];
    exchange(n + 1);
  }

  DEVICE void run() {
    place();
    if constexpr (kPacked)
      copied_offset = self.offset(0), stored_offset = next_offset = copied_offset;
    for (int n = 0; n < Ring::kAhead; ++n) copy(n);
    self.load_weights(a.w_hh);
    load_bias();
    load_states();
    UNROLL
    for (int i = 0; i < 2 * kStores; ++i) values[i] = 0.f;
    kept = Kept{};
    self.start();
    for (int n = 0; n < self.count; ++n) step(n);
    store(self.count - 1);
    UNROLL
    for (int k = 0; k < kStates; ++k)
      if (self.exists && self.copy == 0) a.states_n[k][self.in_state()] = states[k];
  }
};

template <class S, bool kPacked, bool kSave>
KERNEL LAUNCH_BOUNDS(S::kThreads) fma_forward(const ForwardArgs<float> args) {
  FmaForward<S, kPacked, kSave>(args).run();
}

}  // namespace rnnfast::cuda
