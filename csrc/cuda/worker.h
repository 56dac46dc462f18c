// What forward and backward of the whole-sequence kernels share: where a thread stands, and the
// products with the resident weights.
#pragma once

#include "cuda/args.h"
#include "cuda/exchanger.h"
#include "cuda/weights.h"

namespace rnnfast::cuda {

// ---- the sum over the splits of K ----
// Each warp finishes kElements of its accumulators per output: it hands the others theirs and adds
// in a fixed order what it gets. Its own come first: accumulator j of a warp is that of the group's
// element j ^ split * kElements, as its weights and the batch rows it multiplies are laid out so.
// Then all choices among registers are known to the compiler.
template <class S>
struct Reduction {
  static constexpr int kElements = S::kElements, kNumbers = kElements * S::kOut;
  static constexpr int kWide = kNumbers % 4 == 0 ? 4 : kNumbers % 2 == 0 ? 2 : 1;
  static constexpr int kPieces = kNumbers / kWide;
  struct alignas(4 * kWide) Piece {
    float number[kWide];
  };

  static DEVICE int index(int receiver, int slot, int piece, int lane) {
    return ((receiver * (S::kSplits - 1) + slot) * kPieces + piece) * kWarpSize + lane;
  }

  static DEVICE void run(const float (&acc)[S::kOut][S::kColumns][4],
                         float (&sum)[kElements][S::kOut], uint8_t* buffer, int group, int split,
                         int lane) {
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      UNROLL
      for (int o = 0; o < S::kOut; ++o) sum[e][o] = acc[o][e / 4][e % 4];
    }
    if constexpr (S::kSplits > 1) {
      Piece* partial = reinterpret_cast<Piece*>(buffer);
      UNROLL
      for (int d = 1; d < S::kSplits; ++d) {
        UNROLL
        for (int p = 0; p < kPieces; ++p) {
          Piece piece;
          UNROLL
          for (int w = 0; w < kWide; ++w) {
            const int i = p * kWide + w, j = d * kElements + i % kElements;
            piece.number[w] = acc[i / kElements][j / 4][j % 4];
          }
          partial[index(split ^ d, d - 1, p, lane)] = piece;
        }
      }
      dev::group_sync(1 + group, S::kGroupThreads);
      UNROLL
      for (int slot = 0; slot < S::kSplits - 1; ++slot) {
        UNROLL
        for (int p = 0; p < kPieces; ++p) {
          const Piece piece = partial[index(split, slot, p, lane)];
          UNROLL
          for (int w = 0; w < kWide; ++w) {
            const int i = p * kWide + w;
            sum[i % kElements][i / kElements] += piece.number[w];
          }
        }
      }
    }
  }
};

// Where a step lies: how many rows of the tile are alive, and the position of the thread's first
// batch row in a tensor [D, rows, H]. Positions in all other tensors follow.
struct Place {
  int living;
  int64_t position;
};

// Which batch rows of a thread begin anew between two steps, so that these pass nothing on.
template <class S>
struct Border {
  static constexpr int kRows = S::kElements < 4 ? S::kElements : S::kElements / 2;
  bool anew[kRows];

  static constexpr DEVICE int element(int r) { return r % 2 + r / 2 * 4; }  // the first of the row
  DEVICE bool is_at(int e) const { return anew[kRows == 1 ? 0 : e % 2 + e / 4 * 2]; }
};

