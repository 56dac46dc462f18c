// Elementary functions of the cells, for any number-like V: a SIMD register, a float, a double.
// V brings +, -, *, /, a constructor from its scalar, comparison to a mask, and the free functions
// below.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define RNNFAST_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define RNNFAST_FN inline __attribute__((always_inline))
#else
#define RNNFAST_FN inline
#endif
// The same of a lambda, after its arguments. A name, as a formatter makes a mess of attributes.
#if defined(__GNUC__)
#define RNNFAST_INLINE __attribute__((always_inline))
#else
#define RNNFAST_INLINE
#endif

namespace rnnfast {

template <class V>
struct ScalarOf {
  using type = V;
};

// The numbers of the functions below. Polynomials: mpmath.chebyfit, highest power first.
//   kExp:  e^r = 1 + r P(r) on |r| <= ln(2) / 2   within 4e-9, 7e-18
//   kTanh: tanh x = x + x^3 P(x^2) on |x| <= 0.7  within 3e-9, 2e-18 of itself
template <class T>
struct MathConstants;

template <>
struct MathConstants<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  // Adding it rounds to an integer and leaves that integer in the low bits of the sum.
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2
  static constexpr float kLargestExp = 87.f;  // e^x stays finite and normal
  static constexpr float kTanhIsOne = 9.02f;  // 1 - tanh(x) < 2^-25
  static constexpr float kExp[] = {1.39336410e-3f, 8.36914850e-3f, 4.16664650e-2f,
                                   1.66665053e-1f, 5.00000001e-1f, 1.00000001f};
  static constexpr float kTanh[] = {2.06062143e-3f,  -8.11350702e-3f, 2.16894059e-2f,
                                    -5.39481703e-2f, 1.33332502e-1f,  -3.33333328e-1f};
};

template <>
struct MathConstants<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kLargestExp = 708.0;
  static constexpr double kTanhIsOne = 19.1;  // 1 - tanh(x) < 2^-54
  static constexpr double kExp[] = {2.51052063739570111e-8,
                                    2.76263572414472229e-7,
                                    2.75572554257464343e-6,
                                    2.48015043469976873e-5,
                                    1.98412698748004920e-4,
                                    1.38888889324885982e-3,
                                    8.33333333332614088e-3,
                                    4.16666666665731426e-2,
                                    1.66666666666666710e-1,
                                    5.00000000000000562e-1,
                                    1.0};
  static constexpr double kTanh[] = {
      -1.93526536869223505e-6, 1.09388960993197732e-5,  -3.56739259770914391e-5,
      9.51440628782986405e-5,  -2.38526036139274191e-4, 5.89884392388881163e-4,
      -1.45581095070534112e-3, 3.59212544796965318e-3,  -8.86323534557734958e-3,
      2.18694885283180995e-2,  -5.39682539680803678e-2, 1.33333333333331819e-1,
      -3.33333333333333331e-1};
};

RNNFAST_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
RNNFAST_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

template <class V>
RNNFAST_FN V select(bool mask, V a, V b) {
  return mask ? a : b;
}

// 2^n p, from rounded = n + kRound and p near 1: n is added to the exponent of p.
template <class T>
RNNFAST_FN T times_power_of_two(T p, T rounded) {
  typename MathConstants<T>::Bits bits, n;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&n, &rounded, sizeof n);
  bits += n << MathConstants<T>::kMantissa;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// |x|, and a size >= 0 with the sign of x.
RNNFAST_FN float absolute(float x) { return __builtin_fabsf(x); }
RNNFAST_FN double absolute(double x) { return __builtin_fabs(x); }
RNNFAST_FN float with_sign_of(float x, float size) { return __builtin_copysignf(size, x); }
RNNFAST_FN double with_sign_of(double x, double size) { return __builtin_copysign(size, x); }

// The smaller and the larger of two numbers; b where one is NaN.
template <class V>
RNNFAST_FN V smaller(V a, V b) {
  return select(a < b, a, b);
}
template <class V>
RNNFAST_FN V larger(V a, V b) {
  return select(a > b, a, b);
}

// Keeps NaN.
template <class V>
RNNFAST_FN V clamp(V x, typename ScalarOf<V>::type limit) {
  return larger(V(-limit), smaller(V(limit), x));
}

// The polynomial with these coefficients, highest power first, whose first i terms have come to p.
template <const auto& coefficients, int i = 1, class V>
RNNFAST_FN V horner(V x, V p) {
  if constexpr (i == sizeof(coefficients) / sizeof(*coefficients)) {
    return p;
  } else {
    constexpr auto coefficient = coefficients[i];
    return horner<coefficients, i + 1>(x, fma(p, x, V(coefficient)));
  }
}

// e^x for |x| <= kLargestExp: 2^n e^r, where n is an integer and |r| <= ln(2) / 2. Max error: 1.2
// ULP.
template <class V>
RNNFAST_FN V exp(V x) {
  using C = MathConstants<typename ScalarOf<V>::type>;
  const V rounded = fma(x, V(C::kLog2e), V(C::kRound)), n = rounded - V(C::kRound);
  const V r = fma(n, V(-C::kLn2Low), fma(n, V(-C::kLn2High), x));
  const V p = horner<C::kExp>(r, V(C::kExp[0]));
  return times_power_of_two(fma(p, r, V(1)), rounded);
}

// 1 / (1 + e^-x). Max error: 2.5 ULP, and in absolute terms 9e-8 in float32, 1.7e-16 in float64;
// below -kLargestExp the result is 0 (1.6e-38 at most in float32), as then a gate is closed to
// gradients without end, too. Any x; NaN stays NaN. Measured by tests/test_benchmarks.py.
template <class V>
RNNFAST_FN V sigmoid(V x) {
  using C = MathConstants<typename ScalarOf<V>::type>;
  const V y = V(1) / (V(1) + exp(V(0) - clamp(x, C::kLargestExp)));
  return select(x < V(-C::kLargestExp), V(0), y);
}

// A polynomial up to |x| = 0.7; from there 1 - 2 / (e^2|x| + 1) with the sign of x, whose error
// shrinks as the result nears 1. Max error: 1.2 ULP, and in absolute terms 7e-8 in float32, 1.3e-16
// in float64. Any x; NaN stays NaN. Measured by tests/test_benchmarks.py.
template <class V>
RNNFAST_FN V tanh(V x) {
  using C = MathConstants<typename ScalarOf<V>::type>;
  const V size = absolute(x), squared = x * x;
  const V e = exp(smaller(V(2 * C::kTanhIsOne), size + size));
  const V large = with_sign_of(x, fma(V(-2), V(1) / (e + V(1)), V(1)));
  const V p = horner<C::kTanh>(squared, V(C::kTanh[0]));
  return select(size > V(0.7), large, fma(squared * x, p, x));
}

// max(x, 0), exact. NaN stays NaN, as in torch.
template <class V>
RNNFAST_FN V relu(V x) {
  return select(x < V(0), V(0), x);
}

}  // namespace rnnfast
