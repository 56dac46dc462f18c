// The products that make gradients of weights: rows of one matrix, transposed, times those of
// another.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm.h"

namespace rnnfast::cpu {

// Registers of columns in a tile of `add_outer`: the widest tile of the most rows.
inline constexpr int kOuterVectors = kVectorRegisters >= 32 ? 3 : 2;

// Columns [k, k + width) of `depth` rows of x, side by side, zeros up to whole registers.
template <class T>
void gather_columns(const T* x, int64_t x_stride, int64_t depth, int64_t width, int vectors,
                    T* to) {
  constexpr int64_t kWidth = Vec<T>::kWidth;
  for (int64_t row = 0; row < depth; ++row, x += x_stride)
    for (int v = 0; v < vectors; ++v, to += kWidth) {
      const int64_t lanes = width - v * kWidth < kWidth ? width - v * kWidth : kWidth;
      Vec<T>::load(x + v * kWidth, lanes).store(to);
    }
}

// dst [count, width] += sums [count, vectors registers]; fresh: dst, whose rows are K apart, holds
// nothing yet.
template <class T>
RNNFAST_FN void add_sums(const T* sums, int64_t count, int vectors, int64_t width, T* dst,
                         int64_t K, bool fresh) {
  constexpr int64_t kWidth = Vec<T>::kWidth;
  for (int64_t m = 0; m < count; ++m, dst += K)
    for (int v = 0; v < vectors; ++v, sums += kWidth) {
      const int64_t lanes = width - v * kWidth < kWidth ? width - v * kWidth : kWidth;
      T* to = dst + v * kWidth;
      const Vec<T> sum = Vec<T>::load(sums);
      (fresh ? sum : Vec<T>::load(to, lanes) + sum).store(to, lanes);
    }
}

// dst [N, K] += a [rows, N] transposed times x [rows, K], for columns [columns) of a, in blocks of
// kBlockDepth rows, of which outer_rows are summed before dst is read and written; fresh: dst holds
// nothing yet. The columns of a tile are brought together first: rows that are a power of two apart
// would have room for a few of them only in L1.
template <class T>
void add_outer(const T* a, int64_t a_stride, Range columns, const T* x, int64_t x_stride, int64_t K,
               int64_t rows, int64_t outer_rows, T* dst, bool fresh) {
  constexpr int64_t kWidth = Vec<T>::kWidth, kColumns = kOuterVectors * kWidth;
  TileSums<T> sums;
  alignas(kVectorBytes) T panel[kGradChunkRows * kColumns];
  for (int64_t row = 0; row < rows; row += outer_rows) {
    const bool first = fresh && row == 0;
    const int64_t depth = rows - row < outer_rows ? rows - row : outer_rows;
    for (int64_t k = 0; k < K; k += kColumns) {
      const int64_t width = K - k < kColumns ? K - k : kColumns;
      const int vectors = static_cast<int>((width + kWidth - 1) / kWidth);
      gather_columns(x + row * x_stride + k, x_stride, depth, width, vectors, panel);
      for (int64_t n = columns.begin; n < columns.end;) {
        const int count = even_tile(columns.end - n, tile_rows(vectors));
        for (int m = 0; m < count; ++m)  // what the sums are added to, into L2 meanwhile
          for (int v = 0; v < vectors; ++v)
            __builtin_prefetch(dst + (n + m) * K + k + v * kWidth, 0, 2);
        tile_function<T, Left::kColumns>(count, vectors)(
            a + row * a_stride + n, a_stride, panel, vectors * kWidth, depth, false, sums.values);
        add_sums(sums.values, count, vectors, width, dst + n * K + k, K, first);
        n += count;
      }
    }
  }
}

// dst [N, K] = a [rows, N] transposed times zeros [rows, K], for columns [columns) of a: zeros but
// where a is NaN or infinite.
template <class S>
void outer_with_zeros(const S* a, int64_t a_stride, Range columns, int64_t K, int64_t rows,
                      Compute<S>* dst) {
  using V = Vec<S>;
  constexpr int64_t kWidth = V::kWidth;
  Compute<S> sums[kWidth];
  for (int64_t n = columns.begin; n < columns.end; n += kWidth) {
    const int64_t lanes = columns.end - n < kWidth ? columns.end - n : kWidth;
    V total(0);
    for (int64_t row = 0; row < rows; ++row)
      total = fma(V::load(a + row * a_stride + n, lanes), V(0), total);
    total.store(sums);
    for (int64_t lane = 0; lane < lanes; ++lane) std::fill_n(dst + (n + lane) * K, K, sums[lane]);
  }
}

// dst [N] += the sum over the rows of a [rows, N], for columns [columns), in blocks of kBlockDepth
// rows and kChains sums apart; fresh: dst holds nothing yet.
template <class S>
void add_rows(const S* a, int64_t a_stride, Range columns, int64_t rows, Compute<S>* dst,
              bool fresh) {
  using V = Vec<S>;
  constexpr int64_t kWidth = V::kWidth, kChains = 4;
  for (int64_t n = columns.begin; n < columns.end; n += kWidth) {
    const int64_t lanes = columns.end - n < kWidth ? columns.end - n : kWidth;
    V total = fresh ? V(0) : V::load(dst + n, lanes);
    for (int64_t row = 0; row < rows;) {
      const int64_t end = rows - row < kBlockDepth ? rows : row + kBlockDepth;
      typename V::Raw sums[kChains] = {};
      for (; row + kChains <= end; row += kChains)
#pragma GCC unroll 4
        for (int64_t chain = 0; chain < kChains; ++chain)
          sums[chain] += V::load(a + (row + chain) * a_stride + n, lanes).raw;
      for (; row < end; ++row) sums[0] += V::load(a + row * a_stride + n, lanes).raw;
      total = total + V((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    total.store(dst + n, lanes);
  }
}

}  // namespace rnnfast::cpu
