// Vec<Bfloat16>: a register of float32 numbers that are stored as bfloat16, where the CPU has
// instructions for it. What the cells calculate with it is cheaper than in float32 by the digits
// that bfloat16 does not keep.
#pragma once

#include "cpu/vec.h"

#if defined(__AVX512BF16__)

namespace rnnfast {

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

// 1 / x for positive x, within 2^-14 of it: a 32nd of what rounding to bfloat16 takes.
RNNFAST_FN BfloatVec reciprocal(BfloatVec x) { return _mm512_maskz_rcp14_ps(0xffff, x.raw); }

// As in math.h, but for the reciprocal.
RNNFAST_FN BfloatVec sigmoid(BfloatVec x) {
  BfloatVec scale, excess;
  split_exp(BfloatVec(0) - clamp(x, ExpConstants<float>::kLargestExp), scale, excess);
  return reciprocal(BfloatVec(1) + fma(scale, excess, scale));
}

// With e = e^2x - 1, free of cancellation: e / (e + 2).
RNNFAST_FN BfloatVec tanh(BfloatVec x) {
  const BfloatVec size = clamp(x, ExpConstants<float>::kTanhIsOne);
  BfloatVec scale, excess;
  split_exp(size + size, scale, excess);
  const BfloatVec e = fma(scale, excess, scale - BfloatVec(1));
  return e * reciprocal(e + BfloatVec(2));
}

}  // namespace rnnfast

#endif
