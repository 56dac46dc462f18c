// The product of every time step: a few rows of states times packed weights, in register tiles.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "vec.h"

namespace rnnfast {

// Weights [K, columns] packed for the tiles. The H units stand in groups of one register; a panel
// is `group` of these side by side (the last may be narrower), and for each of the K rows it holds,
// contiguously, `gates` registers per group: the columns of one unit's gates lie in the same panel,
// so that one tile sees all a cell needs. Units past H are zero columns.
template <class T>
struct Panels {
  static constexpr int64_t kWidth = Vec<T>::kWidth;
  int64_t hidden;  // H
  int64_t depth;   // K
  int gates;       // registers per group of units: G forward, 1 backward
  int group;       // groups per panel

  int64_t groups() const { return (hidden + kWidth - 1) / kWidth; }
  int64_t count() const { return (groups() + group - 1) / group; }
  int64_t size() const { return groups() * gates * kWidth * depth; }
  int64_t offset(int64_t panel) const { return panel * group * gates * kWidth * depth; }
  int groups_in(int64_t panel) const {
    const int64_t left = groups() - panel * group;
    return static_cast<int>(left < group ? left : group);
  }
  int64_t first_unit(int64_t panel, int g) const { return (panel * group + g) * kWidth; }
  int64_t units_from(int64_t unit) const { return hidden - unit < kWidth ? hidden - unit : kWidth; }
};

// dst[column * dst_stride + row] = src[row * src_stride + column]. By small blocks through a
// buffer: with power-of-two strides, the lines of a block of src or dst fall into one set of the L1
// cache and would drive each other out.
template <class T>
void transpose(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst,
               int64_t dst_stride) {
  constexpr int64_t kBlock = 64 / sizeof(T);
  alignas(64) T block[kBlock][kBlock];
  for (int64_t r = 0; r < rows; r += kBlock) {
    const int64_t height = rows - r < kBlock ? rows - r : kBlock;
    for (int64_t c = 0; c < columns; c += kBlock) {
      const int64_t width = columns - c < kBlock ? columns - c : kBlock;
      for (int64_t i = 0; i < height; ++i)
        std::memcpy(block[i], src + (r + i) * src_stride + c, width * sizeof(T));
      for (int64_t j = 0; j < width; ++j)
        for (int64_t i = 0; i < height; ++i) dst[(c + j) * dst_stride + r + i] = block[i][j];
    }
  }
}

// One panel of w [gates*H, K] for a product with w transposed: h w_hh^T forward, and small others.
template <class T>
void pack_forward(const T* w, const Panels<T>& panels, int64_t panel, T* dst) {
  const int64_t width = Panels<T>::kWidth, depth = panels.depth,
                vectors = int64_t{panels.groups_in(panel)} * panels.gates;
  for (int g = 0; g < panels.groups_in(panel); ++g) {
    const int64_t unit = panels.first_unit(panel, g), units = panels.units_from(unit);
    for (int gate = 0; gate < panels.gates; ++gate) {
      T* out = dst + (g * panels.gates + gate) * width;
      // A transpose whose destination rows are `vectors * width` apart, straight into the panel.
      transpose(w + (gate * panels.hidden + unit) * depth, depth, units, depth, out,
                vectors * width);
      for (int64_t k = 0; units < width && k < depth; ++k)
        for (int64_t i = units; i < width; ++i) out[k * vectors * width + i] = T(0);
    }
  }
}

// One panel of w_hh [G*H, H] for the backward product d_gates w_hh: K = G*H, as it stands.
template <class T>
void pack_backward(const T* w_hh, const Panels<T>& panels, int64_t panel, T* dst) {
  for (int64_t k = 0; k < panels.depth; ++k) {
    for (int g = 0; g < panels.groups_in(panel); ++g, dst += Panels<T>::kWidth) {
      const int64_t unit = panels.first_unit(panel, g);
      Vec<T>::load(w_hh + k * panels.hidden + unit, panels.units_from(unit)).store(dst);
    }
  }
}

inline constexpr int kMaxVectors = 4, kMaxRows = 8;

// Rows of a tile that is `vectors` registers wide: as many sums as the registers hold beside one
// row of weights and a broadcast.
constexpr int tile_rows(int vectors) {
  const int rows = (kVectorRegisters - 1) / vectors - 1;
  return rows < 1 ? 1 : rows > kMaxRows ? kMaxRows : rows;
}

// Longer sums are made of blocks of this depth: their rounding error grows with the square root of
// the block and of the number of blocks, not of the whole.
inline constexpr int64_t kBlockDepth = 128;

// sums[m][v] = sum over k of a[m, k] * w[k][v], for MR rows of a and NV registers of columns.
template <class T, int MR, int NV>
void tile(const T* a, int64_t a_stride, const T* w, int64_t depth, T* sums) {
  using Raw = typename Vec<T>::Raw;
  using Unaligned = typename Vec<T>::Unaligned;
  constexpr int kWidth = Vec<T>::kWidth;
  // Small tiles sum alternating k apart: eight independent chains hide the latency of the
  // multiply-add.
  constexpr int kChains = MR * NV >= 8 ? 1 : (7 + MR * NV) / (MR * NV);
  int64_t k = 0;
  do {
    const int64_t end = depth - k < kBlockDepth ? depth : k + kBlockDepth;
    const bool first = k == 0;
    Raw sum[kChains][MR][NV] = {};
    const auto step = [&](int chain, int64_t k) __attribute__((always_inline)) {
      Raw row[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        row[v] = *reinterpret_cast<const Unaligned*>(w + (k * NV + v) * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const T factor = a[m * a_stride + k];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[chain][m][v] += factor * row[v];
      }
    };
    for (; k + kChains <= end; k += kChains) {
#pragma GCC unroll 8
      for (int chain = 0; chain < kChains; ++chain) step(chain, k + chain);
    }
    for (; k < end; ++k) step(0, k);
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
  } while (k < depth);
}

template <class T>
using TileFunction = void (*)(const T*, int64_t, const T*, int64_t, T*);

template <class T, int NV, int... M>
constexpr std::array<TileFunction<T>, kMaxRows> tiles_of_width(std::integer_sequence<int, M...>) {
  return {(M < tile_rows(NV) ? tile<T, (M < tile_rows(NV) ? M + 1 : 1), NV> : nullptr)...};
}

template <class T>
TileFunction<T> tile_function(int rows, int vectors) {
  using Rows = std::make_integer_sequence<int, kMaxRows>;
  static constexpr std::array<TileFunction<T>, kMaxRows> kTiles[kMaxVectors] = {
      tiles_of_width<T, 1>(Rows{}), tiles_of_width<T, 2>(Rows{}), tiles_of_width<T, 3>(Rows{}),
      tiles_of_width<T, 4>(Rows{})};
  return kTiles[vectors - 1][rows - 1];
}

struct Range {
  int64_t begin, end;
};

// Multiplies rows of a [*, K] by the panels [range of panels] of w and hands every (row, group of
// units) to consume(row, first unit, units, sums, stride from gate to gate of sums). depth 0 gives
// zeros.
template <class T, class Consume>
RNNFAST_FN void multiply(const Panels<T>& panels, const T* w, const T* a, int64_t a_stride,
                         int64_t depth, Range rows, Range panel_range, Consume&& consume) {
  alignas(kVectorBytes) T sums[kMaxRows * kMaxVectors * Panels<T>::kWidth];
  for (int64_t panel = panel_range.begin; panel < panel_range.end; ++panel) {
    const int groups = panels.groups_in(panel), vectors = groups * panels.gates;
    for (int64_t row = rows.begin; row < rows.end;) {
      const int64_t left = rows.end - row,
                    tiles = (left + tile_rows(vectors) - 1) / tile_rows(vectors);
      const int count =
          static_cast<int>((left + tiles - 1) / tiles);  // even tiles rather than a thin last one
      tile_function<T>(count, vectors)(a + row * a_stride, a_stride,
                                       depth ? w + panels.offset(panel) : w, depth, sums);
      for (int m = 0; m < count; ++m) {
        for (int g = 0; g < groups; ++g) {
          const int64_t unit = panels.first_unit(panel, g);
          consume(row + m, unit, panels.units_from(unit),
                  sums + (m * vectors + g * panels.gates) * Panels<T>::kWidth, Panels<T>::kWidth);
        }
      }
      row += count;
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
#if defined(__clang__)
      registers[i] = __builtin_shufflevector(a, b, (2 * Lane)...) +
                     __builtin_shufflevector(a, b, (2 * Lane + 1)...);
#else  // GCC has that only from version 12 on
      using Lanes = typename Register<T>::Bits;
      registers[i] = __builtin_shuffle(a, b, Lanes{(2 * Lane)...}) +
                     __builtin_shuffle(a, b, Lanes{(2 * Lane + 1)...});
#endif
    }
  }
  return registers[0];
}

// Multiplies one row a [K] by w [N, K] transposed, w as it stands, and hands consume(column, sums)
// the sums of kWidth columns at a time, some of them twice; N is at least kWidth.
template <class T, class Consume>
RNNFAST_FN void multiply_row(const T* a, const T* w, int64_t columns, int64_t depth,
                             Consume&& consume) {
  constexpr int kWidth = Vec<T>::kWidth;
  for (int64_t begin = 0; begin < columns; begin += kWidth) {
    const int64_t column = begin + kWidth <= columns ? begin : columns - kWidth;
    typename Vec<T>::Raw sums[kWidth] = {};
    const auto step = [&](int64_t k, int64_t count) __attribute__((always_inline)) {
      const Vec<T> factors = Vec<T>::load(a + k, count);
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c)
        sums[c] += factors.raw * Vec<T>::load(w + (column + c) * depth + k, count).raw;
    };
    int64_t k = 0;
    for (; k + kWidth <= depth; k += kWidth) step(k, kWidth);
    if (k < depth) step(k, depth - k);
    consume(column, Vec<T>(lane_sums<T>(sums, std::make_integer_sequence<int, kWidth>{})));
  }
}

}  // namespace rnnfast
