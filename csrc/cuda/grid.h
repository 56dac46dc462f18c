// The time loop of a layer in one launch for large H or batch: the CTAs of a cooperative grid. A
// CTA owns 16 or 32 units, with their weights as operands of the tensor cores in registers (a share
// in shared memory), and one or more parts of 8 or 16 rows of the batch; the CTAs of the same rows
// are a group, and groups never talk.
//
// Its 8 warps share K, so no number of the exchanged vector is wanted by two warps of a CTA: each
// warp loads its own from global memory straight into the registers that the tensor cores take
// (vectors lie there in that order), without a stage and with one barrier of the CTA a step. Parts
// take turns: while the vector of one is on its way, another is multiplied.
#pragma once

#include "cells.h"
#include "cuda/grid_exchange.h"
#include "cuda/grid_layout.h"

namespace rnnfast::cuda {

// What forward and backward share: a thread's place, the product of a step. A thread of an active
// warp finishes two neighbouring units of one row of each part, a pair.
template <class S>
struct GridWorker {
  using E = typename S::Element;
  static constexpr int kNoSeat = 1 << 24;
  const Steps& steps;
  const int hidden;  // the plan keeps T, B and H below 2^31; positions in tensors are 64-bit
  const int direction, warp, lane, rank, parts;
  const int first_row;  // of the CTA's first part in the batch
  const int count;      // steps at which the CTA has living rows: the first `count` in time
  const bool active;
  int unit, row, seat;         // of the pair, in the layer and in the part; no seat: does not exist
  bool second;                 // whether the second unit of the pair exists
  bool even;                   // pairs are aligned in all tensors
  const int64_t step_numbers;  // [B, H]
  int64_t origin;              // position of the pair's row in the first part at step 0, see Place
  int partial_read, partial_write, flip = 0;  // places in shared memory
  GridExchange<S> exchange;
  ResidentWeights<S> weights;

  DEVICE GridWorker(const Steps& all, int64_t H, int parts_of_a_group, const void* packed,
                    int64_t packed_bytes, void* memory)
      : steps(all),
        hidden(static_cast<int>(H)),
        direction(dev::block_y()),
        warp(dev::tid() / kWarpSize),
        lane(dev::tid() % kWarpSize),
        rank(dev::block_x() % S::kPeers),
        parts(parts_of_a_group),
        first_row(dev::block_x() / S::kPeers * parts * S::kRows),
        count(living_steps(first_row)),
        active(warp < S::kActive),
        step_numbers(all.largest * H) {
    const int upper = lane >> 4, g = lane >> 1 & 7;  // of 8 pairs of units
    const int block = S::kRows == 16 ? warp / 4 : S::kBlocks == 2 ? upper : 0;
    const int rows2 = S::kRows == 8 && S::kBlocks == 1 ? warp % 2 * 2 + upper : warp % 4;
    const int column = S::kRows == 16 ? upper : 0;
    unit = rank * S::kUnits + block * kMmaUnits + 2 * g;
    row = column * kMmaBatch + rows2 * 2 + (lane & 1);
    seat = active && unit < hidden ? row : kNoSeat;
    second = unit + 1 < hidden;
    origin = (direction * all.rows + first_row + row) * H;
    const int64_t group = int64_t{direction} * (dev::grid_x() / S::kPeers) + dev::block_x() / S::kPeers;
    exchange.place(static_cast<uint8_t*>(memory) + group * parts * kGridRing * S::kRoundBytes,
                   warp, lane, rank * S::kBlocks + block, g, row);
    // 16 bytes of a lane's sums, in an order that spreads a read over the banks.
    const int q = lane % 4;
    partial_write = S::kPartialAt + warp * S::kOut * S::kBlocks * S::kColumns * kFragmentBytes +
                    (lane / 4 * 4 + (q ^ lane / 8)) * 16;
    partial_read = S::kPartialAt + (block * S::kColumns + column) * kFragmentBytes +
                   (g * 4 + (rows2 ^ g >> 1)) * 16 + (lane & 1) * 8;
    const int64_t fragments = (int64_t{rank} * S::kWarps + warp) * S::kFragments;
    weights.load(reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(packed) +
                                                direction * packed_bytes) +
                     fragments * kWarpSize,
                 warp * S::kShared * kFragmentBytes, lane);
  }

