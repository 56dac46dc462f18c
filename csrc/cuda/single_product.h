// What `single` (single.h) is made of: the shape of a kernel, the loads, and the part of both
// products that one warp takes.
//
// Every weight is read once and by one lane, as it lies in the tensor, 16 bytes at a time where its
// rows are aligned to that: which of the K's of an mma a number is, is free as long as both
// operands agree. float32 is multiplied and added in float32.
#pragma once

#include <cstring>

#include "cuda/device.h"
#include "cuda/single_kernels.h"
#include "cuda/types.h"

namespace rnnfast::cuda {

template <class Cell_, class E, int kIndex>
struct SingleShape {
  using Cell = Cell_;
  using Element = E;
  static constexpr bool kHalf = sizeof(E) == 2;
  static constexpr SingleLayout kLayout =
      single_layout(kSingleInstances[kIndex], Cell::kGates, kHalf);
  static constexpr int kUnits = kLayout.units, kRows = kLayout.rows, kStride = kLayout.stride;
  static constexpr int kBatch = kSingleInstances[kIndex].batch;
  static constexpr int kElements = (kUnits * kBatch - 1) / kSingleThreads + 1;  // of a thread
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(E));               // numbers of a load
  // float32: groups of lanes that share the rows of w, and rows of v of a lane.
  static constexpr int kRowGroups = kBatch == 1 ? 4 : 2;
  static constexpr int kLaneBatch = kBatch == 32 ? 8 : kBatch == 8 ? 4 : 1;
  // Numbers of K that a warp takes at a time.
  static constexpr int kBlock = kPiece * (kHalf ? 4 : kWarpSize / kRowGroups * kLaneBatch / kBatch);
  // CTAs that a processor should hold, so that those of the next launch find room.
  static constexpr int kResident = kBatch > (kHalf ? 8 : 1) || kRows > 48 ? 1 : 2;
};

// ---- loads ----

// Weights, which no kernel nearby has stored to, and what such a kernel may have.
struct Settled {
  template <class T>
  static DEVICE T load(const T* p) {
    return dev::load_settled(p);
  }
};
struct Fresh {
  template <class T>
  static DEVICE T load(const T* p) {
    return dev::load_l2(p);
  }
};

// 16 bytes of a row by loads of kWidth; zeros behind its last `left` numbers.
template <class From, int kWidth, class E>
DEVICE uint4 load_operand(const E* p, int left) {
  uint4 all{0, 0, 0, 0};
  constexpr int kEach = kWidth / static_cast<int>(sizeof(E));
  if constexpr (kWidth == 16) {
    if (left > 0) all = From::load(reinterpret_cast<const uint4*>(p));
  } else if constexpr (kWidth == 8) {
    uint2 low{0, 0}, high{0, 0};
    if (left > 0) low = From::load(reinterpret_cast<const uint2*>(p));
    if (left > kEach) high = From::load(reinterpret_cast<const uint2*>(p + kEach));
    all = {low.x, low.y, high.x, high.y};
  } else {
    using Bits = std::conditional_t<kWidth == 4, uint32_t, uint16_t>;
    uint32_t word[4] = {};
    UNROLL
    for (int i = 0; i < 16 / kWidth; ++i)
      if (left > i)
        word[i * kWidth / 4] |= uint32_t{From::load(reinterpret_cast<const Bits*>(p + i))}
                                << i * kWidth % 4 * 8;
    all = {word[0], word[1], word[2], word[3]};
  }
  return all;
}

template <class E>
DEVICE float load_number(const E* p) {
  using Bits = std::conditional_t<sizeof(E) == 4, uint32_t, uint16_t>;
  const Bits bits = dev::load_l2(reinterpret_cast<const Bits*>(p));
  E number;
  std::memcpy(&number, &bits, sizeof number);
  return widen(number);
}

// ---- one product of a warp ----

