// What the products of a layer multiply: registers of numbers, or of pairs of bfloat16.
#pragma once

#include <type_traits>

#include "cpu/bfloat16.h"

namespace rnnfast::cpu {

// Whether numbers stored as S may be multiplied by tiles (tiles.h), and the depth of one.
template <class S>
inline constexpr bool kByTiles = kTiles && std::is_same_v<S, Bfloat16>;
inline constexpr int64_t kTileDepth = 32;

// Registers of numbers stored as S. In each lane of the sums one number, or kPerLane neighbours,
// whose products that lane adds up. Panels hold whole blocks of kDepthBlock of them.
template <class S>
struct Operands {
  static constexpr int kPerLane = 1, kDepthBlock = 1;
  using Raw = typename Vec<S>::Raw;

  static RNNFAST_FN Raw load(const S* p) { return Vec<S>::load(p).raw; }
  static RNNFAST_FN Raw load(const S* p, int64_t n) { return Vec<S>::load(p, n).raw; }
  // n numbers of a row, and of the next ones below them in the same lanes.
  static RNNFAST_FN Raw load_rows(const S* p, int64_t, int64_t, int64_t n) { return load(p, n); }
  static RNNFAST_FN void store(S* p, Raw raw) { Vec<S>(raw).store(p); }
  // The lane at p everywhere.
  static RNNFAST_FN Raw broadcast(const S* p) { return Vec<S>(*p).raw; }
  static RNNFAST_FN void add_products(Raw& sums, Raw a, Raw b) { sums += a * b; }
};

#if defined(__AVX512BF16__)
// Registers of pairs: float32 by name, bits that nothing but add_products calculates with.
struct PairRegister {
  using Raw = Vec<Bfloat16>::Raw;

  static RNNFAST_FN Raw load(const Bfloat16* p) { return _mm512_loadu_ps(p); }
  static RNNFAST_FN Raw load(const Bfloat16* p, int64_t n) {
    const auto first = static_cast<__mmask32>((uint64_t{1} << n) - 1);
    return (Raw)_mm512_maskz_loadu_epi16(first, p);
  }
  static RNNFAST_FN void store(Bfloat16* p, Raw raw) { _mm512_storeu_ps(p, raw); }
  static RNNFAST_FN Raw everywhere(uint32_t pair) { return (Raw)_mm512_set1_epi32(pair); }
  static RNNFAST_FN void add_products(Raw& sums, Raw a, Raw b) {
    sums = _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
  }
};
#elif defined(RNNFAST_TWIN)
struct PairRegister {
  using Raw = Vec<Bfloat16>::Raw;
  using Bits = Register<float>::Bits;

  static RNNFAST_FN Raw load(const Bfloat16* p) { return load(p, 2 * Vec<Bfloat16>::kWidth); }
  static RNNFAST_FN Raw load(const Bfloat16* p, int64_t n) {
    Raw result{};
    std::memcpy(&result, p, n * sizeof *p);
    return result;
  }
  static RNNFAST_FN void store(Bfloat16* p, Raw raw) { std::memcpy(p, &raw, sizeof raw); }
  static RNNFAST_FN Raw everywhere(uint32_t pair) { return (Raw)(pair - Bits{}); }
  // vdpbf16ps: the second of each pair first. Products are exact. A call, for what is one
  // instruction elsewhere is some dozens here, and register tiles repeat it often.
  [[gnu::noinline]] static void add_products(Raw& sums, const Raw& a, const Raw& b) {
    constexpr uint32_t kUpper = 0xffff0000;
    const auto flush = [](Bits x) RNNFAST_INLINE {
      const auto normal = (x & 0x7f800000) != 0;
      return (Raw)(x & ((Bits)normal | 0x80000000));
    };
    sums = flush((Bits)(flush((Bits)sums) + flush((Bits)a & kUpper) * flush((Bits)b & kUpper)));
    sums = flush((Bits)(sums + flush((Bits)a << 16) * flush((Bits)b << 16)));
  }
};
#endif

#if defined(__AVX512BF16__) || defined(RNNFAST_TWIN)
template <>
struct Operands<Bfloat16> : PairRegister {
  static constexpr int kPerLane = 2, kDepthBlock = kTiles ? kTileDepth : kPerLane;

  static RNNFAST_FN Raw load_rows(const Bfloat16* p, int64_t stride, int64_t rows, int64_t n) {
    const Vec<Bfloat16> next = rows > 1 ? Vec<Bfloat16>::load(p + stride, n) : Vec<Bfloat16>(0);
    return in_pairs(Vec<Bfloat16>::load(p, n), next).raw;
  }
  static RNNFAST_FN Raw broadcast(const Bfloat16* p) {
    uint32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return everywhere(pair);
  }
  // The last of an odd number: its neighbour is zero.
  static RNNFAST_FN Raw broadcast_last(const Bfloat16* p) { return everywhere(p->bits); }
};
#endif

// Whether numbers stored as S are multiplied two of K at a time.
template <class S>
inline constexpr bool kInPairs = Operands<S>::kPerLane == 2;

}  // namespace rnnfast::cpu
