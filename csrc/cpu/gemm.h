// The products of a layer: register tiles, and the ways to multiply rows with weights, packed or as
// they stand.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "cpu/panels.h"

namespace rnnfast::cpu {

inline constexpr int kMaxRows = 8;

// Rows of a tile that is `vectors` registers wide: as many as leave registers for the sums, the
// smaller side of the product and one number of the other.
constexpr int tile_rows(int vectors) {
  int rows = kMaxRows;
  while (rows > 1 && rows * vectors + (rows < vectors ? rows : vectors) + 1 > kVectorRegisters)
    --rows;
  return rows;
}

// How a tile reads its left operand: a [rows, K] row by row, or a [K, rows] column by column.
enum class Left { kRows, kColumns };

// What a tile of w asks for as it multiplies, if its rows are many enough to leave the time:
// nothing; what it comes to soon, as the first of those that read w one after the other; or, as the
// second, which finds w in L1, what comes after this part of w.
enum class Fetch { kNothing, kSoon, kNext };
inline constexpr int kRowsForFetch = 4;
// So many rows of w ahead, into L1 and into L2.
inline constexpr int kSoonInL1 = 8, kSoonInL2 = 64;

// sums[m][v] = sum over k of a[m, k] * w[k][v], for MR rows of a and NV registers of columns; the
// rows of w are w_stride apart. go_on: the sums hold blocks of this depth before; then it is a
// whole number of blocks from there on.
template <class S, Left left, Fetch fetch, int MR, int NV>
void tile(const S* a, int64_t a_stride, const S* w, int64_t w_stride, int64_t depth, bool go_on,
          Compute<S>* sums) {
  using Raw = typename Operands<S>::Raw;
  using Unaligned = typename Vec<S>::Unaligned;
  constexpr int kWidth = Vec<S>::kWidth, kPerLane = Operands<S>::kPerLane;
  // A single row sums even and odd k apart: more independent chains hide the latency of the
  // multiply-add. No plan makes a single row of one among several, and the chains are as many at
  // every width, so that no result depends on the number of threads.
  constexpr int kChains = left == Left::kRows && MR == 1 ? 2 : 1;
  const int64_t lanes = depth / kPerLane, w_size = lanes * w_stride;
  int64_t k = 0;
  do {
    const int64_t end = lanes - k < kBlockDepth ? lanes : k + kBlockDepth;
    const bool first = k == 0 && !go_on;
    Raw sum[kChains][MR][NV] = {};
    const auto step = [&](int chain, int64_t k, const auto& broadcast) RNNFAST_INLINE {
      const auto factor = [&](int m) RNNFAST_INLINE {
        return broadcast(left == Left::kRows ? a + m * a_stride + k * kPerLane
                                             : a + k * a_stride + m);
      };
      const auto weights = [&](int v) RNNFAST_INLINE {
        const S* row = w + k * w_stride + v * kWidth * kPerLane;
        // For L2 one register of a row is best: to ask for more was slower, on an Emerald Rapids.
        // Past the last panel the address means nothing, and does no harm.
        if constexpr (fetch == Fetch::kSoon) __builtin_prefetch(row + kSoonInL1 * w_stride, 0, 3);
        if (fetch == Fetch::kSoon && v == 0) __builtin_prefetch(row + kSoonInL2 * w_stride, 0, 2);
        if (fetch == Fetch::kNext && v == NV / 2) __builtin_prefetch(row + w_size, 0, 2);
        return Operands<S>::load(row);
      };
      if constexpr (MR < NV) {
        Raw column[MR];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) column[m] = factor(m);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const Raw row = weights(v);
#pragma GCC unroll 8
          for (int m = 0; m < MR; ++m) Operands<S>::add_products(sum[chain][m][v], column[m], row);
        }
      } else {
        Raw row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) row[v] = weights(v);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const Raw number = factor(m);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) Operands<S>::add_products(sum[chain][m][v], number, row[v]);
        }
      }
    };
    for (; k + kChains <= end; k += kChains) {
#pragma GCC unroll 8
      for (int chain = 0; chain < kChains; ++chain) step(chain, k + chain, Operands<S>::broadcast);
    }
    for (; k < end; ++k) step(0, k, Operands<S>::broadcast);
    if constexpr (kPerLane > 1)
      if (k == lanes && depth % kPerLane) step(0, k, Operands<S>::broadcast_last);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        Raw total = sum[0][m][v];
