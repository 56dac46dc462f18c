// The types that tensors are stored in, and the number type with which the cells of cells.h run for
// each of them.
#pragma once

#include "cuda/device.h"
#include "math.h"
#include "unit.h"

namespace rnnfast {

RNNFAST_FN float as_float(uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

RNNFAST_FN uint32_t as_bits(float x) {
  uint32_t result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}

// A float whose elementary functions are the GPU's approximations, for results that are rounded to
// 16 bits anyway.
struct Approximate {
  float value;

  Approximate() = default;
  RNNFAST_FN Approximate(float x) : value(x) {}

  friend RNNFAST_FN Approximate operator+(Approximate a, Approximate b) {
    return a.value + b.value;
  }
  friend RNNFAST_FN Approximate operator-(Approximate a, Approximate b) {
    return a.value - b.value;
  }
  friend RNNFAST_FN Approximate operator*(Approximate a, Approximate b) {
    return a.value * b.value;
  }
  friend RNNFAST_FN bool operator<(Approximate a, Approximate b) { return a.value < b.value; }
  friend RNNFAST_FN bool operator<=(Approximate a, Approximate b) { return a.value <= b.value; }
  friend RNNFAST_FN Approximate fma(Approximate a, Approximate b, Approximate c) {
    return fma(a.value, b.value, c.value);
  }
  // 1 / (1 + e^-x). Max error 4e-7 absolute; saturates to 0 and 1, NaN stays NaN.
  friend DEVICE Approximate sigmoid(Approximate x) {
    return dev::rcp_approx(1.f + dev::exp2_approx(x.value * -1.44269504f));
  }
  // 1 - 2 / (1 + e^2x). Max error 8e-7 absolute; saturates to -1 and 1, NaN stays NaN.
  friend DEVICE Approximate tanh(Approximate x) {
    return fma(-2.f, dev::rcp_approx(1.f + dev::exp2_approx(x.value * 2.88539008f)), 1.f);
  }
};

// As Approximate, but tanh keeps its relative error near zero: for float32 results. Max error 4e-7
// absolute.
struct Careful {
  float value;

  Careful() = default;
  RNNFAST_FN Careful(float x) : value(x) {}

  friend RNNFAST_FN Careful operator+(Careful a, Careful b) { return a.value + b.value; }
  friend RNNFAST_FN Careful operator-(Careful a, Careful b) { return a.value - b.value; }
  friend RNNFAST_FN Careful operator*(Careful a, Careful b) { return a.value * b.value; }
  friend RNNFAST_FN bool operator<(Careful a, Careful b) { return a.value < b.value; }
  friend RNNFAST_FN bool operator<=(Careful a, Careful b) { return a.value <= b.value; }
  friend RNNFAST_FN Careful fma(Careful a, Careful b, Careful c) {
    return fma(a.value, b.value, c.value);
  }
  friend DEVICE Careful sigmoid(Careful x) {
    return dev::rcp_approx(1.f + dev::exp2_approx(x.value * -1.44269504f));
  }
  friend DEVICE Careful tanh(Careful x) {
    using C = MathConstants<float>;
    const float size = absolute(x.value), squared = x.value * x.value;
    const float large = with_sign_of(
        x.value, fma(-2.f, dev::rcp_approx(1.f + dev::exp2_approx(size * 2.88539008f)), 1.f));
    const float p = horner<C::kTanh>(squared, C::kTanh[0]);
    // Both are computed: a branch would take longer, and a warp often needs both anyway.
    const float small = dev::opaque(fma(squared * x.value, p, x.value));
    return size > 0.7f ? large : small;
  }
};

// Compute: what sums and states are kept in. Value: what the cells are instantiated with.
template <class E>
struct Arithmetic {
  using Compute = float;
  using Value = Approximate;
};
template <>
struct Arithmetic<float> {
  using Compute = float;
  using Value = float;
};
template <>
struct Arithmetic<double> {
  using Compute = double;
  using Value = double;
};

template <class E>
using Compute = typename Arithmetic<E>::Compute;
template <class E>
using Value = typename Arithmetic<E>::Value;

RNNFAST_FN float plain(Approximate x) { return x.value; }
RNNFAST_FN float plain(Careful x) { return x.value; }
RNNFAST_FN float plain(float x) { return x; }
RNNFAST_FN double plain(double x) { return x; }

// An element of a tensor in the compute type, and back.
template <class E>
DEVICE Compute<E> widen(E x) {
  if constexpr (sizeof(E) == 2) {
    return dev::to_float(x);
  } else {
    return x;
  }
}
template <class E>
DEVICE E narrow(Compute<E> x) {
  if constexpr (sizeof(E) == 2) {
    return dev::from_float<E>(x);
  } else {
    return x;
  }
}

// What backward needs of the gates of one unit: numbers side by side in memory, read and written
// together. A tensor of gates is [D, rows, H] of these.
constexpr int largest_word(int bytes) {
  const int power = bytes & -bytes;
  return power < 16 ? power : 16;
}
template <class E, int kCount>
struct alignas(largest_word(kCount* int{sizeof(E)})) KeptGates {
  static constexpr int kTogether = sizeof(E) == 2 && kCount % 2 == 0 ? 2 : 1;
  using Word = std::conditional_t<kTogether == 2, uint32_t, E>;
  Word word[kCount / kTogether];

  static DEVICE KeptGates of(const Compute<E> (&gates)[kCount]) {
    KeptGates kept;
    UNROLL
    for (int i = 0; i < kCount; i += kTogether) {
      if constexpr (kTogether == 2)
        kept.word[i / 2] = dev::pack2<E>(gates[i], gates[i + 1]);
      else
        kept.word[i] = narrow<E>(gates[i]);
    }
    return kept;
  }
  DEVICE Compute<E> gate(int i) const {
    if constexpr (kTogether == 2)
      return i % 2 == 0 ? dev::low_float<E>(word[i / 2]) : dev::high_float<E>(word[i / 2]);
    else
      return widen(word[i]);
  }
};
template <class Cell, class E>
using KeptOf = KeptGates<E, kReserveSlots<Cell>>;

// Two neighbouring elements of a tensor.
template <class E>
struct StoredPair {
  using Bits = std::conditional_t<sizeof(E) == 2, uint32_t, uint2>;  // the first in the low half
  Bits bits;

  static DEVICE StoredPair of(float first, float second) {
    StoredPair pair;
    if constexpr (sizeof(E) == 2) {
      pair.bits = dev::pack2<E>(first, second);
    } else {
      pair.bits.x = as_bits(first), pair.bits.y = as_bits(second);
    }
    return pair;
  }
  DEVICE float number(int i) const {
    if constexpr (sizeof(E) == 2) {
      const auto half = static_cast<uint16_t>(i == 0 ? bits : bits >> 16);
      E x;
      std::memcpy(&x, &half, sizeof x);
      return widen(x);
    } else {
      return as_float(i == 0 ? bits.x : bits.y);
    }
  }
};

}  // namespace rnnfast