// Rows of w, of the units of the CTA, times rows of v, those of its tile, over a part of their
// length.
template <class S>
struct Side {
  using E = typename S::Element;
  const E *w, *v;  // w from the first unit on
  int gate;        // numbers between the gates of a unit in w
  int units;       // that exist
  int living;      // rows of v
  int depth;       // numbers of a row
  int begin, end;  // of the warp

  // Rows that nothing comes of are some other row.
  DEVICE const E* weights(int row) const {
    const int gate_number = row / S::kUnits, unit = row % S::kUnits;
    const bool exists = gate_number < S::Cell::kGates && unit < units;
    return w + (exists ? gate_number * gate + unit * depth : 0);
  }
  DEVICE const E* input(int row) const { return v + (row < living ? row * depth : 0); }
};

// When the kernels before this one have ended: before anything is stored, and before any load but
// those of settled weights, see SingleArgs. Others are brought into the L2 cache meanwhile.
struct Opening {
  bool settled;

  template <class Prefetch>
  DEVICE void before_weights(Prefetch prefetch) const {
    if (settled) return;
    prefetch();
    dev::wait_for_previous();
  }
  DEVICE void before_inputs() const {
    if (settled) dev::wait_for_previous();
    dev::let_next_start();
  }
};
inline constexpr int kLineBytes = 128;  // that a prefetch brings

// 16-bit types: the rows of w are those of mma, those of v its columns.
template <class S>
struct MmaProduct {
  using E = typename S::Element;
  using Mma = std::conditional_t<std::is_same_v<E, dev::Half>, dev::MmaHalf, dev::MmaBf16>;
  static constexpr int kBlock = S::kBlock;  // numbers of K at a time: two mma
  static constexpr int kTiles = S::kRows / kMmaUnits, kColumns = S::kBatch / kMmaBatch;
  static constexpr int kPieces = (S::Cell::kGates * S::kUnits + 7) / 8;  // of 8 rows
  // Blocks on their way: enough bytes for the distance to memory, few enough for the registers.
  static constexpr int kAhead = kTiles == 1 ? 4 : kTiles == 2 ? 3 : 2;
  const int group, place;  // of the lane: a row and a column; a quarter of the block
  float sum[kTiles][kColumns][4] = {};

  explicit DEVICE MmaProduct(int lane) : group(lane / 4), place(lane % 4 * S::kPiece) {}

  // Calls `begun` when the first loads are on their way.
  template <int kWidth, class Begun>
  DEVICE void run(const Side<S>& side, const Opening& opening, Begun begun) {
    constexpr int kBlocks = kWidth == 16 ? kAhead : 1;
    const E *w[kTiles][2], *v[kColumns];
    const int from = side.begin + place;
    UNROLL
    for (int i = 0; i < kPieces; ++i) w[i / 2][i % 2] = side.weights(i * 8 + group) + from;
    UNROLL
    for (int n = 0; n < kColumns; ++n) v[n] = side.input(n * kMmaBatch + group) + from;
    int left = side.end - from;
    opening.before_weights([&] {
      constexpr int kLine = kLineBytes / static_cast<int>(sizeof(E));
      UNROLL
      for (int i = 0; i < kPieces; ++i) {
        UNROLL
        for (int at = 0; at < kBlocks * kBlock; at += kLine)
          if (left > at) dev::prefetch_l2(w[i / 2][i % 2] + at);
      }
    });
    uint4 a[kBlocks][kTiles][2], b[kBlocks][kColumns];
    UNROLL
    for (int i = 0; i < kBlocks; ++i) load_weights<kWidth>(a[i], w, i * kBlock, left);
    opening.before_inputs();
    UNROLL
    for (int i = 0; i < kBlocks; ++i) load_inputs<kWidth>(b[i], v, i * kBlock, left, side.living);
    begun();
    for (int rest = side.end - side.begin; rest > 0; rest -= kBlocks * kBlock) {
      UNROLL
      for (int i = 0; i < kBlocks; ++i) {
        if (i * kBlock >= rest) break;
        multiply(a[i], b[i], side.living);
        load_weights<kWidth>(a[i], w, (kBlocks + i) * kBlock, left);
        load_inputs<kWidth>(b[i], v, (kBlocks + i) * kBlock, left, side.living);
      }
      UNROLL
      for (int i = 0; i < kPieces; ++i) w[i / 2][i % 2] += kBlocks * kBlock;
      UNROLL
      for (int n = 0; n < kColumns; ++n) v[n] += kBlocks * kBlock;
      left -= kBlocks * kBlock;
    }
  }

