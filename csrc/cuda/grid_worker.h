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

#include "cuda/grid_exchange.h"
#include "cuda/grid_layout.h"
#include "unit.h"

namespace rnnfast::cuda {

// What forward and backward share: a thread's place, the product of a step. A thread of an active
// warp finishes two neighbouring units of one row of each part, a pair.
template <class S>
struct GridWorker {
  using E = typename S::Element;
  using Stored = StoredPair<E>;
  static constexpr int kNoSeat = 1 << 30;
  static_assert(kNoSeat > kMostRows);
  const Steps& steps;
  const int hidden;  // the plan keeps T, B and H below 2^31; positions in tensors are 64-bit
  const int direction, warp, lane, rank, parts;
  const int first_row;  // of the CTA's first part in the batch
  const int count;      // steps at which the CTA has living rows: the first `count` in time
  const bool active;
  int unit, row, seat;         // of the pair, in the layer and in the part; no seat: does not exist
  bool second;                 // whether the second unit of the pair exists
  bool even;                   // pairs are aligned in all tensors, and have both units
  const int64_t step_numbers;  // [B, H]
  int64_t origin;              // position of the pair's row in the first part at step 0, see Place
  int64_t output_shift;        // of direction 1
  int partial_read, partial_write, flip = 0;  // places in shared memory
  GridExchange<S> exchange;
  ResidentWeights<S> weights;
  uint4 asked[S::kChunk];  // the first operands of the next product

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
        count(steps.living(first_row)),
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
    output_shift = direction == 1 ? H - all.rows * H * dev::grid_y() : 0;
    const int64_t group =
        int64_t{direction} * (dev::grid_x() / S::kPeers) + dev::block_x() / S::kPeers;
    exchange.place(static_cast<uint8_t*>(memory) + group * parts * kGridRing * S::kRoundBytes, warp,
                   lane, rank * S::kBlocks + block, g, row);
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

  // Where a step lies for a part: how many rows are alive from its first one on, and the position
  // of the thread's row in a tensor [D, rows, H]. That of a whole step is that of its first part.
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
  DEVICE Place next_part(const Place& at) const {
    return {at.living - S::kRows, at.position + S::kRows * hidden};
  }
  // Number by number: a choice between two structs would go through memory.
  static DEVICE Place choose(bool first, const Place& a, const Place& b) {
    return {first ? a.living : b.living, first ? a.position : b.position};
  }
  // Parts that have living rows are the first ones.
  DEVICE int living_parts(const Place& at) const {
    const int n = (at.living + S::kRows - 1) / S::kRows;
    return n < parts ? n : parts;
  }
  DEVICE bool alive(const Place& at) const { return seat < at.living; }
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
    return (position << (dev::grid_y() - 1)) + output_shift + unit;
  }