  // Whether two numbers at `p` may be read at once: `p` is the beginning of a tensor [*, H].
  DEVICE bool aligned(const void* p) const {
    return hidden % 2 == 0 && reinterpret_cast<uintptr_t>(p) % (2 * sizeof(E)) == 0;
  }

  // Of the steps, those at which a row of the batch is alive.
  DEVICE int living_steps(int64_t of_row) const {
    if (steps.batch == nullptr)
      return of_row < steps.largest ? static_cast<int>(steps.count) : 0;
    int low = 0, high = static_cast<int>(steps.count);  // steps.batch never increases
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (steps.batch[middle] > of_row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Where a step lies: how many rows of the CTA are alive, and the position of the thread's row of
  // the first part in a tensor [D, rows, H].
  struct Place {
    int living;
    int64_t position;
  };
  DEVICE Place place(int t) const {
    const bool inside = static_cast<unsigned>(t) < static_cast<unsigned>(count);
    if (steps.batch == nullptr)
      return {inside ? static_cast<int>(steps.largest) - first_row : 0, t * step_numbers + origin};
    if (!inside) return {0, 0};
    return {static_cast<int>(steps.batch[t]) - first_row, steps.offset[t] * hidden + origin};
  }
  // Parts that have living rows are the first ones.
  DEVICE int living_parts(const Place& at) const {
    const int n = (at.living + S::kRows - 1) / S::kRows;
    return n < parts ? n : parts;
  }
  DEVICE int64_t position(const Place& at, int part) const {
    return at.position + static_cast<int64_t>(part * S::kRows) * hidden;
  }
  DEVICE bool alive(const Place& at, int part) const {
    return seat + part * S::kRows < at.living;
  }
  DEVICE bool exists(int part) const {
    return seat + part * S::kRows < static_cast<int>(steps.largest) - first_row;
  }
  // Of the pair in [D, B, H].
  DEVICE int64_t in_state(int part) const {
    return (direction * steps.largest + first_row + part * S::kRows + row) * hidden + unit;
  }
  // In a tensor [D, rows, slots*H], a timeline (after the step; at the place of initial(), before
  // all of them) and the output [rows, D*H].
  DEVICE int64_t in_rows(int64_t position, int slots) const { return position * slots + unit; }
  DEVICE int64_t in_timeline(int64_t position) const { return position + step_numbers + unit; }
  DEVICE int64_t initial(int part) const {
    const int64_t first = direction == 1 ? steps.rows * hidden : -step_numbers;
    return origin + first + static_cast<int64_t>(part * S::kRows) * hidden;
  }
  DEVICE int64_t in_output(int64_t position) const {
    const int64_t shift = direction == 1 ? hidden - steps.rows * hidden * dev::grid_y() : 0;
    return position * dev::grid_y() + shift + unit;
  }

  // The pair at `p`, the first number in the low half, and back.
  DEVICE uint32_t load_pair(const E* p) const {
    if (even) return *reinterpret_cast<const uint32_t*>(p);
    return as_halves(p[0], second ? p[1] : narrow<E>(0.f));
  }
  DEVICE void store_pair(E* p, uint32_t pair) const {
    if (even) {
      *reinterpret_cast<uint32_t*>(p) = pair;
    } else {
      p[0] = half_of<E>(pair, 0);
      if (second) p[1] = half_of<E>(pair, 1);
    }
  }
  // The pair at `p`, which need not be aligned, as floats; zeros where there is nothing.
  struct Pair {
    float number[2];
  };
  DEVICE Pair widen_pair(const E* tensor, int64_t at, bool wanted) const {
    Pair pair = {{0.f, 0.f}};
    if (tensor == nullptr || !wanted) return pair;
    pair.number[0] = widen(tensor[at]);
    if (second) pair.number[1] = widen(tensor[at + 1]);
    return pair;
  }
  DEVICE void narrow_pair(E* tensor, int64_t at, const Pair& pair) const {
    tensor[at] = narrow<E>(pair.number[0]);
    if (second) tensor[at + 1] = narrow<E>(pair.number[1]);
  }

  // A state of the pair, between the steps of its part.
  DEVICE Pair& state(int part, int k) const {
    return reinterpret_cast<Pair*>(dev::smem() + S::kStatesAt)[(part * S::Cell::kStates + k) *
                                                                   S::kActive * kWarpSize +
                                                               dev::tid()];
  }

  // sum[o]: the products of this thread's pair with the vector of a round, in active warps. Meets
  // the CTA: all warps have then received.
  DEVICE void product(int round, int part, float (&sum)[S::kOut][2]) {
    constexpr int kM = S::kOut * S::kBlocks, kTilesOfLoad = 2 / S::kColumns;
    float acc[S::kChains][kM][S::kColumns][4] = {};
    UNROLL
    for (int first = 0; first < S::kLoads; first += S::kChunk) {
      uint4 v[S::kChunk];
      exchange.receive(v, round, part, first);
      UNROLL
      for (int k = 0; k < S::kChunk; ++k) {
        UNROLL
        for (int n = 0; n < 2; ++n) {  // of one load: the next tile, or the second column
          const int tile = (first + k) * kTilesOfLoad + (kTilesOfLoad == 2 ? n : 0);
          const int column = kTilesOfLoad == 2 ? 0 : n;
          const uint32_t b0 = n == 0 ? v[k].x : v[k].z, b1 = n == 0 ? v[k].y : v[k].w;
          UNROLL
          for (int m = 0; m < kM; ++m)
            weights.multiply(acc[tile % S::kChains][m][column], tile * kM + m, b0, b1);
        }
      }
    }
    if constexpr (S::kPartials == 1) dev::cta_sync();  // all have read the last sums
    UNROLL
    for (int m = 0; m < kM; ++m) {
      UNROLL
      for (int n = 0; n < S::kColumns; ++n) {
        UNROLL
        for (int chain = 1; chain < S::kChains; ++chain) {
          UNROLL
          for (int j = 0; j < 4; ++j) acc[0][m][n][j] += acc[chain][m][n][j];
        }
        uint4 u;  // the pairs of two rows
        u.x = as_bits(acc[0][m][n][0]), u.y = as_bits(acc[0][m][n][2]);
        u.z = as_bits(acc[0][m][n][1]), u.w = as_bits(acc[0][m][n][3]);
        *reinterpret_cast<uint4*>(dev::smem() + flip + partial_write +
                                  (m * S::kColumns + n) * kFragmentBytes) = u;
      }
    }
    dev::cta_sync();
    UNROLL
    for (int o = 0; o < S::kOut; ++o) sum[o][0] = sum[o][1] = 0.f;
    if (active) {
      UNROLL
      for (int w = 0; w < S::kWarps; ++w) {
        UNROLL
        for (int o = 0; o < S::kOut; ++o) {
          const Pair pair = *reinterpret_cast<const Pair*>(
              dev::smem() + flip + partial_read +
              (w * S::kOut + o) * S::kBlocks * S::kColumns * kFragmentBytes);
          sum[o][0] += pair.number[0], sum[o][1] += pair.number[1];
        }
      }
    }
    if constexpr (S::kPartials == 2) flip ^= S::kPartialBytes;
  }
};

// ---- forward ----
template <class S>
struct GridForward {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = typename S::Number;
  using Worker = GridWorker<S>;
  using Pair = typename Worker::Pair;
  using Place = typename Worker::Place;
  static constexpr int kGates = Cell::kGates, kReserve = Cell::kReserve;
  static constexpr int kSlots = kReserve > 0 ? kReserve : 1;
  const ForwardArgs<E>& a;
  Worker self;
  uint32_t x[kGates];  // of the step to come

  DEVICE GridForward(const GridForwardArgs<E>& args)
      : a(args.layer),
        self(a.steps, a.hidden, args.parts, a.packed, a.packed_bytes, a.exchange) {
    bool even = self.aligned(a.x_gates) && self.aligned(a.output);
    for (const E* timeline : a.timelines) even = even && self.aligned(timeline);
    self.even = even && self.aligned(a.gates);
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
    const int living = self.living_steps(self.first_row + part * S::kRows);
    const int first = self.direction == 1 ? self.count - living : 0;
    self.exchange.publish(first, part, 0, dev::pack2<E>(h.number[0], h.number[1]));
  }

  DEVICE void load_inputs(const Place& at, int part) {
    if (!self.alive(at, part)) return;
    const E* p = a.x_gates + self.in_rows(self.position(at, part), kGates);
    UNROLL
    for (int g = 0; g < kGates; ++g, p += self.hidden) x[g] = self.load_pair(p);
  }

  // The states after the step, and what is kept of it; a row that is not alive keeps its states.
  DEVICE void update(const Place& at, int part, const float (&sum)[kGates][2],
                     Pair (&states)[Cell::kStates], uint32_t (&kept)[kSlots]) const {
    const bool alive = self.alive(at, part);
    Pair reserve[kSlots];
    UNROLL
    for (int i = 0; i < 2; ++i) {
      const int unit = self.unit - self.rank * S::kUnits + i;
      V in[kGates], h[kGates], s[Cell::kStates], q[kSlots];
      UNROLL
      for (int g = 0; g < kGates; ++g) {
        in[g] = widen(half_of<E>(x[g], i)), h[g] = sum[g][i] + bias(0, g)[unit];
        if (g >= Cell::kSharedGates) in[g] = in[g] + V(bias(1, g)[unit]);
      }
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k) s[k] = states[k].number[i];
      Cell::forward(in, h, s, q);
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k)
        states[k].number[i] = alive ? plain(s[k]) : states[k].number[i];
      UNROLL
      for (int k = 0; k < kReserve; ++k) reserve[k].number[i] = plain(q[k]);
    }
    UNROLL
    for (int k = 0; k < kReserve; ++k)
      kept[k] = dev::pack2<E>(reserve[k].number[0], reserve[k].number[1]);
  }