#pragma GCC unroll 8
        for (int chain = 1; chain < kChains; ++chain) total += sum[chain][m][v];
        Unaligned& result = *reinterpret_cast<Unaligned*>(sums + (m * NV + v) * kWidth);
        result = first ? total : result + total;
      }
    }
  } while (k < lanes);
}

template <class S>
using TileFunction = void (*)(const S*, int64_t, const S*, int64_t, int64_t, bool, Compute<S>*);

template <class S, Left left, Fetch fetch, int NV, int MR>
constexpr TileFunction<S> tile_of_size() {
  if constexpr (MR > tile_rows(NV)) {
    return nullptr;
  } else {
    constexpr Fetch kFetch = MR < kRowsForFetch ? Fetch::kNothing : fetch;
    return tile<S, left, kFetch, MR, NV>;
  }
}

template <class S, Left left, Fetch fetch, int NV, int... M>
constexpr std::array<TileFunction<S>, kMaxRows> tiles_of_width(std::integer_sequence<int, M...>) {
  return {tile_of_size<S, left, fetch, NV, M + 1>()...};
}

template <class S, Left left, Fetch fetch>
constexpr std::array<std::array<TileFunction<S>, kMaxRows>, kMaxVectors> tiles_that_fetch() {
  using Rows = std::make_integer_sequence<int, kMaxRows>;
  return {tiles_of_width<S, left, fetch, 1>(Rows{}), tiles_of_width<S, left, fetch, 2>(Rows{}),
          tiles_of_width<S, left, fetch, 3>(Rows{}), tiles_of_width<S, left, fetch, 4>(Rows{})};
}

template <class S, Left left, Fetch fetch = Fetch::kNothing>
TileFunction<S> tile_function(int rows, int vectors) {
  static constexpr auto kTiles = tiles_that_fetch<S, left, fetch>();
  return kTiles[vectors - 1][rows - 1];
}

// The sums of one tile, on the stack.
template <class T>
struct alignas(kVectorBytes) TileSums {
  T values[kMaxRows * kMaxVectors * Vec<T>::kWidth];
};