  DEVICE Stored load_pair(const E* p) const {
    if (even) return {*reinterpret_cast<const typename Stored::Bits*>(p)};
    return Stored::of(widen(p[0]), second ? widen(p[1]) : 0.f);
  }
  DEVICE void store_pair(E* p, const Stored& pair) const {
    if (even) {
      *reinterpret_cast<typename Stored::Bits*>(p) = pair.bits;
    } else {
      p[0] = narrow<E>(pair.number(0));
      if (second) p[1] = narrow<E>(pair.number(1));
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

  // What a thread brings into the L2 cache two steps ahead: a line of one slot of one row of a
  // part. Inputs come from global memory, and the product of a part is shorter than a read.
  struct Prefetch {
    const E* from;  // at the position of the thread's own row
    int row, slots;

    DEVICE void run(const Place& at) const {
      if (row < at.living) dev::prefetch_l2(from + at.position * slots);
    }
  };
  // Threads from the last one on, as others may finish units; of `slots` slots each row has.
  struct Piece {
    int row, slot;
  };
  static DEVICE Piece piece(int slots) {
    const int i = S::kThreads - 1 - dev::tid();
    return {i / slots, i % slots};
  }
  // Of `slots` numbers of each unit, side by side: the CTA's units may be fewer than it has room
  // for.
  DEVICE bool begins_inside(const Piece& p, int slots) const {
    return p.slot * S::kUnits < (hidden - rank * S::kUnits) * slots;
  }
  DEVICE int prefetched_row(const Piece& p, bool wanted) const {
    return wanted && p.row < S::kRows && rank * S::kUnits < hidden ? p.row : kNoSeat;
  }
  // Of the thread's piece against its own row and pair, in a tensor of so many slots a row.
  DEVICE int ahead(const Piece& p, int slots, int slot) const {
    return ((p.row - row) * slots + slot) * hidden + rank * S::kUnits;
  }

  // A state of the pair, between the steps of its part.
  DEVICE Pair& state(int part, int k) const {
    return reinterpret_cast<Pair*>(
        dev::smem() +
        S::kStatesAt)[(part * S::Cell::kStates + k) * S::kActive * kWarpSize + dev::tid()];
  }

  // The product to come, if it is known to have been sent.
  struct Next {
    bool sent;
    int round, part;
  };

  // sum[o]: the products of this thread's pair with the vector of a round, of which the first
  // operands have been asked for; in active warps. Meets the CTA: all warps have then received.
  // What an operand leaves free is asked for at once, of this vector and then of the next one, so
  // that some are always on their way.
  DEVICE void product(int round, int part, const Next& next, float (&sum)[S::kOut][2]) {
    constexpr int kM = S::kOut * S::kBlocks, kTilesOfLoad = 2 / S::kColumns;
    SumOf<S> acc[S::kChains][kM][S::kColumns] = {};
    const uint8_t *here = exchange.operands(round, part),
                  *there = exchange.operands(next.round, next.part);
    UNROLL
    for (int first = 0; first < S::kLoads; first += S::kChunk) {
      exchange.receive(asked, here, first);
      UNROLL
      for (int k = 0; k < S::kChunk; ++k) {
        UNROLL
        for (int n = 0; n < 2; ++n) {  // of one load: the next tile, or the second column
          const int tile = (first + k) * kTilesOfLoad + (kTilesOfLoad == 2 ? n : 0);
          const int column = kTilesOfLoad == 2 ? 0 : n;
          const uint32_t b0 = n == 0 ? asked[k].x : asked[k].z,
                         b1 = n == 0 ? asked[k].y : asked[k].w;
          UNROLL
          for (int m = 0; m < kM; ++m)
            weights.multiply(acc[tile % S::kChains][m][column], tile * kM + m, b0, b1);
        }
        if (first + S::kChunk < S::kLoads)
          asked[k] = exchange.load(here, first + S::kChunk + k);
        else if (next.sent)
          asked[k] = exchange.load(there, k);
      }
    }
    if constexpr (S::kPartials == 1) dev::cta_sync();  // all have read the last sums
    UNROLL
    for (int m = 0; m < kM; ++m) {
      UNROLL
      for (int n = 0; n < S::kColumns; ++n) {
        float (&v)[4] = acc[0][m][n].value;
        acc[0][m][n].end();
        UNROLL
        for (int chain = 1; chain < S::kChains; ++chain) {
          acc[chain][m][n].end();
          UNROLL
          for (int j = 0; j < 4; ++j) v[j] += acc[chain][m][n].value[j];
        }
        uint4 u;  // the pairs of two rows
        u.x = as_bits(v[0]), u.y = as_bits(v[2]), u.z = as_bits(v[1]), u.w = as_bits(v[3]);
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
          const Pair pair = *reinterpret_cast<const Pair*>(dev::smem() + flip + partial_read +
                                                           (w * S::kOut + o) * S::kBlocks *
                                                               S::kColumns * kFragmentBytes);
          sum[o][0] += pair.number[0], sum[o][1] += pair.number[1];
        }
      }
    }
    if constexpr (S::kPartials == 2) flip ^= S::kPartialBytes;
  }
};

}  // namespace rnnfast::cuda