  template <int kWidth>
  static DEVICE void load_weights(uint4 (&a)[kTiles][2], const E* const (&w)[kTiles][2], int at,
                                  int left) {
    UNROLL
    for (int i = 0; i < 2 * kTiles; ++i)
      a[i / 2][i % 2] = i < kPieces ? load_operand<Settled, kWidth>(w[i / 2][i % 2] + at, left - at)
                                    : uint4{0, 0, 0, 0};
  }
  template <int kWidth>
  static DEVICE void load_inputs(uint4 (&b)[kColumns], const E* const (&v)[kColumns], int at,
                                 int left, int living) {
    UNROLL
    for (int n = 0; n < kColumns; ++n)
      if (n * kMmaBatch < living) b[n] = load_operand<Fresh, kWidth>(v[n] + at, left - at);
  }

  DEVICE void multiply(const uint4 (&a)[kTiles][2], const uint4 (&b)[kColumns], int living) {
    UNROLL
    for (int n = 0; n < kColumns; ++n) {
      if (n * kMmaBatch >= living) break;
      UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const uint4 &low = a[m][0], &high = a[m][1];
        const uint32_t first[4] = {low.x, high.x, low.y, high.y},
                       second[4] = {low.z, high.z, low.w, high.w};
        dev::mma<Mma>(sum[m][n], first, b[n].x, b[n].y);
        dev::mma<Mma>(sum[m][n], second, b[n].z, b[n].w);
      }
    }
  }

  // Of the warp, to [row][batch row].
  DEVICE void store(float* sums, int) const {
    struct alignas(8) Pair {
      float first, second;
    };
    UNROLL
    for (int i = 0; i < 2 * kTiles * kColumns; ++i) {
      const int half = i % 2, m = i / 2 % kTiles, n = i / 2 / kTiles;
      float* to =
          sums + ((2 * m + half) * 8 + group) * S::kStride + n * kMmaBatch + place / S::kPiece * 2;
      *reinterpret_cast<Pair*>(to) = {sum[m][n][2 * half], sum[m][n][2 * half + 1]};
    }
  }
};

// float32: a lane has half of the rows of w, some of the rows of v and one of many places in K.
template <class S>
struct FmaProduct {
  using E = typename S::Element;
  static constexpr int kGroups = S::kRowGroups;     // of the rows of w
  static constexpr int kRows = S::kRows / kGroups;  // of a lane, and of those of v:
  static constexpr int kBatch = S::kLaneBatch;
  static constexpr int kBlock = S::kBlock, kLanes = kBlock / S::kPiece;  // that divide K
  static constexpr int kAhead = S::kBatch > 1 ? 2
                                : kRows > 3   ? 3
                                              : 4,
                       kInputsAhead = kBatch == 8 ? 1 : kAhead;
  const int depth_lane, row, column;  // of the lane: its place in K, the first of its rows
  float sum[kRows][kBatch] = {};

  explicit DEVICE FmaProduct(int lane)
      : depth_lane(lane % kLanes),
        row(lane / kLanes % kGroups * kRows),
        column(lane / kLanes / kGroups * kBatch) {}

  struct alignas(16) Numbers {
    float number[4];
  };
  template <class From, int kWidth>
  static DEVICE Numbers load(const E* p, int left) {
    const uint4 bits = load_operand<From, kWidth>(p, left);
    return {{as_float(bits.x), as_float(bits.y), as_float(bits.z), as_float(bits.w)}};
  }