// The first of tiles of at most `most` rows, as even as can be, rather than leave a thin last one.
inline int even_tile(int64_t rows, int most) {
  if (rows <= most) return static_cast<int>(rows);  // for the divisions take a while
  const int64_t tiles = (rows + most - 1) / most;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

// Multiplies rows of a [*, K] by panels [panel_range) of w and hands every row and group of units
// to consume(row, first unit, sums): gate by gate a register of sums. Of block_rows rows at most a
// block of K comes after another, so that they all read it from L1; a single tile reads all of K
// at once. Neither the blocks nor their rows change a bit.
template <class S, class Consume>
RNNFAST_FN void multiply(const Panels<S>& panels, const S* w, const S* a, int64_t a_stride,
                         Range rows, Range panel_range, int block_rows, Consume&& consume) {
  constexpr int64_t kWidth = Vec<S>::kWidth, kPerLane = Operands<S>::kPerLane,
                    kDepth = kBlockDepth * kPerLane;
  alignas(kVectorBytes) Compute<S> sums[kMaxBlockRows * kMaxVectors * kWidth];
  for (int64_t panel = panel_range.begin; panel < panel_range.end; ++panel) {
    const int groups = panels.groups_in(panel), vectors = groups * panels.gates,
              most = tile_rows(vectors);
    const int64_t stride = vectors * kWidth, w_stride = stride * kPerLane;
    for (int64_t begin = rows.begin; begin < rows.end;) {
      const int count = even_tile(rows.end - begin, block_rows > most ? block_rows : most);
      const int64_t end = begin + count, step = count > most ? kDepth : panels.depth;
      int64_t k = 0;
      do {
        const int64_t depth = panels.depth - k < step ? panels.depth - k : step;
        Fetch fetch = Fetch::kSoon;
        for (int64_t row = begin; row < end;) {
          const int size = even_tile(end - row, most);
          const auto multiply_tile =
              fetch == Fetch::kSoon   ? tile_function<S, Left::kRows, Fetch::kSoon>(size, vectors)
              : fetch == Fetch::kNext ? tile_function<S, Left::kRows, Fetch::kNext>(size, vectors)
                                      : tile_function<S, Left::kRows>(size, vectors);
          multiply_tile(a + row * a_stride + k, a_stride,
                        w + panels.offset(panel) + k / kPerLane * w_stride, w_stride, depth, k > 0,
                        sums + (row - begin) * stride);
          fetch = fetch == Fetch::kSoon ? Fetch::kNext : Fetch::kNothing;
          row += size;
        }
        k += step;
      } while (k < panels.depth);
      for (int64_t row = begin; row < end; ++row)
        for (int g = 0; g < groups; ++g)
          consume(row, panels.first_unit(panel, g),
                  sums + (row - begin) * stride + g * panels.gates * kWidth);
      begin = end;
    }
  }
}

// Of kWidth registers, the sum over the lanes of each, in the lane of its number.
template <class T, int... Lane>
RNNFAST_FN typename Vec<T>::Raw lane_sums(typename Vec<T>::Raw* registers,
                                          std::integer_sequence<int, Lane...>) {
#pragma GCC unroll 4
  for (int count = Vec<T>::kWidth / 2; count > 0; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const typename Vec<T>::Raw a = registers[2 * i], b = registers[2 * i + 1];
      registers[i] = shuffle<T>(a, b, std::integer_sequence<int, (2 * Lane)...>{}) +
                     shuffle<T>(a, b, std::integer_sequence<int, (2 * Lane + 1)...>{});
    }
  }
  return registers[0];
}

// Rows of a that `multiply_rows` takes at once; it then takes half the rows of w, so that the sums
// fit the registers.
inline constexpr int kMaxUnpackedRows = 3;

// part[m][c] += lane by lane, `count` numbers of row m of a times as many of row c of w.
template <class S, int MR, int kColumns, bool whole>
RNNFAST_FN void add_products(const S* a, int64_t a_stride, const S* const* w, int64_t k,
                             int64_t count, typename Operands<S>::Raw (&part)[MR][kColumns]) {
  const auto load = [&](const S* p) RNNFAST_INLINE {
    return whole ? Operands<S>::load(p + k) : Operands<S>::load(p + k, count);
  };
  typename Operands<S>::Raw factors[MR];
#pragma GCC unroll 3
  for (int m = 0; m < MR; ++m) factors[m] = load(a + m * a_stride);
#pragma GCC unroll 16
  for (int c = 0; c < kColumns; ++c) {
    const typename Operands<S>::Raw weights = load(w[c]);
#pragma GCC unroll 3
    for (int m = 0; m < MR; ++m) Operands<S>::add_products(part[m][c], factors[m], weights);
  }
}

