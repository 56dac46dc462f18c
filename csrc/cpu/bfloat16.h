// Vec<Bfloat16>: a register of float32 numbers that are stored as bfloat16, where the CPU has
// instructions for it. What the cells calculate with it is cheaper than in float32 by the digits
// that bfloat16 does not keep.
#pragma once

#include "cpu/vec.h"

#if defined(__AVX512BF16__)

namespace rnnfast::cpu {

using BfloatVec = Vec<Bfloat16>;

template <>
RNNFAST_FN BfloatVec BfloatVec::load_first(const float* p, int64_t n) {
  return Vec<float>::load_first(p, n).raw;
}
template <>
RNNFAST_FN void BfloatVec::store_first(float* p, int64_t n) const {
  Vec<float>(raw).store_first(p, n);
}
template <>
RNNFAST_FN BfloatVec BfloatVec::load(const Bfloat16* p, int64_t n) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  const auto bits = (Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  return (Raw)(__builtin_convertvector(bits, Register<float>::Bits) << 16);
}
template <>
RNNFAST_FN void BfloatVec::store(Bfloat16* p, int64_t n) const {
  const auto bits = (__m256i)_mm512_cvtneps_pbh(raw);
  if (n == kWidth) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
  } else {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), bits);
  }
}

RNNFAST_FN BfloatVec smaller(BfloatVec a, BfloatVec b) {
  return smaller(Vec<float>(a.raw), Vec<float>(b.raw)).raw;
}
RNNFAST_FN BfloatVec larger(BfloatVec a, BfloatVec b) {
  return larger(Vec<float>(a.raw), Vec<float>(b.raw)).raw;
}

// 1 / x for positive x, within 2^-14 of it: a 32nd of what rounding to bfloat16 takes.
RNNFAST_FN BfloatVec reciprocal(BfloatVec x) { return _mm512_maskz_rcp14_ps(0xffff, x.raw); }

}  // namespace rnnfast::cpu

#elif defined(RNNFAST_TWIN)

namespace rnnfast::cpu {

using BfloatVec = Vec<Bfloat16>;

template <>
RNNFAST_FN BfloatVec BfloatVec::load(const Bfloat16* p, int64_t n) {
  Raw result{};
  for (int64_t i = 0; i < n; ++i) result[i] = p[i];
  return result;
}
template <>
RNNFAST_FN void BfloatVec::store(Bfloat16* p, int64_t n) const {
  for (int64_t i = 0; i < n; ++i) {
    const float number = flush_to_zero(raw[i]);
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    bits = number == number ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    p[i].bits = static_cast<uint16_t>(bits >> 16);
  }
}

RNNFAST_FN BfloatVec reciprocal(BfloatVec x) { return BfloatVec(1) / x; }

}  // namespace rnnfast::cpu

#endif

#if defined(__AVX512BF16__) || defined(RNNFAST_TWIN)

namespace rnnfast::cpu {

// 2^x = scale + scale * excess, for |x| up to `limit` < 127, beyond which it stays as it is there.
// NaN stays NaN. 2^f is 1 + f P(f) on |f| <= 1/2, within 2.9e-6 of it; near zero `excess` is within
// 3.4e-5 of itself.
RNNFAST_FN void split_power_of_two(BfloatVec x, float limit, BfloatVec& scale, BfloatVec& excess) {
  using V = BfloatVec;
  x = clamp(x, limit);
  const V rounded = x + V(MathConstants<float>::kRound);
  const V f = x - (rounded - V(MathConstants<float>::kRound));
  V p = fma(f, V(9.58285e-3f), V(5.590643e-2f));
  p = fma(f, p, V(2.4024099e-1f));
  excess = f * fma(f, p, V(6.9312419e-1f));
  scale = times_power_of_two(V(1), rounded);
}

// 1 / (1 + e^-x), within 7e-5 of it down to x = -87, from where on it is 0: see math.h.
RNNFAST_FN BfloatVec sigmoid(BfloatVec x) {
  using C = MathConstants<float>;
  BfloatVec scale, excess;
  split_power_of_two(x * BfloatVec(-C::kLog2e), C::kLargestExp * C::kLog2e, scale, excess);
  const BfloatVec y = reciprocal(BfloatVec(1) + fma(scale, excess, scale));
  return select(x < BfloatVec(-C::kLargestExp), BfloatVec(0), y);
}

// With e = e^2x - 1, free of cancellation: e / (e + 2), within 2e-4 of itself.
RNNFAST_FN BfloatVec tanh(BfloatVec x) {
  using C = MathConstants<float>;
  BfloatVec scale, excess;
  split_power_of_two(x * BfloatVec(2 * C::kLog2e), 2 * C::kTanhIsOne * C::kLog2e, scale, excess);
  const BfloatVec e = fma(scale, excess, scale - BfloatVec(1));
  return e * reciprocal(e + BfloatVec(2));
}

// The nearest numbers of bfloat16.
RNNFAST_FN BfloatVec rounded(BfloatVec x) {
  Bfloat16 numbers[BfloatVec::kWidth];
  x.store(numbers, BfloatVec::kWidth);
  return BfloatVec::load(numbers, BfloatVec::kWidth);
}

// In each lane a number of `first` beside the one of `second`; both are numbers of bfloat16.
RNNFAST_FN BfloatVec in_pairs(BfloatVec first, BfloatVec second) {
  using Bits = Register<float>::Bits;
  return (BfloatVec::Raw)((Bits)first.raw >> 16 | (Bits)second.raw);
}

}  // namespace rnnfast::cpu

#endif
