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

namespace rnnfast {

template <class V>
struct ScalarOf {
  using type = V;
};

// e^x is split as 2^n e^r with |r| <= ln(2)/2. Adding kRound rounds to an integer and leaves that
// integer in the low bits of the sum, where a shift by kMantissa turns it into an exponent.
template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kBias = 127;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2
  static constexpr float kLargestExp = 87.f;  // 2^n stays finite and normal
  static constexpr float kTanhIsOne = 9.02f;  // 1 - tanh(x) < 2^-25
  // e^r = 1 + r + r^2 P(r): Cephes' expf (Moshier), highest power first.
  static constexpr int kTerms = 6;
  static constexpr float kPolynomial[kTerms] = {1.9875691500e-4f, 1.3981999507e-3f,
                                                8.3334519073e-3f, 4.1665795894e-2f,
                                                1.6666665459e-1f, 5.0000001201e-1f};
};

template <>
struct ExpConstants<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kLargestExp = 708.0;
  static constexpr double kTanhIsOne = 19.1;  // 1 - tanh(x) < 2^-54
  // Taylor's series, whose first left-out term is below 2^-57 on |r| <= ln(2)/2.
  static constexpr int kTerms = 12;
  static constexpr double kPolynomial[kTerms] = {
      1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
      1.0 / 362880.0,     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,
      1.0 / 120.0,        1.0 / 24.0,        1.0 / 6.0,        1.0 / 2.0};
};

RNNFAST_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
RNNFAST_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

template <class V>
RNNFAST_FN V select(bool mask, V a, V b) {
  return mask ? a : b;
}

// 2^n, from rounded = n + kRound.
template <class T>
RNNFAST_FN T power_of_two(T rounded) {
  using C = ExpConstants<T>;
  typename C::Bits bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  bits = (bits + C::kBias) << C::kMantissa;
  T result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

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

// The polynomial of ExpConstants at r, whose first i terms have come to p.
template <int i, class V>
RNNFAST_FN V horner(V r, V p) {
  using C = ExpConstants<typename ScalarOf<V>::type>;
  if constexpr (i == C::kTerms) {
    return p;
  } else {
    constexpr auto coefficient = C::kPolynomial[i];
    return horner<i + 1>(r, fma(p, r, V(coefficient)));
  }
}

// e^x = scale + scale * excess, for |x| <= kLargestExp. `excess` = e^r - 1 keeps its relative
// accuracy near x = 0.
template <class V>
RNNFAST_FN void split_exp(V x, V& scale, V& excess) {
  using C = ExpConstants<typename ScalarOf<V>::type>;
  const V rounded = fma(x, V(C::kLog2e), V(C::kRound));
  const V n = rounded - V(C::kRound);
  V r = fma(n, V(-C::kLn2High), x);
  r = fma(n, V(-C::kLn2Low), r);
  excess = fma(r * r, horner<1>(r, V(C::kPolynomial[0])), r);
  scale = power_of_two(rounded);
}

// 1 / (1 + e^-x). Max error: 2.5 ULP, and in absolute terms 9e-8 in float32, 1.7e-16 in float64;
// below -kLargestExp the result stays at that of -kLargestExp (1.6e-38 in float32). Any x; NaN
// stays NaN. Measured by tests/test_benchmarks.py.
template <class V>
RNNFAST_FN V sigmoid(V x) {
  V scale, excess;
  split_exp(V(0) - clamp(x, ExpConstants<typename ScalarOf<V>::type>::kLargestExp), scale, excess);
  return V(1) / (V(1) + fma(scale, excess, scale));
}

// With e = e^2|x| - 1, free of cancellation: e / (e + 2) where the result is below 1/2, and above
// it 1 - 2 / (e + 2), whose error shrinks as the result nears 1; then the sign. One step of
// correction takes the rounding of e + 2 and of the quotient out again: torch's tanh errs by 0.51
// ULP, and a recurrence repeats what the last step erred. Max error: 2.2 ULP, and in absolute
// terms 7e-8 in float32, 1.3e-16 in float64. Any x; NaN stays NaN. Measured by
// tests/test_benchmarks.py.
template <class V>
RNNFAST_FN V tanh(V x) {
  const auto negative = x < V(0);
  V size = select(negative, V(0) - x, x);
  size = smaller(V(ExpConstants<typename ScalarOf<V>::type>::kTanhIsOne), size);
  V scale, excess;
  split_exp(size + size, scale, excess);
  const V e = fma(scale, excess, scale - V(1));
  const auto large = e > V(2);
  const V numerator = select(large, V(-2), e), divisor = e + V(2);
  const V lost =
      select(large, V(2) - (divisor - e), e - (divisor - V(2)));  // divisor + lost = e + 2
  const V quotient = numerator / divisor;
  const V minus_quotient = V(0) - quotient;
  const V rest = fma(minus_quotient, lost, fma(minus_quotient, divisor, numerator));
  const V half_inverse = select(large, minus_quotient, V(1) - quotient);  // twice 1 / divisor
  const V corrected = fma(rest * V(0.5), half_inverse, quotient);
  const V result = select(large, corrected + V(1), corrected);
  return select(negative, V(0) - result, result);
}

// max(x, 0), exact. NaN stays NaN, as in torch.
template <class V>
RNNFAST_FN V relu(V x) {
  return select(x < V(0), V(0), x);
}

}  // namespace rnnfast
