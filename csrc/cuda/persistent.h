// The time loop of a layer in one launch. Each CTA owns some hidden units of one tile of the batch
// for the whole sequence and keeps their rows of w_hh (backward: columns) in registers, as operands
// of the tensor cores; what does not fit there lies in shared memory. So a step reads no weights.
//
// One step, forward and backward alike:
//   receive   the exchanged vector of all units: h, or backward the hidden-side gate gradients
//   multiply  with the resident weights. A group of 16 units (the M of one mma) has kSplits warps,
//             which share K among them
//   reduce    their partial sums through shared memory, in a fixed order; then each thread owns
//             kElements (unit, batch row) pairs with all their gates, states in registers
//   update    the cell's maths (cells.h), results to global memory
//   send      the new piece of the vector to all CTAs of the tile
//
// Three ways to exchange: within one CTA, through its shared memory; within a cluster, by st.async
// into the shared memory of the peers, counted by mbarriers; across a grid, through global memory
// and one flag per CTA.
#pragma once

#include "cuda/args.h"
#include "cuda/exchanger.h"
#include "cuda/weights.h"

namespace rnnfast::cuda {

// ---- the sum over the splits of K ----
// Each warp finishes kElements of its accumulators per output: it hands the others theirs and adds
// in a fixed order what it gets. One buffer serves all steps, as all warps of the group meet again
// before the next step, when they send.
template <class S>
struct Reduction {
  static constexpr int kElements = S::kElements;

  static DEVICE int index(int receiver, int slot, int out, int e, int lane) {
    return (((receiver * (S::kSplits - 1) + slot) * S::kOut + out) * kElements + e) * kWarpSize +
           lane;
  }

  // Registers cannot be indexed by a variable: the choice among them is a chain of selects.
  static DEVICE void keep_own(const float (&acc)[S::kOut][S::kColumns][4],
                              float (&sum)[kElements][S::kOut], int split) {
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      UNROLL
      for (int o = 0; o < S::kOut; ++o) {
        sum[e][o] = acc[o][e / 4][e % 4];
        UNROLL
        for (int s = 1; s < S::kSplits; ++s) {
          const int j = s * kElements + e;
          if (s == split) sum[e][o] = acc[o][j / 4][j % 4];
        }
      }
    }
  }

  static DEVICE void run(const float (&acc)[S::kOut][S::kColumns][4],
                         float (&sum)[kElements][S::kOut], float* partial, int group, int split,
                         int lane) {
    keep_own(acc, sum, split);
    UNROLL
    for (int receiver = 0; receiver < S::kSplits; ++receiver) {
      if (receiver == split) continue;
      const int slot = split < receiver ? split : split - 1;
      UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int j = receiver * kElements + e;
        UNROLL
        for (int o = 0; o < S::kOut; ++o)
          partial[index(receiver, slot, o, e, lane)] = acc[o][j / 4][j % 4];
      }
    }
    dev::group_sync(1 + group, S::kGroupThreads);
    UNROLL
    for (int slot = 0; slot < S::kSplits - 1; ++slot) {
      UNROLL
      for (int e = 0; e < kElements; ++e) {
        UNROLL
        for (int o = 0; o < S::kOut; ++o) sum[e][o] += partial[index(split, slot, o, e, lane)];
      }
    }
  }
};

// ---- one thread's place ----
// What forward and backward share. An element is out of bounds if its unit or its batch row does
// not exist: it computes zeros and stores nothing.
template <class S>
struct Worker {
  static constexpr int kElements = S::kElements;
  const Steps& steps;  // of the kernel's arguments
  const int hidden;    // the plan keeps T, B and H below 2^31; positions in tensors are 64-bit
  const int direction, warp, lane, group, split, tile;
  const int first_row;  // of the tile in the batch
  const int count;      // steps at which the tile has living rows: the first `count` in time
  Exchanger<S> exchanger;
  ResidentWeights<S> weights;