  template <int kWidth, class Begun>
  DEVICE void run(const Side<S>& side, const Opening& opening, Begun begun) {
    constexpr int kBlocks = kWidth == 16 ? kAhead : 1;
    constexpr int kInputs = kWidth == 16 ? kInputsAhead : 1;
    const E *w[kRows], *v[kBatch];
    const int from = side.begin + depth_lane * S::kPiece;
    UNROLL
    for (int r = 0; r < kRows; ++r) w[r] = side.weights(row + r) + from;
    UNROLL
    for (int n = 0; n < kBatch; ++n) v[n] = side.input(column + n) + from;
    int left = side.end - from;
    opening.before_weights([&] {
      UNROLL
      for (int i = 0; i < kBlocks * kRows; ++i)
        if (left > i / kRows * kBlock) dev::prefetch_l2(w[i % kRows] + i / kRows * kBlock);
    });
    Numbers a[kBlocks][kRows], b[kInputs][kBatch];
    UNROLL
    for (int i = 0; i < kBlocks; ++i) {
      UNROLL
      for (int r = 0; r < kRows; ++r)
        a[i][r] = load<Settled, kWidth>(w[r] + i * kBlock, left - i * kBlock);
    }
    opening.before_inputs();
    UNROLL
    for (int i = 0; i < kInputs; ++i) load_inputs<kWidth>(b[i], v, i * kBlock, left, side.living);
    begun();
    for (int rest = side.end - side.begin; rest > 0; rest -= kBlocks * kBlock) {
      UNROLL
      for (int i = 0; i < kBlocks; ++i) {
        if (i * kBlock >= rest) break;
        multiply(a[i], b[i % kInputs], side.living);
        const int next = (kBlocks + i) * kBlock;
        UNROLL
        for (int r = 0; r < kRows; ++r) a[i][r] = load<Settled, kWidth>(w[r] + next, left - next);
        load_inputs<kWidth>(b[i % kInputs], v, (kInputs + i) * kBlock, left, side.living);
      }
      UNROLL
      for (int r = 0; r < kRows; ++r) w[r] += kBlocks * kBlock;
      UNROLL
      for (int n = 0; n < kBatch; ++n) v[n] += kBlocks * kBlock;
      left -= kBlocks * kBlock;
    }
  }

  template <int kWidth>
  static DEVICE void load_inputs(Numbers (&b)[kBatch], const E* const (&v)[kBatch], int at,
                                 int left, int living) {
    UNROLL
    for (int n = 0; n < kBatch; ++n)
      if (n < living) b[n] = load<Fresh, kWidth>(v[n] + at, left - at);
  }

  DEVICE void multiply(const Numbers (&a)[kRows], const Numbers (&b)[kBatch], int living) {
    UNROLL
    for (int n = 0; n < kBatch; ++n) {
      if (n >= living) break;
      UNROLL
      for (int r = 0; r < kRows; ++r) {
        UNROLL
        for (int k = 0; k < 4; ++k) sum[r][n] = fma(a[r].number[k], b[n].number[k], sum[r][n]);
      }
    }
  }

  // Of all lanes of the same rows: where their number is even, each takes half of them first.
  DEVICE void store(float* sums, int living) const {
    constexpr bool kHalves = kRows % 2 == 0;
    constexpr int kOwn = kHalves ? kRows / 2 : kRows, kFirst = kHalves ? kLanes / 2 : kLanes;
    const bool upper = kHalves && (depth_lane & kFirst) != 0;
    UNROLL
    for (int n = 0; n < kBatch; ++n) {
      if (n >= living) break;
      UNROLL
      for (int r = 0; r < kOwn; ++r) {
        const int above = r + kRows - kOwn;
        float total = upper ? sum[above][n] : sum[r][n];
        if constexpr (kHalves) total += dev::shfl_xor(upper ? sum[r][n] : sum[above][n], kFirst);
        UNROLL
        for (int mask = kFirst / 2; mask > 0; mask /= 2) total += dev::shfl_xor(total, mask);
        if (depth_lane % kFirst == 0)
          sums[(row + (upper ? kOwn : 0) + r) * S::kStride + column + n] = total;
      }
    }
  }
};

}  // namespace rnnfast::cuda
