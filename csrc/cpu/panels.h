// Weights packed for the products of a layer.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/operands.h"
#include "cpu/plan.h"

namespace rnnfast::cpu {

struct Range {
  int64_t begin, end;
};

// So many columns, in whole registers.
template <class T>
constexpr int64_t whole_registers(int64_t columns) {
  return (columns + Vec<T>::kWidth - 1) / Vec<T>::kWidth * Vec<T>::kWidth;
}

// Weights [K, columns] packed for the tiles. The H units stand in groups of one register; a panel
// is `group` of these side by side (the last may be narrower), and for each of the K rows it holds,
// contiguously, `gates` registers per group: the columns of one unit's gates lie in the same panel,
// so that one tile sees all a cell needs. Units past H are zero columns. Where a lane of a register
// holds kPerLane numbers, they are of so many rows of K; rows past K are zeros.
template <class S>
struct Panels {
  static constexpr int64_t kWidth = Vec<S>::kWidth, kPerLane = Operands<S>::kPerLane;
  static constexpr int64_t kRegister = kWidth * kPerLane;  // numbers
  int64_t hidden;                                          // H
  int64_t depth;                                           // K
  int gates;  // registers per group of units: G forward, 1 backward
  int group;  // groups per panel

  int64_t groups() const { return (hidden + kWidth - 1) / kWidth; }
  int64_t count() const { return (groups() + group - 1) / group; }
  int64_t registers() const {  // of a column
    constexpr int64_t kBlock = Operands<S>::kDepthBlock;
    return (depth + kBlock - 1) / kBlock * kBlock / kPerLane;
  }
  int64_t size() const { return groups() * gates * registers() * kRegister; }
  int64_t offset(int64_t panel) const { return panel * group * gates * registers() * kRegister; }
  int groups_in(int64_t panel) const {
    const int64_t left = groups() - panel * group;
    return static_cast<int>(left < group ? left : group);
  }
  int64_t first_unit(int64_t panel, int g) const { return (panel * group + g) * kWidth; }
  // Of panels side by side, in whole registers.
  Range units(Range panels) const {
    const auto first = [&](int64_t panel) {
      return (panel < count() ? panel * group : groups()) * kWidth;
    };
    return {first(panels.begin), first(panels.end)};
  }
  int64_t units_from(int64_t unit) const { return hidden - unit < kWidth ? hidden - unit : kWidth; }
};

// The lanes `Lane...` of a and b together, b's counted on from a's.
template <class T, int... Lane>
RNNFAST_FN typename Vec<T>::Raw shuffle(typename Vec<T>::Raw a, typename Vec<T>::Raw b,
                                        std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else  // GCC has that only from version 12 on
  using Lanes = typename Register<T>::Bits;
  return __builtin_shuffle(a, b, Lanes{Lane...});
#endif
}

// The lanes of a and b in turn, from lane `First` on.
template <class T, int First, int... Lane>
RNNFAST_FN typename Vec<T>::Raw interleave(typename Vec<T>::Raw a, typename Vec<T>::Raw b,
                                           std::integer_sequence<int, Lane...>) {
  return shuffle<T>(
      a, b, std::integer_sequence<int, (First + Lane / 2 + Lane % 2 * Vec<T>::kWidth)...>{});
}

// Turns a square of kWidth registers round its diagonal: log2(kWidth) perfect shuffles.
template <class T>
RNNFAST_FN void transpose(typename Vec<T>::Raw* square) {
  constexpr int kWidth = Vec<T>::kWidth;
  using Lanes = std::make_integer_sequence<int, kWidth>;
  typename Vec<T>::Raw other[kWidth];
#pragma GCC unroll 4
  for (int count = 1; count < kWidth; count *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      const typename Vec<T>::Raw a = square[i], b = square[i + kWidth / 2];
      other[2 * i] = interleave<T, 0>(a, b, Lanes{});
      other[2 * i + 1] = interleave<T, kWidth / 2>(a, b, Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) square[i] = other[i];
  }
}

// One panel of w [gates*H, K] for a product with w transposed: x w_ih^T and h w_hh^T.
template <class S>
void pack_forward(const S* w, const Panels<S>& panels, int64_t panel, S* dst) {
  using Raw = typename Operands<S>::Raw;
  constexpr int64_t kWidth = Panels<S>::kWidth, kRegister = Panels<S>::kRegister;
  const int64_t depth = panels.depth,
                row_size = int64_t{panels.groups_in(panel)} * panels.gates * kRegister;
  for (int g = 0; g < panels.groups_in(panel); ++g) {
    const int64_t unit = panels.first_unit(panel, g), units = panels.units_from(unit);
    for (int gate = 0; gate < panels.gates; ++gate, dst += kRegister) {
      const S* src = w + (gate * panels.hidden + unit) * depth;
      for (int64_t k = 0; k < depth; k += kRegister) {
        const int64_t count = depth - k < kRegister ? depth - k : kRegister;
        Raw square[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
          square[i] = i < units ? Operands<S>::load(src + i * depth + k, count) : Raw{};
        transpose<Compute<S>>(square);
        const int64_t first = k / Panels<S>::kPerLane, left = panels.registers() - first;
        for (int64_t i = 0; i < kWidth && i < left; ++i)
          Operands<S>::store(dst + (first + i) * row_size, square[i]);
      }
    }
  }
}

// One panel of w [K, H] for a product with w as it stands: d_gates w_hh and d_gates w_ih.
template <class S>
void pack_backward(const S* w, const Panels<S>& panels, int64_t panel, S* dst) {
  constexpr int64_t kPerLane = Panels<S>::kPerLane, kRegister = Panels<S>::kRegister;
  const int64_t H = panels.hidden, depth = panels.registers() * kPerLane;
  for (int64_t k = 0; k < depth; k += kPerLane) {
    for (int g = 0; g < panels.groups_in(panel); ++g, dst += kRegister) {
      const int64_t unit = panels.first_unit(panel, g), rows = panels.depth - k;
      Operands<S>::store(
          dst, rows > 0 ? Operands<S>::load_rows(w + k * H + unit, H, rows, panels.units_from(unit))
                        : typename Operands<S>::Raw{});
    }
  }
}

}  // namespace rnnfast::cpu
