// The products that make gradients of weights where two numbers are multiplied at a time: their
// sums run over rows, which stand in pairs for that.
#pragma once

#include <cstdint>

#include "cpu/outer.h"
#include "cpu/tiles.h"

namespace rnnfast::cpu {

// The right operand: the columns of two rows side by side, for one pair of rows after the other,
// kVectors registers of columns in a panel. Zeros past the last row and column.
template <class S>
struct PairPanels {
  static constexpr int kVectors = 2;
  static constexpr int64_t kWidth = Vec<S>::kWidth, kColumns = kVectors * kWidth,
                           kStride = 2 * kColumns;
  S* data;
  int64_t pairs;

  // Of so many rows, in whole blocks of depth.
  static int64_t pairs_of(int64_t rows) {
    constexpr int64_t kBlock = Operands<S>::kDepthBlock;
    return ceil_div(rows, kBlock) * kBlock / 2;
  }
  static int64_t size(int64_t rows, int64_t columns) {
    return ceil_div(columns, kColumns) * pairs_of(rows) * kStride;
  }
  S* at(int64_t pair, int64_t column) const {
    return data + (column / kColumns * pairs + pair) * kStride + column % kColumns * 2;
  }
  // `columns` numbers of two rows; null: zeros.
  template <class N>
  void pack(int64_t pair, const N* first, const N* second, int64_t columns) const {
    using V = Vec<S>;
    for (int64_t k = 0; k < columns; k += kWidth) {
      const int64_t lanes = columns - k < kWidth ? columns - k : kWidth;
      const auto load = [&](const N* row) { return row ? rounded(V::load(row + k, lanes)) : V(0); };
      Operands<S>::store(at(pair, k), in_pairs(load(first), load(second)).raw);
    }
  }
};

// Rows that are summed at once, and gates of a tile's.
inline constexpr int64_t kOuterDepth = 256, kOuterGates = 2 * kTileRows;

// Columns [0, count) of a [rows, *] as rows [kOuterGates, kOuterDepth], zeros around them.
template <class S>
void turn_columns(const S* a, int64_t a_stride, int64_t count, int64_t rows, S* dst) {
  constexpr int64_t kWidth = Vec<S>::kWidth, kDepth = 2 * kWidth;
  for (int64_t n = 0; n < kOuterGates; n += kWidth)
    for (int64_t row = 0; row < rows; row += kDepth) {
      typename Vec<S>::Raw square[kWidth] = {};
      const int64_t lanes = count - n < kWidth ? count - n : kWidth;
      for (int64_t i = 0; lanes > 0 && i < kWidth && row + 2 * i < rows; ++i)
        square[i] = Operands<S>::load_rows(a + (row + 2 * i) * a_stride + n, a_stride,
                                           rows - row - 2 * i, lanes);
      transpose<Compute<S>>(square);
      for (int64_t i = 0; i < kWidth; ++i)
        Operands<S>::store(dst + (n + i) * kOuterDepth + row, square[i]);
    }
}

// sums [kOuterGates, vectors registers] = gates [kOuterGates, kOuterDepth], `depth` of each, times
// a panel; of the first `count` gates at least.
template <int vectors, class S>
void multiply_pairs(const S* gates, int64_t count, int64_t depth, const S* panel,
                    Compute<S>* sums) {
  // Whole tiles, past `count` of zeros: never a single row, which adds up in another order.
  constexpr int kRows = tile_rows(vectors);
  static_assert(kOuterGates % kRows == 0 && kRows > 1);
  for (int64_t n = 0; n < count; n += kRows)
    tile_function<S, Left::kRows>(kRows, vectors)(gates + n * kOuterDepth, kOuterDepth, panel,
                                                  PairPanels<S>::kStride, depth, false,
                                                  sums + n * vectors * Vec<S>::kWidth);
}

// The product of `add_outer`; tiles: null where the plan multiplies without.
template <class S>
void add_outer(Tiles* tiles, const S* a, int64_t a_stride, Range columns, const PairPanels<S>& x,
               int64_t K, int64_t rows, Compute<S>* dst, bool fresh) {
  constexpr int64_t kWidth = Vec<S>::kWidth, kColumns = PairPanels<S>::kColumns;
  alignas(kTileBytes) S gates[kOuterGates * kOuterDepth];
  alignas(kTileBytes) Compute<S> sums[kOuterGates * kColumns];
  for (int64_t row = 0; row < rows; row += kOuterDepth) {
    const bool first = fresh && row == 0;
    const int64_t count = rows - row < kOuterDepth ? rows - row : kOuterDepth,
                  depth = 2 * PairPanels<S>::pairs_of(count);
    for (int64_t n = columns.begin; n < columns.end; n += kOuterGates) {
      const int64_t left = columns.end - n < kOuterGates ? columns.end - n : kOuterGates;
      turn_columns(a + row * a_stride + n, a_stride, left, count, gates);
      for (int64_t k = 0; k < K; k += kColumns) {
        const int64_t width = K - k < kColumns ? K - k : kColumns;
        const int vectors = width > kWidth ? 2 : 1;
        const S* const panel = x.at(row / 2, k);
        if constexpr (kByTiles<S>)
          if (tiles)
            multiply_two_tiles(*tiles, gates, kOuterDepth, depth, panel, PairPanels<S>::kStride,
                               vectors, sums);
        if (!tiles)
          vectors == 1 ? multiply_pairs<1>(gates, left, depth, panel, sums)
                       : multiply_pairs<2>(gates, left, depth, panel, sums);
        add_sums(sums, left, vectors, width, dst + n * K + k, K, first);
      }
    }
  }
}

}  // namespace rnnfast::cpu