  DEVICE void store(const Place& at, int part, const uint32_t (&states)[Cell::kStates],
                    const uint32_t (&kept)[kSlots]) const {
    if (!self.alive(at, part)) return;
    const int64_t position = self.position(at, part);
    self.store_pair(a.output + self.in_output(position), states[0]);
    if (a.timelines[0] == nullptr) return;
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k)
      self.store_pair(a.timelines[k] + self.in_timeline(position), states[k]);
    if constexpr (kReserve > 0) {
      E* p = a.gates + self.in_rows(position, kReserve);
      UNROLL
      for (int k = 0; k < kReserve; ++k, p += self.hidden) self.store_pair(p, kept[k]);
    }
  }

  // First what the other CTAs wait for.
  DEVICE void step(int n, int part, const Place& at) {
    float sum[kGates][2];
    self.product(n, part, sum);
    if (!self.active) return;
    Pair states[Cell::kStates];
    uint32_t halves[Cell::kStates], kept[kSlots];
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) states[k] = self.state(part, k);
    update(at, part, sum, states, kept);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k)
      halves[k] = dev::pack2<E>(states[k].number[0], states[k].number[1]);
    self.exchange.publish(n + 1, part, 0, halves[0]);
    self.exchange.clear(n - 1, part, 0);
    UNROLL
    for (int k = 0; k < Cell::kStates; ++k) self.state(part, k) = states[k];
    store(at, part, halves, kept);
  }

  DEVICE int time(int n) const { return self.direction == 1 ? self.count - 1 - n : n; }

  DEVICE void run() {
    load_bias();
    for (int part = 0; part < self.parts; ++part) begin(part);
    dev::cta_sync();
    Place at = self.place(time(0));
    load_inputs(at, 0);
    int fence = 0;
    for (int n = 0; n < self.count; ++n) {
      const Place next = self.place(time(n + 1));
      const int living = self.living_parts(at);
      for (int part = 0; part < living; ++part) {
        step(n, part, at);
        const bool last = part + 1 == living;
        load_inputs(last ? next : at, last ? 0 : part + 1);
      }
      at = next;
      if (++fence == kGridFence) dev::fence_words(), fence = 0;
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