  DEVICE Worker(const Steps& all, int64_t H, const void* packed, int64_t packed_bytes,
                void* exchange)
      : steps(all),
        hidden(static_cast<int>(H)),
        direction(dev::block_y()),
        warp(dev::tid() / kWarpSize),
        lane(dev::tid() % kWarpSize),
        group(warp / S::kSplits),
        split(warp % S::kSplits),
        tile(dev::block_x() / S::kPeers),
        first_row(tile * S::kBatch),
        count(living_steps()) {
    const int rank = dev::block_x() % S::kPeers;
    exchanger = {nullptr, nullptr, rank, group, split, lane};
    if constexpr (S::kExchange == Exchange::kGrid) {
      const int64_t tiles = dev::grid_x() / S::kPeers, place = direction * tiles + tile;
      uint8_t* base = static_cast<uint8_t*>(exchange);
      exchanger.flags = reinterpret_cast<uint32_t*>(base) + place * S::kPeers;
      exchanger.global =
          base + flag_bytes(tiles * dev::grid_y(), S::kPeers) + place * 2 * S::kVectorBytes;
    }
    const int64_t fragments = (int64_t{rank} * S::kWarps + warp) * S::kFragments;
    weights.load(reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(packed) +
                                                direction * packed_bytes) +
                     fragments * kWarpSize,
                 S::kWeightsAt + warp * S::kShared * kFragmentBytes, lane);
  }

  DEVICE Walk walk() const { return {steps, direction == 1}; }

  DEVICE int living_steps() const {
    int low = 0, high = static_cast<int>(steps.count);  // steps.batch never increases
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (steps.batch_at(middle) > first_row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Of element e: its unit within the group and row within the tile, and both in the layer.
  DEVICE int group_unit(int e) const {
    return lane / 4 + Accumulator::unit(split * kElements) + Accumulator::unit(e);
  }
  DEVICE int tile_row(int e) const {
    return lane % 4 * 2 + Accumulator::batch(split * kElements) + Accumulator::batch(e);
  }
  DEVICE int unit(int e) const {
    return exchanger.rank * S::kUnits + group * kMmaUnits + group_unit(e);
  }
  DEVICE int row(int e) const { return first_row + tile_row(e); }
  DEVICE bool exists(int e) const { return unit(e) < hidden && row(e) < steps.largest; }
  DEVICE bool alive(int e, int t) const { return unit(e) < hidden && row(e) < steps.batch_at(t); }
  // Position in a tensor [D, B, H].
  DEVICE int64_t in_state(int e) const {
    return (direction * steps.largest + row(e)) * hidden + unit(e);
  }
  // Position in a timeline, of row `at` of this direction.
  DEVICE int64_t in_timeline(int64_t at, int e) const {
    return (direction * (steps.rows + steps.largest) + at) * hidden + unit(e);
  }
  // Position in a tensor [D, rows, slots*H].
  DEVICE int64_t in_rows(int t, int slots, int slot, int e) const {
    const int64_t at = direction * steps.rows + steps.offset_at(t) + row(e);
    return (at * slots + slot) * hidden + unit(e);
  }
  // Position in the output [rows, D*H].
  DEVICE int64_t in_output(int t, int e) const {
    return ((steps.offset_at(t) + row(e)) * dev::grid_y() + direction) * hidden + unit(e);
  }

  // sum[e][o] = the products of this thread's elements with the vector of a round.
  DEVICE void product(int round, float (&sum)[kElements][S::kOut]) const {
    float part[S::kChains][S::kOut][S::kColumns][4] = {};
    const uint8_t* from = exchanger.vector(round) +
                          split * S::kWarpTiles * S::kColumns * kTileBytes + lane * kRowBytes;
    constexpr int kTilesPerLoad = 2 / S::kColumns;
    UNROLL
    for (int k = 0; k < S::kWarpTiles; k += kTilesPerLoad) {
      uint32_t b[4];
      dev::ldm4(b, from + k * S::kColumns * kTileBytes);
      UNROLL
      for (int n = 0; n < 2; ++n) {  // of one load: the next tile, or the second column
        const int at = k + (S::kColumns == 1 ? n : 0), column = S::kColumns == 1 ? 0 : n;
        UNROLL
        for (int o = 0; o < S::kOut; ++o)
          weights.multiply_tile(part[at % S::kChains][o][column], at, o, b[2 * n], b[2 * n + 1]);
      }
    }
    UNROLL
    for (int chain = 1; chain < S::kChains; ++chain) {
      UNROLL
      for (int o = 0; o < S::kOut; ++o) {
        UNROLL
        for (int j = 0; j < 4 * S::kColumns; ++j)
          part[0][o][j / 4][j % 4] += part[chain][o][j / 4][j % 4];
      }
    }
    float* partial =
        reinterpret_cast<float*>(dev::smem() + S::kPartialAt) + group * S::kPartialFloats;
    Reduction<S>::run(part[0], sum, partial, group, split, lane);
  }
};

// ---- forward ----
template <class S>
struct ForwardWorker {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = Value<E>;
  static constexpr int kElements = S::kElements, kGates = Cell::kGates;
  const ForwardArgs<E>& a;
  Worker<S> self;
  float states[Cell::kStates][kElements];
  E x[kElements][kGates];  // of the step to come

  DEVICE ForwardWorker(const ForwardArgs<E>& args)
      : a(args), self(args.steps, args.hidden, args.w_hh, args.w_hh_bytes, args.exchange) {}

  DEVICE float* bias() const {  // [G][kUnits]
    return reinterpret_cast<float*>(dev::smem() + S::kBiasAt);
  }

  DEVICE void load_bias() const {
    for (int i = dev::tid(); i < kGates * S::kUnits; i += S::kThreads) {
      const int unit = self.exchanger.rank * S::kUnits + i % S::kUnits;
      const E* b_hh = a.b_hh[self.direction];
      const bool given = b_hh != nullptr && unit < self.hidden;
      bias()[i] = given ? widen(b_hh[i / S::kUnits * a.hidden + unit]) : 0.f;
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
          a.timelines[k][self.in_timeline(self.walk().initial(self.row(e)), e)] =
              narrow<E>(states[k][e]);
      }
    }
  }

  DEVICE void load_inputs(int t) {
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      const bool alive = self.alive(e, t);
      UNROLL
      for (int g = 0; g < kGates; ++g)
        x[e][g] = alive ? a.x_gates[self.in_rows(t, kGates, g, e)] : narrow<E>(0.f);
    }
  }

  DEVICE void update(int t, int e, const float (&sum)[kGates]) {
    constexpr int kSlots = Cell::kReserve > 0 ? Cell::kReserve : 1;
    V in[kGates], h[kGates], s[Cell::kStates], q[kSlots];
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      in[g] = widen(x[e][g]);
      h[g] = sum[g] + bias()[g * S::kUnits + self.group * kMmaUnits + self.group_unit(e)];
    }
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) s[k] = states[k][e];
    Cell::forward(in, h, s, q);
    if (!self.alive(e, t)) return;
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      states[k][e] = plain(s[k]);
      if (a.timelines[k] != nullptr)
        a.timelines[k][self.in_timeline(self.walk().after(t, self.row(e)), e)] =
            narrow<E>(states[k][e]);
    }
    a.output[self.in_output(t, e)] = narrow<E>(states[0][e]);
    if constexpr (Cell::kReserve > 0) {
      if (a.gates == nullptr) return;
      UNROLL
      for (int k = 0; k < Cell::kReserve; ++k)
        a.gates[self.in_rows(t, Cell::kReserve, k, e)] = narrow<E>(plain(q[k]));
    }
  }

  DEVICE int time(int n) const { return self.direction == 1 ? self.count - 1 - n : n; }

  DEVICE void step(int n) {
    if (n > 0) self.exchanger.receive(n);
    float sum[kElements][kGates];
    self.product(n, sum);
    UNROLL
    for (int e = 0; e < kElements; ++e) update(time(n), e, sum[e]);
    if (n + 1 == self.count) return;
    UNROLL
    for (int e = 0; e < kElements; ++e)
      self.exchanger.put(n + 1, 0, self.group_unit(e), self.tile_row(e), states[0][e]);
    self.exchanger.send(n + 1);
    load_inputs(time(n + 1));
  }

  DEVICE void run() {
    load_bias();
    load_first_vector();
    self.exchanger.init();
    load_states();
    load_inputs(time(0));
    for (int n = 0; n < self.count; ++n) step(n);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e)
        if (self.exists(e)) a.states_n[k][self.in_state(e)] = narrow<E>(states[k][e]);
    }
  }
};