// ---- one thread's place ----
// What forward and backward share. An element is out of bounds if its unit or its batch row does
// not exist: it computes zeros and stores nothing.
// Positions of elements are those of element 0 plus what the compiler knows; few numbers lead to
// them, as registers are for weights.
template <class S>
struct Worker {
  static constexpr int kElements = S::kElements;
  static constexpr int kNoSeat = 1 << 30;
  static_assert(kNoSeat > kMostRows);
  const Steps& steps;  // of the kernel's arguments
  const int hidden;    // the plan keeps T, B and H below 2^31; positions in tensors are 64-bit
  const int direction, warp, lane, group, split, tile;
  const int first_row;         // of the tile in the batch
  const int count;             // steps at which the tile has living rows: the first `count` in time
  const int all_living;        // rows of the tile
  const int64_t step_numbers;  // [B, H]
  int64_t origin;              // position of the first element's row at time 0
  int64_t initial;             // that of its initial state, if timelines began with the steps
  int64_t stride;              // of a dense sequence, from one step to the next
  int64_t output_shift;        // of direction 1
  int first_unit;              // of the first element, in the layer
  Exchanger<S> exchanger;
  ResidentWeights<S> weights;
  int seat[S::kOwnUnits];  // tile row of the first element of a unit; kNoSeat if there is no such

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
        count(steps.living(first_row)),
        all_living(static_cast<int>(all.largest) - first_row),
        step_numbers(all.largest * H) {
    const int rank = dev::block_x() % S::kPeers;
    exchanger.rank = rank, exchanger.group = group, exchanger.split = split, exchanger.lane = lane;
    exchanger.global = nullptr, exchanger.flags = nullptr;
    if constexpr (S::kExchange == Exchange::kGrid) {
      const int64_t tiles = dev::grid_x() / S::kPeers, place = direction * tiles + tile;
      uint8_t* base = static_cast<uint8_t*>(exchange);
      exchanger.flags = reinterpret_cast<uint32_t*>(base) + place * S::kPeers;
      exchanger.global =
          base + flag_bytes(tiles * dev::grid_y(), S::kPeers) + place * 2 * S::kVectorBytes;
    }
    exchanger.place();
    // Kept as they are: the compiler would rather compute them again at every step.
    origin = dev::opaque((direction * all.rows + row(0)) * H);
    initial = dev::opaque(origin + (direction == 1 ? all.rows * H : -step_numbers));
    stride = dev::opaque(backward_in_time() ? -step_numbers : step_numbers);
    first_unit = unit(0);
    output_shift = shift_of(direction);
    UNROLL
    for (int u = 0; u < S::kOwnUnits; ++u) seat[u] = unit(2 * u) < hidden ? tile_row(0) : kNoSeat;
    const int64_t fragments = (int64_t{rank} * S::kWarps + warp) * S::kFragments;
    weights.load(reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(packed) +
                                                direction * packed_bytes) +
                     fragments * kWarpSize,
                 S::kWeightsAt + warp * S::kShared * kFragmentBytes, lane);
  }

  DEVICE bool backward_in_time() const { return (direction == 1) != S::kBackward; }
  DEVICE Place first_place() const {
    const int t = backward_in_time() ? count - 1 : 0;
    return {static_cast<int>(steps.batch_at(t)) - first_row, steps.offset_at(t) * hidden + origin};
  }
  // Of step n, from that of the step before. Nothing is alive after the last step.
  DEVICE Place next_place(const Place& before, int n) const {
    if (steps.batch == nullptr) return {n < count ? all_living : 0, before.position + stride};
    if (n >= count) return {0, before.position};
    const int t = backward_in_time() ? count - 1 - n : n;
    return {static_cast<int>(steps.batch[t]) - first_row, steps.offset[t] * hidden + origin};
  }
  // Of a row's state before a step that follows on the step at `then`, in a timeline.
  DEVICE int64_t before(int row_seat, const Place& then) const {
    return steps.batch == nullptr || row_seat < then.living ? then.position : initial;
  }

  // Whether rows may begin anew between step n and the next one, in either direction of time.
  DEVICE bool has_border(const bool* begins, int n) const {
    return begins != nullptr && n + 1 < count;
  }
  // And which of the thread's do. To be found where it is needed: to keep it takes registers.
  DEVICE Border<S> border(const bool* begins, int n) const {
    // Opaque, or the compiler keeps addresses from step to step.
    const int time = dev::opaque(backward_in_time() ? count - 1 - n : n + 1);
    const int first = dev::opaque(seat[0]);
    const bool* of_rows = begins + (time * steps.largest + (first_row + first));
    Border<S> result;
    UNROLL
    for (int r = 0; r < Border<S>::kRows; ++r) {
      const int batch = Accumulator::batch(Border<S>::element(r));
      result.anew[r] = first + batch < all_living && of_rows[batch];
    }
    return result;
  }

  // Of element e: its unit within the group and row within the tile, and both in the layer.
  DEVICE int group_unit(int e) const {
    return lane / 4 + Accumulator::unit(split * kElements) + Accumulator::unit(e);
  }
  DEVICE int tile_row(int e) const {
    return lane % 4 * 2 + Accumulator::batch(split * kElements) + Accumulator::batch(e);
  }
  DEVICE int first_unit_of_group() const { return exchanger.rank * S::kUnits + group * kMmaUnits; }
  DEVICE int unit(int e) const { return first_unit_of_group() + group_unit(e); }
  DEVICE int row(int e) const { return first_row + tile_row(e); }
  // `living` of the rows of the tile are.
  DEVICE bool alive(int e, int living) const {
    return seat[S::own_unit(e)] + Accumulator::batch(e) < living;
  }
  DEVICE bool exists(int e) const { return alive(e, all_living); }
  // Position in a tensor [D, B, H].
  DEVICE int64_t in_state(int e) const {
    return (direction * steps.largest + row(e)) * hidden + unit(e);
  }
  // Of element 0 in a tensor [D, rows, slots*H], a timeline (the state after the step; for
  // `initial`, that before all), the output [rows, D*H].
  DEVICE int64_t in_rows(int64_t position, int slots) const {
    return position * slots + first_unit;
  }
  DEVICE int64_t in_timeline(int64_t position) const {
    return position + step_numbers + first_unit;
  }
  DEVICE int64_t shift_of(int d) const {
    return d == 1 ? hidden - steps.rows * hidden * dev::grid_y() : 0;
  }
  DEVICE int64_t in_output(int64_t position) const {
    // Backward a register less: there it is rarely asked for.
    const int64_t shift = S::kBackward ? shift_of(dev::block_y()) : output_shift;
    return (position << (dev::grid_y() - 1)) + shift + first_unit;
  }
  // Calls f(pointer, e, slot) for all elements and `slots` numbers each, which lie H apart, as
  // rows do: from the place of element 0. The compiler is kept from computing each pointer from the
  // first one, at five instructions, where one leads from number to number.
  template <int kSlots, class T, class F>
  DEVICE void walk_rows(T* first, F f) const {
    UNROLL
    for (int e = 0; e < kElements; e += 2) {
      T* p = first + Accumulator::batch(e) * kSlots * hidden + Accumulator::unit(e);
      UNROLL
      for (int i = 0; i < (kElements > 1 ? 2 : 1) * kSlots; ++i) {
        if (i > 0) p = dev::opaque_global(p + hidden);
        f(p, e + i / kSlots, i % kSlots);
      }
    }
  }
  // The same, of one number each, for the output.
  template <class T, class F>
  DEVICE void walk_output(T* first, F f) const {
    UNROLL
    for (int e = 0; e < kElements; ++e)
      f(first + Accumulator::batch(e) * static_cast<int>(dev::grid_y()) * hidden +
            Accumulator::unit(e),
        e);
  }

  static DEVICE void load_tiles(uint32_t (&b)[4], const uint8_t* row) {
    if constexpr (S::kTransposed)
      dev::ldm4_transposed(b, row);
    else
      dev::ldm4(b, row);
  }

  // sum[e][o] = start[o], of the element's unit, plus the products of this thread's elements with
  // the vector of a round.
  DEVICE void product(int round, const float (&start)[S::kOut][S::kOwnUnits],
                      float (&sum)[kElements][S::kOut]) const {
    SumOf<S> part[S::kChains][S::kOut][S::kColumns] = {};
    UNROLL
    for (int o = 0; o < S::kOut; ++o) {
      UNROLL
      for (int e = 0; e < kElements; ++e) part[0][o][e / 4].value[e % 4] = start[o][S::own_unit(e)];
    }
    // The batch row, and the column, of the warp's own accumulators come first.
    constexpr int kLoadedColumn = S::kColumns == 2 ? kTileBytes : 0;
    const int own = split * kElements;
    const int lane_at = (lane * kRowBytes) ^ (own & 1) * kRowBytes ^ (own >> 2 & 1) * kLoadedColumn;
    const uint8_t* from =
        exchanger.vector(round) + split * S::kWarpTiles * S::kColumns * kTileBytes + lane_at;
    constexpr int kTilesPerLoad = 2 / S::kColumns;
    UNROLL
    for (int k = 0; k < S::kWarpTiles; k += kTilesPerLoad) {
      uint32_t b[4];
      load_tiles(b, from + k * S::kColumns * kTileBytes);
      UNROLL
      for (int n = 0; n < 2; ++n) {  // of one load: the next tile, or the second column
        const int at = k + (S::kColumns == 1 ? n : 0), column = S::kColumns == 1 ? 0 : n;
        UNROLL
        for (int o = 0; o < S::kOut; ++o)
          weights.multiply(part[at % S::kChains][o][column], at * S::kOut + o, b[2 * n],
                           b[2 * n + 1]);
      }
    }
    float acc[S::kOut][S::kColumns][4];
    UNROLL
    for (int o = 0; o < S::kOut; ++o) {
      UNROLL
      for (int column = 0; column < S::kColumns; ++column) {
        UNROLL
        for (int chain = 0; chain < S::kChains; ++chain) {
          part[chain][o][column].end();
          UNROLL
          for (int j = 0; j < 4; ++j) {
            const float sum_of_chain = part[chain][o][column].value[j];
            acc[o][column][j] = chain == 0 ? sum_of_chain : acc[o][column][j] + sum_of_chain;
          }
        }
      }
    }
    uint8_t* partial = dev::smem() + S::kPartialAt + round % S::kPartialBuffers * S::kPartialBytes +
                       group * S::kPartialFloats * static_cast<int>(sizeof(float));
    Reduction<S>::run(acc, sum, partial, group, split, lane);
  }

  // kSums: products of the gate gradients of this CTA, which it has just collected, with its rows
  // of w_hh: partial sums for all units, which go to their CTAs. Two tiles of units at a time, so
  // that the first ones leave early.
  DEVICE void send_sums(int round) const {
    constexpr int kPairs = S::kUnitTiles % 2 == 0 ? 2 : 1;
    constexpr int kChains = kPairs == 1 || (S::kWarps <= 4 && !S::kTwoParts) ? 2 : 1;
    const uint8_t* from =
        dev::smem() + S::kStageAt + (round & 1) * S::kSourceBytes + lane * kRowBytes;
    UNROLL
    for (int first = 0; first < S::kUnitTiles; first += kPairs) {
      SumOf<S> sum[kPairs][kChains] = {};
      UNROLL
      for (int k = 0; k < S::kWarpTiles; k += 2) {
        uint32_t b[4];
        load_tiles(b, from + k * kTileBytes);
        UNROLL
        for (int n = 0; n < 2; ++n) {
          UNROLL
          for (int m = 0; m < kPairs; ++m)
            if (k + n < S::kWarpTiles)
              weights.multiply(sum[m][n % kChains], (first + m) * S::kWarpTiles + k + n, b[2 * n],
                               b[2 * n + 1]);
        }
      }
      UNROLL
      for (int m = 0; m < kPairs; ++m) {
        sum[m][0].end();
        if constexpr (kChains == 2) {
          sum[m][1].end();
          UNROLL
          for (int j = 0; j < 4; ++j) sum[m][0].value[j] += sum[m][1].value[j];
        }
        exchanger.send_sums(round, dev::opaque(warp * S::kUnitTiles) + first + m, sum[m][0].value);
      }
    }
  }

  DEVICE void send(int round, const float (&values)[S::kIn][kElements]) const {
    exchanger.send(
        round, values, [this](int e) { return group_unit(e); },
        [this](int e) { return tile_row(e); });
    if constexpr (S::kSums) send_sums(round);
    dev::keep_order();  // or the compiler has results stored before
  }
};

}  // namespace rnnfast::cuda
