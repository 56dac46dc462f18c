// The float32 kernels forward. A step: receive h of all units, multiply, add up over the lanes that
// share K, the cell's maths, send the new h; then results are stored and inputs loaded.
#pragma once

#include "cuda/fma.h"

namespace rnnfast::cuda {

template <class S, bool kSave>
struct FmaForward {
  using Cell = typename S::Cell;
  using V = typename S::Number;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  static constexpr int kReserve = kSave ? Cell::kReserve : 0;
  // What a step stores: the reserve, the states (in training), h. Lanes with the same numbers take
  // turns.
  static constexpr int kResults = kReserve + (kSave ? kStates : 0) + 1;
  static constexpr int kStores = (kResults + 1) / 2;
  static constexpr int kReceivers =
      (S::kPeers + FmaWorker<S>::kSenders - 1) / FmaWorker<S>::kSenders;

  const ForwardArgs<float>& a;
  FmaWorker<S> self;
  float states[kStates], start[S::kUnits][kGates], bias[kGates];
  FmaColumn<const float> inputs;
  FmaColumn<float> results[kStores];
  float x[kFmaSlots][kGates];
  int rows[kFmaSlots], next_rows[kFmaSlots];  // of the steps in the slots, and of those after them
  FmaPrefetcher prefetcher;

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
      if (kSave && self.exists && self.copy == 0)
        a.timelines[k][self.timeline() + int64_t{self.initial()} * self.hidden] = states[k];
    }
  }

  DEVICE void place() {
    const int H = self.hidden;
    inputs = {a.x_gates + self.rows_before() * kGates * H + self.unit, kGates * H};
    float* first[2 * kStores] = {};
    int sizes[2 * kStores] = {};
    UNROLL
    for (int q = 0; q < kReserve; ++q)
      first[q] = a.gates + (self.rows_before() * kReserve + q) * H + self.unit,
      sizes[q] = kReserve * H;
    UNROLL
    for (int k = 0; kSave && k < kStates; ++k)
      first[kReserve + k] = a.timelines[k] + self.timeline() + int64_t{self.after(0)} * H,
                       sizes[kReserve + k] = H;
    first[kResults - 1] = a.output + self.in_output(), sizes[kResults - 1] = dev::grid_y() * H;
    UNROLL
    for (int i = 0; i < kStores; ++i) {
      const bool second = self.copy == 1;
      results[i] = {second ? first[2 * i + 1] : first[2 * i],
                    second ? sizes[2 * i + 1] : sizes[2 * i]};
    }
    const float* const tensors[1] = {a.x_gates + self.rows_before() * kGates * H};
    prefetcher.init(self, tensors, {kGates * H}, {kGates * H});
  }

  // Inputs of step n.
  DEVICE void load(int n, int slot) {
    if (n >= self.count) return;
    rows[slot] = next_rows[slot];
    const float* from = inputs.at(rows[slot]);
    const bool alive = self.alive(n);
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      x[slot][g] = alive ? *dev::advance(from, g, self.unit_bytes) : 0.f;
    }
    if (n + kFmaSlots < self.count) next_rows[slot] = self.row_at(n + kFmaSlots);
  }

  DEVICE void store(const float (&values)[2 * kStores], int slot) const {
    const bool second = self.copy == 1;
    UNROLL
    for (int i = 0; i < kStores; ++i) {
      if (self.copy < (2 * i + 2 <= kResults ? 2 : 1))
        *results[i].at(rows[slot]) = second ? values[2 * i + 1] : values[2 * i];
    }
  }

  DEVICE void send(int round) const {
    if constexpr (S::kCluster) {
      const uint4 v = self.gather(states[0]);
      const int row = self.row - self.first_row;
      const int at = (row * S::kHidden + (self.unit & ~3)) * static_cast<int>(sizeof(float));
      UNROLL
      for (int i = 0; i < kReceivers; ++i) {
        const int peer = self.sender() + i * self.kSenders;
        if (peer < S::kPeers) self.send(round, peer, at, v);
      }
    } else {
      if (self.copy == 0)
        self.vector(round)[(self.row - self.first_row) * S::kHidden + self.unit] = states[0];
      dev::cta_sync();
    }
  }

  DEVICE void step(int n, int slot) {
    if constexpr (S::kCluster)
      if (n > 0) self.receive(n);
    float sum[S::kOutputs][S::kValues];
    self.product.run(self.vector(n), self.part, start, sum);
    add_parts<S>(sum, self.part);
    V in[kGates], h[kGates], s[kStates], q[Cell::kReserve > 0 ? Cell::kReserve : 1];
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      in[g] = g < Cell::kSharedGates ? x[slot][g] : x[slot][g] + bias[g];
      h[g] = sum[0][g];
    }
    UNROLL
    for (int k = 0; k < kStates; ++k) s[k] = states[k];
    Cell::forward(in, h, s, q);
    const bool alive = self.alive(n);
    UNROLL
    for (int k = 0; k < kStates; ++k) states[k] = alive ? plain(s[k]) : states[k];
    if (n + 1 < self.count) send(n + 1);
    float values[2 * kStores] = {};
    UNROLL
    for (int i = 0; i < kReserve; ++i) values[i] = plain(q[i]);
    UNROLL
    for (int k = 0; kSave && k < kStates; ++k) values[kReserve + k] = states[k];
    values[kResults - 1] = states[0];
    if (alive) store(values, slot);
    load(n + kFmaSlots, slot);
    prefetcher.run(self, n + kFmaAhead);
  }

  DEVICE void run() {
    place();
    for (int n = 0; n < kFmaAhead; ++n) prefetcher.run(self, n);
    self.load_weights(a.w_hh);
    load_bias();
    load_states();
    UNROLL
    for (int i = 0; i < kFmaSlots; ++i) {
      if (i < self.count) next_rows[i] = self.row_at(i);
      load(i, i);
    }
    self.start();
    for (int first = 0; first < self.count; first += kFmaSlots) {
      UNROLL
      for (int i = 0; i < kFmaSlots; ++i) {
        if (first + i >= self.count) break;
        step(first + i, i);
      }
    }
    UNROLL
    for (int k = 0; k < kStates; ++k)
      if (self.exists && self.copy == 0) a.states_n[k][self.in_state()] = states[k];
  }
};

template <class S, bool kSave>
KERNEL LAUNCH_BOUNDS(S::kThreads) fma_forward(const ForwardArgs<float> args) {
  FmaForward<S, kSave>(args).run();
}

}  // namespace rnnfast::cuda
