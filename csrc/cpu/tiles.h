// The products of a layer by tiles of bfloat16, from the panels of gemm.h: a panel's row is 16
// columns of two rows of K, what a tile wants of its right operand; its left one is rows as they
// stand.
#pragma once

#include "cpu/gemm.h"
#include "cpu/tile_unit.h"

#if defined(__AMX_BF16__) || defined(RNNFAST_TWIN)

namespace rnnfast::cpu {

// Calls f with 0, 1, ... as constants.
template <int count, class F>
RNNFAST_FN void unroll(const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) RNNFAST_INLINE {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, count>{});
}

// The left operand: `count` rows in each of kDown tiles, and what is past the last whole block of K
// once more, with zeros up to a block: a NaN that stands there would spread.
template <int kDown>
struct LeftTiles {
  const Bfloat16* rows[kDown];  // where each tile begins
  int64_t stride, depth;
  alignas(kTileBytes) Bfloat16 tails[kDown][kTileRows][kTileDepth];

  RNNFAST_FN LeftTiles(const Bfloat16* const (&begin)[kDown], int64_t stride, int64_t depth,
                       int64_t count)
      : stride(stride), depth(depth) {
    const int64_t tail = depth % kTileDepth;
    if (tail > 0) std::memset(tails, 0, sizeof tails);
    for (int tile = 0; tile < kDown; ++tile) {
      rows[tile] = begin[tile];
      for (int64_t row = 0; tail > 0 && row < count; ++row)
        std::memcpy(tails[tile][row], rows[tile] + row * stride + depth - tail,
                    tail * sizeof(Bfloat16));
    }
  }
};

// The rows times kAcross registers of columns of w, rows of whose panel are w_stride apart: each
// row of sums, sums_stride apart, gets its part.
template <int kDown, int kAcross>
RNNFAST_FN void multiply_tiles(const LeftTiles<kDown>& left, const Bfloat16* w, int64_t w_stride,
                               float* sums, int64_t sums_stride) {
  static_assert(kDown * kAcross <= kFirstLeftTile);
  constexpr int kFirstRight = kFirstLeftTile + kDown, kRights = kTileCount - kFirstRight;
  constexpr int64_t kColumns = Vec<Bfloat16>::kWidth;
  unroll<kDown * kAcross>([](auto i) { TileUnit::zero<i>(); });
  for (int64_t k = 0; k < left.depth; k += kTileDepth, w += kTileDepth / 2 * w_stride) {
    const bool whole = left.depth - k >= kTileDepth;
    unroll<kDown>([&](auto down) {
      TileUnit::load<kFirstLeftTile + down>(whole ? left.rows[down] + k : left.tails[down][0],
                                            (whole ? left.stride : kTileDepth) * 2);
    });
    unroll<kAcross>([&](auto across) {
      constexpr int kRight = kFirstRight + across % kRights;
      TileUnit::load<kRight>(w + across * 2 * kColumns, w_stride * 2);
      unroll<kDown>([&](auto down) {
        TileUnit::add_product<down * kAcross + across, kFirstLeftTile + down, kRight>();
      });
    });
  }
  unroll<kDown>([&](auto down) {
    unroll<kAcross>([&](auto across) {
      TileUnit::store<down * kAcross + across>(
          sums + down * kTileRows * sums_stride + across * kColumns, sums_stride * 4);
    });
  });
}

// The same for `vectors` registers of columns: two by two tiles, or one by four.
template <int kDown>
RNNFAST_FN void multiply_tiles(const LeftTiles<kDown>& left, const Bfloat16* w, int64_t w_stride,
                               int vectors, float* sums, int64_t sums_stride) {
  constexpr int kAcross = kFirstLeftTile / kDown;
  for (int v = 0; v < vectors; v += kAcross) {
    const Bfloat16* columns = w + v * Panels<Bfloat16>::kRegister;
    float* to = sums + v * Vec<Bfloat16>::kWidth;
    unroll<kAcross>([&](auto less) {
      constexpr int kNow = kAcross - less;
      if (less == 0 ? vectors - v >= kNow : vectors - v == kNow)
        multiply_tiles<kDown, kNow>(left, columns, w_stride, to, sums_stride);
    });
  }
}

// The product of `multiply`. What a row gives does not depend on the rows beside it.
template <class Consume>
RNNFAST_FN void multiply_by_tiles(Tiles& tiles, const Panels<Bfloat16>& panels, const Bfloat16* w,
                                  const Bfloat16* a, int64_t a_stride, Range rows,
                                  Range panel_range, Consume&& consume) {
  const int64_t all = rows.end - rows.begin, count = all < kTileRows ? all : kTileRows;
  if (all <= 0) return;
  tiles.use(count);
  alignas(kTileBytes) float sums[2 * kTileRows * kMaxVectors * Vec<Bfloat16>::kWidth];
  for (int64_t panel = panel_range.begin; panel < panel_range.end; ++panel) {
    const int groups = panels.groups_in(panel), vectors = groups * panels.gates;
    const int64_t stride = vectors * Vec<Bfloat16>::kWidth, w_stride = 2 * stride;
    const Bfloat16* columns = w + panels.offset(panel);
    for (int64_t row = rows.begin; row < rows.end;) {
      // A last tile reaches back over rows that are done rather than past the end.
      const auto last = [&](int64_t first) {
        return rows.end - first < count ? rows.end - count : first;
      };
      const bool two = rows.end - row > count;
      const int64_t first[] = {last(row), last(row + count)};
      if (two) {
        multiply_tiles<2>(
            {{a + first[0] * a_stride, a + first[1] * a_stride}, a_stride, panels.depth, count},
            columns, w_stride, vectors, sums, stride);
      } else {
        multiply_tiles<1>({{a + first[0] * a_stride}, a_stride, panels.depth, count}, columns,
                          w_stride, vectors, sums, stride);
      }
      for (int tile = 0; tile <= two; ++tile)
        for (; row < first[tile] + count; ++row)
          for (int g = 0; g < groups; ++g)
            consume(row, panels.first_unit(panel, g),
                    sums + (tile * kTileRows + row - first[tile]) * stride +
                        g * panels.gates * Vec<Bfloat16>::kWidth);
    }
  }
}

// sums [2 * kTileRows, vectors registers] = as many rows of a times columns of w, whole tiles deep.
inline void multiply_two_tiles(Tiles& tiles, const Bfloat16* a, int64_t a_stride, int64_t depth,
                               const Bfloat16* w, int64_t w_stride, int vectors, float* sums) {
  tiles.use(kTileRows);
  const LeftTiles<2> left({a, a + kTileRows * a_stride}, a_stride, depth, kTileRows);
  multiply_tiles(left, w, w_stride, vectors, sums, vectors * Vec<Bfloat16>::kWidth);
}

}  // namespace rnnfast::cpu

#endif
