// Vec<S>: one SIMD register, as wide as the instruction set this library is built for, by the
// compiler's vector extensions. Intrinsics only for what these cannot say: loads and stores of the
// first n elements.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace rnnfast::cpu {

// RNNFAST_TWIN: what the instructions of AVX512-BF16 and AMX do, in plain C++, so that the kernels
// made of them are tested on any CPU. Never installed.
#if defined(__AVX512F__) || defined(RNNFAST_TWIN)
inline constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kVectorBytes = 16, kVectorRegisters = 32;
#else
inline constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

// Whether this library multiplies bfloat16 as it stands, otherwise the binder widens it; and
// whether it does so by tiles, too.
#if defined(__AVX512BF16__) || defined(RNNFAST_TWIN)
inline constexpr bool kBfloat16Products = true;
#else
inline constexpr bool kBfloat16Products = false;
#endif
#if defined(__AMX_BF16__) || defined(RNNFAST_TWIN)
inline constexpr bool kTiles = true;
#else
inline constexpr bool kTiles = false;
#endif

// The upper half of a float32.
struct Bfloat16 {
  uint16_t bits;

  operator float() const {
    const uint32_t wide = uint32_t{bits} << 16;
    float result;
    std::memcpy(&result, &wide, sizeof result);
    return result;
  }
};

// What the instructions for bfloat16 make of a number below the normal ones.
inline float flush_to_zero(float x) {
  return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0, x) : x;
}

// What numbers stored as S are calculated in.
template <class S>
struct ComputeOf {
  using type = S;
};
template <>
struct ComputeOf<Bfloat16> {
  using type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// Spelled out per type: GCC 12 drops these attributes from a typedef of a dependent type.
template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float Raw __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned
      __attribute__((vector_size(kVectorBytes), aligned(alignof(float)), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Register<double> {
  typedef double Raw __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned
      __attribute__((vector_size(kVectorBytes), aligned(alignof(double)), may_alias));
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
};

// Of numbers that are stored as S.
template <class S>
struct Vec {
  using T = Compute<S>;
  static constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));
  using Raw = typename Register<T>::Raw;
  using Unaligned = typename Register<T>::Unaligned;
  Raw raw;

  Vec() = default;
  RNNFAST_FN Vec(Raw r) : raw(r) {}
  RNNFAST_FN Vec(T s) : raw(s - Raw{}) {}  // x - 0 folds to a broadcast, x + 0 would not (-0)

  static RNNFAST_FN Vec load(const T* p) { return Raw(*reinterpret_cast<const Unaligned*>(p)); }
  RNNFAST_FN void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = raw; }

  // The first n elements, 0 < n <= kWidth; load leaves zeros behind them. Nothing past them is
  // touched.
  static RNNFAST_FN Vec load(const T* p, int64_t n) {
    return n == kWidth ? load(p) : load_first(p, n);
  }
  RNNFAST_FN void store(T* p, int64_t n) const { n == kWidth ? store(p) : store_first(p, n); }
  static RNNFAST_FN Vec load_first(const T* p, int64_t n);
  RNNFAST_FN void store_first(T* p, int64_t n) const;

  // The same of a Vec<Bfloat16> in memory; store rounds to the nearest, ties to even.
  static RNNFAST_FN Vec load(const Bfloat16* p, int64_t n);
  RNNFAST_FN void store(Bfloat16* p, int64_t n) const;

  friend RNNFAST_FN Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
  friend RNNFAST_FN Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
  friend RNNFAST_FN Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
  friend RNNFAST_FN Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
  friend RNNFAST_FN auto operator<(Vec a, Vec b) { return a.raw < b.raw; }
  friend RNNFAST_FN auto operator>(Vec a, Vec b) { return a.raw > b.raw; }
  friend RNNFAST_FN auto operator<=(Vec a, Vec b) { return a.raw <= b.raw; }
};

}  // namespace rnnfast::cpu

namespace rnnfast {

template <class S>
struct ScalarOf<cpu::Vec<S>> {
  using type = cpu::Compute<S>;
};

}  // namespace rnnfast