// MR rows of a [*, K] times `count` rows of w [*, K], count at most kWidth: row m of sums,
// sums_stride apart, holds what row m of a makes with each row of w; the lanes past `count` hold
// what nobody needs. Products are summed lane by lane along K, and the lanes at the end.
template <class S, int MR>
void multiply_rows(const S* a, int64_t a_stride, const S* w, int64_t count, int64_t depth,
                   Compute<S>* sums, int64_t sums_stride) {
  using Raw = typename Operands<S>::Raw;
  constexpr int kWidth = Vec<S>::kWidth, kColumns = MR == 1 ? kWidth : kWidth / 2;
  constexpr int64_t kRegister = Panels<S>::kRegister, kBlock = kBlockDepth * kRegister;
  for (int64_t begin = 0; begin < depth || begin == 0; begin += kBlock) {
    const int64_t end = depth - begin < kBlock ? depth : begin + kBlock;
    Raw sum[MR][kWidth];
#pragma GCC unroll 2
    for (int first = 0; first < kWidth; first += kColumns) {
      const S* rows[kColumns];
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) rows[c] = w + (first + c < count ? first + c : 0) * depth;
      Raw part[MR][kColumns] = {};
      int64_t k = begin;
      for (; k + kRegister <= end; k += kRegister)
        add_products<S, MR, kColumns, true>(a, a_stride, rows, k, kRegister, part);
      if (k < end) add_products<S, MR, kColumns, false>(a, a_stride, rows, k, end - k, part);
#pragma GCC unroll 3
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
        for (int c = 0; c < kColumns; ++c) sum[m][first + c] = part[m][c];
    }
#pragma GCC unroll 3
    for (int m = 0; m < MR; ++m) {
      Vec<S> total(lane_sums<Compute<S>>(sum[m], std::make_integer_sequence<int, kWidth>{}));
      if (begin) total = total + Vec<S>::load(sums + m * sums_stride);
      total.store(sums + m * sums_stride);
    }
  }
}

// The product of `multiply` with w [gates*H, K] as it stands: where packing it would take longer.
template <class S, class Consume>
RNNFAST_FN void multiply_unpacked(const Panels<S>& panels, const S* w, const S* a, int64_t a_stride,
                                  Range rows, Range panel_range, Consume&& consume) {
  TileSums<Compute<S>> sums;
  const int64_t stride = panels.gates * Vec<S>::kWidth, depth = panels.depth;
  const auto multiply_tile = [&](int64_t row, int count, int64_t unit, int64_t units) {
    for (int gate = 0; gate < panels.gates; ++gate) {
      const S* w_gate = w + (gate * panels.hidden + unit) * depth;
      Compute<S>* to = sums.values + gate * Vec<S>::kWidth;
      if (count == 1)
        multiply_rows<S, 1>(a + row * a_stride, a_stride, w_gate, units, depth, to, stride);
      if (count == 2)
        multiply_rows<S, 2>(a + row * a_stride, a_stride, w_gate, units, depth, to, stride);
      if (count == 3)
        multiply_rows<S, 3>(a + row * a_stride, a_stride, w_gate, units, depth, to, stride);
    }
  };
  for (int64_t panel = panel_range.begin; panel < panel_range.end; ++panel)
    for (int g = 0; g < panels.groups_in(panel); ++g) {
      const int64_t unit = panels.first_unit(panel, g), units = panels.units_from(unit);
      for (int64_t row = rows.begin; row < rows.end;) {
        const int count = even_tile(rows.end - row, kMaxUnpackedRows);
        multiply_tile(row, count, unit, units);
        for (int m = 0; m < count; ++m) consume(row + m, unit, sums.values + m * stride);
        row += count;
      }
    }
}

// What the products give for rows of zeros.
template <class S, class Consume>
RNNFAST_FN void multiply_zeros(const Panels<S>& panels, Range rows, Range panel_range,
                               Consume&& consume) {
  const TileSums<Compute<S>> sums{};
  for (int64_t panel = panel_range.begin; panel < panel_range.end; ++panel)
    for (int g = 0; g < panels.groups_in(panel); ++g)
      for (int64_t row = rows.begin; row < rows.end; ++row)
        consume(row, panels.first_unit(panel, g), sums.values);
}

}  // namespace rnnfast::cpu
