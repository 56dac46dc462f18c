// The float32 kernels backward. A step: the cell's maths gives the gate gradients of a row, which
// the CTA puts into shared memory and multiplies with w_hh: in one CTA, a lane then has what the
// step before gets. In a cluster a CTA multiplies the gradients of its own units, for all units,
// and sends each peer its part of these sums; peers add them up in the order of the ranks.
#pragma once

#include "cuda/fma.h"

namespace rnnfast::cuda {

template <class S>
struct FmaBackward {
  using Cell = typename S::Cell;
  using V = typename S::Number;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kReserve = Cell::kReserve;
  static constexpr int kSlots = kReserve > 0 ? kReserve : 1;
  // What a step stores, in turns as forward: gradients of the input side and of the hidden side,
  // gate by gate, where they differ. The second writer then has those of the hidden side.
  static constexpr bool kBothSides = Cell::kSharedGates < kGates;
  static constexpr int kResults = kBothSides ? 2 * kGates : kGates;
  static constexpr int kElements = S::kRows * S::kOwn;  // of a CTA
  static constexpr int kStores = (kResults + 1) / 2;
  static_assert(!S::kSums || (S::kThreads >= 2 * kElements && kElements % kWarpSize == 0));
  struct Inputs {
    float gates[kSlots], before[kStates], grad;
  };

  const BackwardArgs<float>& a;
  FmaWorker<S> self;
  float grads[kStates];  // of the states after the step to come
  float after[kStates];
  FmaColumn<const float> gates, timelines[kStates], grad_output;
  FmaColumn<float> results;  // the first, and how far apart they lie
  int result_bytes;
  bool writes;
  int from_after;  // from a row of the sequence to the state after it in a timeline
  Inputs in[kFmaSlots];
  int rows[kFmaSlots], next_rows[kFmaSlots];
  FmaPrefetcher prefetcher;

  DEVICE FmaBackward(const BackwardArgs<float>& args) : a(args), self(args.steps, args.hidden) {}

  DEVICE bool alive(int n) const { return n < self.count && self.alive(n); }
  // Whether this thread has a row and a unit at all: in a cluster, as whole warps do.
  DEVICE bool works() const { return !S::kSums || self.copy < 2; }

