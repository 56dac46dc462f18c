// What the products of a layer multiply: registers of numbers, or of pairs of bfloat16.
#pragma once

#include "cpu/bfloat16.h"

namespace rnnfast {

// Registers of numbers stored as S. In each lane of the sums one number, or kPerLane neighbours,
// whose products that lane adds up.
template <class S>
struct Operands {
  static constexpr int kPerLane = 1;
  using Raw = typename Vec<S>::Raw;

  static RNNFAST_FN Raw load(const S* p) { return Vec<S>::load(p).raw; }
  static RNNFAST_FN Raw load(const S* p, int64_t n) { return Vec<S>::load(p, n).raw; }
  static RNNFAST_FN void store(S* p, Raw raw) { Vec<S>(raw).store(p); }
  // The lane at p everywhere.
  static RNNFAST_FN Raw broadcast(const S* p) { return Vec<S>(*p).raw; }
  static RNNFAST_FN void add_products(Raw& sums, Raw a, Raw b) { sums += a * b; }
};

#if defined(__AVX512BF16__)
// Raw is one of float32 by name only: bits that nothing but add_products calculates with.
template <>
struct Operands<Bfloat16> {
  static constexpr int kPerLane = 2;
  using Raw = Vec<Bfloat16>::Raw;

  static RNNFAST_FN Raw load(const Bfloat16* p) { return _mm512_loadu_ps(p); }
  static RNNFAST_FN Raw load(const Bfloat16* p, int64_t n) {
    const auto first = static_cast<__mmask32>((uint64_t{1} << n) - 1);
    return (Raw)_mm512_maskz_loadu_epi16(first, p);
  }
  static RNNFAST_FN void store(Bfloat16* p, Raw raw) { _mm512_storeu_ps(p, raw); }
  static RNNFAST_FN Raw broadcast(const Bfloat16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return (Raw)_mm512_set1_epi32(pair);
  }
  // The last of an odd number: its neighbour is zero.
  static RNNFAST_FN Raw broadcast_last(const Bfloat16* p) {
    return (Raw)_mm512_set1_epi32(p->bits);
  }
  static RNNFAST_FN void add_products(Raw& sums, Raw a, Raw b) {
    sums = _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
  }
};
#endif

}  // namespace rnnfast