namespace rnnfast::cpu {

template <class S>
RNNFAST_FN Vec<S> fma(Vec<S> a, Vec<S> b, Vec<S> c) {
  return a.raw * b.raw + c.raw;  // contracted, see -ffp-contract in setup.py
}

template <class S, class Mask>
RNNFAST_FN Vec<S> select(Mask mask, Vec<S> a, Vec<S> b) {
  return typename Vec<S>::Raw(mask ? a.raw : b.raw);
}

template <class S>
using BitsOf = typename Register<Compute<S>>::Bits;

template <class S>
RNNFAST_FN Vec<S> times_power_of_two(Vec<S> p, Vec<S> rounded) {
  constexpr int kMantissa = MathConstants<Compute<S>>::kMantissa;
  return typename Vec<S>::Raw((BitsOf<S>)p.raw + ((BitsOf<S>)rounded.raw << kMantissa));
}

// The sign bits of x.
template <class S>
RNNFAST_FN BitsOf<S> signs(Vec<S> x) {
  return (BitsOf<S>)x.raw & (BitsOf<S>)Vec<S>(-0.).raw;
}

template <class S>
RNNFAST_FN Vec<S> absolute(Vec<S> x) {
  return typename Vec<S>::Raw((BitsOf<S>)x.raw ^ signs(x));
}

template <class S>
RNNFAST_FN Vec<S> with_sign_of(Vec<S> x, Vec<S> size) {
  return typename Vec<S>::Raw((BitsOf<S>)size.raw | signs(x));
}

// As one instruction, which compilers do not see in the select. (All lanes of a mask: GCC's headers
// give the plain form an operand without a value, and GCC warns.)
#if defined(__AVX512F__)
RNNFAST_FN Vec<float> smaller(Vec<float> a, Vec<float> b) {
  return _mm512_mask_min_ps(a.raw, 0xffff, a.raw, b.raw);
}
RNNFAST_FN Vec<float> larger(Vec<float> a, Vec<float> b) {
  return _mm512_mask_max_ps(a.raw, 0xffff, a.raw, b.raw);
}
RNNFAST_FN Vec<double> smaller(Vec<double> a, Vec<double> b) {
  return _mm512_mask_min_pd(a.raw, 0xff, a.raw, b.raw);
}
RNNFAST_FN Vec<double> larger(Vec<double> a, Vec<double> b) {
  return _mm512_mask_max_pd(a.raw, 0xff, a.raw, b.raw);
}
#elif defined(__AVX2__)
RNNFAST_FN Vec<float> smaller(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.raw, b.raw); }
RNNFAST_FN Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.raw, b.raw); }
RNNFAST_FN Vec<double> smaller(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a.raw, b.raw); }
RNNFAST_FN Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a.raw, b.raw); }
#endif

#if defined(__AVX512F__)
template <>
RNNFAST_FN Vec<float> Vec<float>::load_first(const float* p, int64_t n) {
  return Raw(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
template <>
RNNFAST_FN void Vec<float>::store_first(float* p, int64_t n) const {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), raw);
}
template <>
RNNFAST_FN Vec<double> Vec<double>::load_first(const double* p, int64_t n) {
  return Raw(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
template <>
RNNFAST_FN void Vec<double>::store_first(double* p, int64_t n) const {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), raw);
}
#elif defined(__AVX2__)
RNNFAST_FN __m256i first_lanes(int64_t n, float) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RNNFAST_FN __m256i first_lanes(int64_t n, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
template <>
RNNFAST_FN Vec<float> Vec<float>::load_first(const float* p, int64_t n) {
  return Raw(_mm256_maskload_ps(p, first_lanes(n, 0.f)));
}
template <>
RNNFAST_FN void Vec<float>::store_first(float* p, int64_t n) const {
  _mm256_maskstore_ps(p, first_lanes(n, 0.f), raw);
}
template <>
RNNFAST_FN Vec<double> Vec<double>::load_first(const double* p, int64_t n) {
  return Raw(_mm256_maskload_pd(p, first_lanes(n, 0.)));
}
template <>
RNNFAST_FN void Vec<double>::store_first(double* p, int64_t n) const {
  _mm256_maskstore_pd(p, first_lanes(n, 0.), raw);
}
#else
template <class S>
RNNFAST_FN Vec<S> Vec<S>::load_first(const T* p, int64_t n) {
  Raw r{};
  for (int64_t i = 0; i < n; ++i) r[i] = p[i];
  return r;
}
template <class S>
RNNFAST_FN void Vec<S>::store_first(T* p, int64_t n) const {
  for (int64_t i = 0; i < n; ++i) p[i] = raw[i];
}
#endif

}  // namespace rnnfast::cpu