  DEVICE void place() {
    const int H = self.hidden, D = dev::grid_y();
    from_after = dev::opaque(self.after(0));
    gates = {a.gates + self.rows_before() * kReserve * H + self.unit, kReserve * H};
    UNROLL
    for (int k = 0; k < kStates; ++k) timelines[k] = {a.timelines[k] + self.timeline(), H};
    if (a.grad_output != nullptr) grad_output = {a.grad_output + self.in_output(), D * H};
    const bool second = self.copy == 1;
    float* const dx = a.grad_x_gates + self.rows_before() * kGates * H + self.unit;
    float* const dh = a.grad_h_gates + self.rows_before() * kGates * H + self.unit;
    writes = self.last > 0 && self.copy < 2;
    if (kBothSides && second && a.grad_h_gates == nullptr) writes = false;
    results = {kBothSides ? (second ? dh : dx) : dx + (second ? H : 0), kGates * H};
    result_bytes = dev::opaque((kBothSides ? 1 : 2) * self.unit_bytes);
    const float* const tensors[3] = {
        kReserve > 0 ? a.gates + self.rows_before() * kReserve * H : nullptr,
        a.timelines[kStates - 1] + self.timeline() - self.unit + int64_t{from_after} * H,
        a.grad_output == nullptr ? nullptr : a.grad_output + self.direction * H};
    prefetcher.init(self, tensors, {kReserve * H, H, H}, {kReserve * H, H, D * H});
  }

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      const bool given = a.grad_states_n[k] != nullptr && self.exists;
      grads[k] = given ? a.grad_states_n[k][self.in_state()] : 0.f;
      after[k] = alive(0) ? *timelines[k].at(next_rows[0] + from_after) : 0.f;
    }
  }

  // Inputs of step n, whose row and that of step n + 1 are in next_rows. The state before a step is
  // the one after step n + 1, or the initial one.
  DEVICE void load(int n, int slot) {
    if (n >= self.count) return;
    const bool here = self.alive(n), earlier = alive(n + 1);
    rows[slot] = next_rows[slot];
    const float* q = gates.at(rows[slot]);
    UNROLL
    for (int k = 0; k < kReserve; ++k) {
      in[slot].gates[k] = here ? *dev::advance(q, k, self.unit_bytes) : 0.f;
    }
    in[slot].grad = here && grad_output.row_bytes > 0 ? *grad_output.at(rows[slot]) : 0.f;
    const int before = earlier ? next_rows[(slot + 1) % kFmaSlots] + from_after : self.initial();
    UNROLL
    for (int k = 0; k < kStates; ++k)
      in[slot].before[k] = here || earlier ? *timelines[k].at(before) : 0.f;
    if (n + kFmaSlots < self.count) next_rows[slot] = self.row_at(n + kFmaSlots);
  }

  // The gate gradients of step n; the hidden-side ones go into its vector.
  DEVICE void update(int n, int slot, float (&values)[2 * kStores]) {
    V q[kSlots], p[kStates], s[kStates], ds[kStates], dx[kGates], dh[kGates];
    UNROLL
    for (int k = 0; k < kSlots; ++k) q[k] = in[slot].gates[k];
    UNROLL
    for (int k = 0; k < kStates; ++k) p[k] = in[slot].before[k], s[k] = after[k], ds[k] = grads[k];
    ds[0] = ds[0] + V(in[slot].grad);
    Cell::backward(q, p, s, ds, dx, dh);
    const bool here = self.alive(n);
    UNROLL
    for (int k = 0; k < kStates; ++k) {
      grads[k] = here ? plain(ds[k]) : grads[k];
      after[k] = in[slot].before[k];
    }
    float* to = self.vector(n) + (self.row - self.first_row) * S::kDepth + self.unit % S::kOwn;
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      const float hidden_side = here ? plain(dh[g]) : 0.f;
      if (self.copy == 0) to[g * S::kOwn] = hidden_side;
      values[kBothSides ? 2 * g : g] = plain(dx[g]);
      if (kBothSides) values[2 * g + 1] = hidden_side;
    }
  }

  DEVICE void store(int n, const float (&values)[2 * kStores], int slot) const {
    if (!writes || (S::kRows > 1 && !self.alive(n))) return;
    const bool second = self.copy == 1;
    float* const first = results.at(rows[slot]);
    UNROLL
    for (int i = 0; i < kStores; ++i) {
      if (2 * i + 2 <= kResults || !second)
        *dev::advance(first, i, result_bytes) = second ? values[2 * i + 1] : values[2 * i];
    }
  }

  // What step n - 1 adds to the gradient of h, of all rows and units that this lane computes.
  DEVICE void multiply(int n) {
    const float zeros[S::kUnits][S::kOut] = {};
    float sum[S::kOutputs][S::kValues];
    self.product.run(self.vector(n), self.part, zeros, sum);
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
      grads[0] += sum[0][0];
    }
  }

  // Adds what all CTAs sent after step n - 1.
  DEVICE void add_received(int n) {
    self.receive(n);
    const int element = (self.row - self.first_row) * S::kOwn + self.unit % S::kOwn;
    const float* from =
        reinterpret_cast<const float*>(dev::smem() + S::kReceivedAt + (n & 1) * S::kReceivedBytes) +
        element;
    float sum = from[0];
    UNROLL
    for (int peer = 1; peer < S::kPeers; ++peer) sum += from[peer * kElements];
    grads[0] += sum;
  }

  DEVICE void step(int n, int slot, bool multiplies) {
    float values[2 * kStores] = {};
    if (works()) {
      if constexpr (S::kSums)
        if (n > 0) add_received(n);
      update(n, slot, values);
    }
    dev::cta_sync();
    if constexpr (S::kSums)
      if (multiplies) multiply(n);
    if (works()) {
      store(n, values, slot);
      load(n + kFmaSlots, slot);
    }
    prefetcher.run(self, n + kFmaAhead);
    if constexpr (!S::kSums)
      if (multiplies) multiply(n);
  }

  DEVICE void run() {
    const bool to_start = a.grad_states_0[0] != nullptr;
    place();
    UNROLL
    for (int i = 0; i < kFmaSlots; ++i)
      if (i < self.count) next_rows[i] = self.row_at(i);
    for (int n = 0; n < kFmaAhead; ++n) prefetcher.run(self, n);
    self.load_weights(a.w_hh);
    load_states();
    UNROLL
    for (int i = 0; i < kFmaSlots; ++i) load(i, i);
    self.start();
    for (int first = 0; first < self.count; first += kFmaSlots) {
      UNROLL
      for (int i = 0; i < kFmaSlots; ++i) {
        if (first + i >= self.count) break;
        step(first + i, i, first + i + 1 < self.count || to_start);
      }
    }
    if constexpr (S::kSums)
      if (to_start && works()) add_received(self.count);
    UNROLL
    for (int k = 0; k < kStates; ++k)
      if (a.grad_states_0[k] != nullptr && self.exists && self.copy == 0)
        a.grad_states_0[k][self.in_state()] = grads[k];
  }
};

template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads) fma_backward(const BackwardArgs<float> args) {
  FmaBackward<S>(args).run();
}

}  // namespace rnnfast::cuda