// ---- backward ----
template <class S>
struct BackwardWorker {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = Value<E>;
  static constexpr int kElements = S::kElements, kGates = Cell::kGates;
  static constexpr int kSlots = Cell::kReserve > 0 ? Cell::kReserve : 1;
  struct Inputs {  // of one element at the step to come
    E gates[kSlots], before[Cell::kStates], after[Cell::kStates], grad;
  };
  const BackwardArgs<E>& a;
  Worker<S> self;
  float grads[Cell::kStates][kElements];  // of the states after the step to come
  Inputs in[kElements];

  DEVICE BackwardWorker(const BackwardArgs<E>& args)
      : a(args), self(args.steps, args.hidden, args.w_hh, args.w_hh_bytes, args.exchange) {}

  DEVICE void load_states() {
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e) {
        const bool given = a.grad_states_n[k] != nullptr && self.exists(e);
        grads[k][e] = given ? widen(a.grad_states_n[k][self.in_state(e)]) : 0.f;
      }
    }
  }

  DEVICE void load_inputs(int t) {
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      in[e] = Inputs{};
      if (!self.alive(e, t)) continue;
      const int row = self.row(e);
      if constexpr (Cell::kReserve > 0) {
        UNROLL
        for (int k = 0; k < Cell::kReserve; ++k)
          in[e].gates[k] = a.gates[self.in_rows(t, Cell::kReserve, k, e)];
      }
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k) {
        in[e].after[k] = a.timelines[k][self.in_timeline(self.walk().after(t, row), e)];
        in[e].before[k] = a.timelines[k][self.in_timeline(self.walk().before(t, row), e)];
      }
      if (a.grad_output != nullptr) in[e].grad = a.grad_output[self.in_output(t, e)];
    }
  }

  // The gate gradients of step t: to the results, and the hidden-side ones into `sent`.
  DEVICE void update(int t, int e, float (&sent)[kGates]) {
    UNROLL
    for (int g = 0; g < kGates; ++g) sent[g] = 0.f;
    if (!self.alive(e, t)) return;
    V q[kSlots], p[Cell::kStates], s[Cell::kStates], ds[Cell::kStates], dx[kGates], dh[kGates];
    UNROLL
    for (int k = 0; k < kSlots; ++k) q[k] = widen(in[e].gates[k]);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      p[k] = widen(in[e].before[k]), s[k] = widen(in[e].after[k]), ds[k] = grads[k][e];
    }
    ds[0] = ds[0] + V(widen(in[e].grad));
    Cell::backward(q, p, s, ds, dx, dh);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) grads[k][e] = plain(ds[k]);
    UNROLL
    for (int g = 0; g < kGates; ++g) {
      sent[g] = plain(dh[g]);
      a.grad_x_gates[self.in_rows(t, kGates, g, e)] = narrow<E>(plain(dx[g]));
      if (Cell::kSharedGates < Cell::kGates && a.grad_h_gates != nullptr)
        a.grad_h_gates[self.in_rows(t, kGates, g, e)] = narrow<E>(sent[g]);
    }
  }

  // What the step before sent back through w_hh.
  DEVICE void add_product(int round) {
    self.exchanger.receive(round);
    float sum[kElements][1];
    self.product(round, sum);
    UNROLL
    for (int e = 0; e < kElements; ++e) grads[0][e] += sum[e][0];
  }

  DEVICE int time(int n) const { return self.direction == 1 ? n : self.count - 1 - n; }

  DEVICE void step(int n) {
    if (n > 0) add_product(n);
    float sent[kElements][kGates];
    UNROLL
    for (int e = 0; e < kElements; ++e) update(time(n), e, sent[e]);
    const bool last = n + 1 == self.count;
    if (last && a.grad_states_0[0] == nullptr) return;
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      UNROLL
      for (int g = 0; g < kGates; ++g)
        self.exchanger.put(n + 1, g, self.group_unit(e), self.tile_row(e), sent[e][g]);
    }
    self.exchanger.send(n + 1);
    if (!last) load_inputs(time(n + 1));
  }

  DEVICE void run() {
    self.exchanger.init();
    load_states();
    load_inputs(time(0));
    for (int n = 0; n < self.count; ++n) step(n);
    if (a.grad_states_0[0] != nullptr) add_product(self.count);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) {
      UNROLL
      for (int e = 0; e < kElements; ++e)
        if (a.grad_states_0[k] != nullptr && self.exists(e))
          a.grad_states_0[k][self.in_state(e)] = narrow<E>(grads[k][e]);
    }
  }
};

template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads) persistent_forward(const ForwardArgs<typename S::Element> args) {
  ForwardWorker<S>(args).run();
}
template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads)
    persistent_backward(const BackwardArgs<typename S::Element> args) {
  BackwardWorker<S>(args).run();
}

}  // namespace rnnfast::cuda
