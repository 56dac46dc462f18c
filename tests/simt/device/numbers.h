// csrc/cuda/device/numbers.h on the emulator.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/device/threads.h"

namespace rnnfast::dev {

// ---- numbers ----

template <class To, class From>
DEVICE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(Bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x400u) {  // subnormal: a multiple of 2^-24
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t rebias = magnitude < 0x7c00u ? 112u << 23 : 224u << 23;  // else infinite or NaN
  return bit_cast<float>(sign | ((magnitude << 13) + rebias));
}

// Rounded to the nearest, ties to even.
template <class E>
DEVICE E from_float(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  if constexpr (std::is_same_v<E, float>) {
    return x;
  } else if constexpr (std::is_same_v<E, Bf16>) {
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    static_assert(std::is_same_v<E, Half>);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (x != x)
      return {0x7fff};
    else if (magnitude >= 0x47800000u)  // 2^16; what rounds up to it becomes infinite below
      half = 0x7c00u;
    else if (magnitude < 0x38800000u)  // 2^-14: subnormal; at 0.5 a float is a multiple of 2^-24
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
    else
      half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    return {static_cast<uint16_t>(sign | half)};
  }
}

template <class E>
DEVICE uint32_t pack2(float low, float high) {
  return from_float<E>(low).bits | static_cast<uint32_t>(from_float<E>(high).bits) << 16;
}

template <class E>
DEVICE float low_float(uint32_t pair) {
  return to_float(E{static_cast<uint16_t>(pair)});
}
template <class E>
DEVICE float high_float(uint32_t pair) {
  return to_float(E{static_cast<uint16_t>(pair >> 16)});
}

// Ties away from zero; every NaN becomes the same.
DEVICE uint32_t to_tf32(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  if (x != x) return 0x7fffffffu;
  return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

DEVICE float flush_subnormal(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x;
}
DEVICE float exp2_approx(float x) { return flush_subnormal(std::exp2(flush_subnormal(x))); }
DEVICE float rcp_approx(float x) { return flush_subnormal(1.f / flush_subnormal(x)); }
// As far off as the instruction may be: cut to 11 bits.
DEVICE float tanh_approx(float x) {
  return bit_cast<float>(bit_cast<uint32_t>(std::tanh(x)) & ~0x1fffu);
}

template <class T>
DEVICE T opaque(T x) {
  return x;
}

template <class T>
DEVICE T* opaque_global(T* p) {
  return p;
}
template <class T>
DEVICE T* opaque_shared(T* p) {
  return p;
}

// ---- warp collectives ----

DEVICE uint32_t shfl_xor(uint32_t v, int mask) {
  emu::Lane& lane = machine->lane();
  lane.in[0] = v;
  lane.in[1] = static_cast<uint32_t>(mask);
  collective("shfl_xor", [](emu::Warp& warp, const auto&) {
    for (uint32_t l = 0; l < emu::kWarp; ++l) {
      const uint32_t mask = warp.lanes[l].in[1];
      if (mask != warp.lanes[0].in[1] || mask >= emu::kWarp)
        machine->fail("shfl_xor with different or wrong masks");
      warp.lanes[l].out[0] = warp.lanes[l ^ mask].in[0];
    }
  });
  return lane.out[0];
}
DEVICE float shfl_xor(float v, int mask) {
  return bit_cast<float>(shfl_xor(bit_cast<uint32_t>(v), mask));
}
DEVICE double shfl_xor(double v, int mask) {
  const auto bits = bit_cast<uint64_t>(v);
  const uint64_t low = shfl_xor(static_cast<uint32_t>(bits), mask);
  const uint64_t high = shfl_xor(static_cast<uint32_t>(bits >> 32), mask);
  return bit_cast<double>(high << 32 | low);
}
DEVICE float shfl(float v, int from) {
  emu::Lane& lane = machine->lane();
  lane.in[0] = bit_cast<uint32_t>(v);
  lane.in[1] = static_cast<uint32_t>(from);
  collective("shfl", [](emu::Warp& warp, const auto&) {
    for (emu::Lane& l : warp.lanes) {
      if (l.in[1] >= emu::kWarp) machine->fail("shfl from no lane");
      l.out[0] = warp.lanes[l.in[1]].in[0];
    }
  });
  return bit_cast<float>(lane.out[0]);
}

// Of every lane of the warp: register i, of the matrix whose 8 rows are `row`.
template <class Take>
DEVICE void load_matrices(const char* name, uint32_t (&r)[4], const void* row, Take take) {
  emu::Lane& lane = machine->lane();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    machine->fail(std::string(name) + ": row not aligned to 16 bytes");
  if (!machine->cta().smem->holds(row, 16))
    machine->fail(std::string(name) + ": row outside shared memory");
  lane.row = row;
  collective(name, [&](emu::Warp& warp, const auto&) {
    for (int l = 0; l < emu::kWarp; ++l) {
      for (int i = 0; i < 4; ++i) {
        const emu::Lane* rows = warp.lanes + i * 8;
        uint16_t two[2];
        for (int j = 0; j < 2; ++j) take(&two[j], rows, l / 4, l % 4 * 2 + j);
        std::memcpy(&warp.lanes[l].out[i], two, sizeof two);
      }
    }
  });
  std::memcpy(r, lane.out, sizeof r);
}
DEVICE void ldm4(uint32_t (&r)[4], const void* row) {
  load_matrices("ldm4", r, row, [](uint16_t* to, const emu::Lane* rows, int n, int k) {
    std::memcpy(to, static_cast<const uint8_t*>(rows[n].row) + k * 2, 2);
  });
}
DEVICE void ldm4_transposed(uint32_t (&r)[4], const void* row) {
  load_matrices("ldm4_transposed", r, row, [](uint16_t* to, const emu::Lane* rows, int n, int k) {
    std::memcpy(to, static_cast<const uint8_t*>(rows[k].row) + n * 2, 2);
  });
}

// An operand register holds two elements along the depth, or one.
struct MmaBf16 {
  static constexpr int kDepth = 16;
  static float element(uint32_t bits, int i) {
    return to_float(Bf16{static_cast<uint16_t>(bits >> (16 * i))});
  }
};
struct MmaHalf {
  static constexpr int kDepth = 16;
  static float element(uint32_t bits, int i) {
    return to_float(Half{static_cast<uint16_t>(bits >> (16 * i))});
  }
};
struct MmaTf32 {
  static constexpr int kDepth = 8;
  static float element(uint32_t bits, int) { return bit_cast<float>(bits & ~0x1fffu); }
};

// PTX's fragments: lane l = 4 g + q. A's registers hold rows g and g + 8, first for the first half
// of the depth, then for the second; B's hold column g, first half and second half; d's are
// (g, 2q), (g, 2q + 1), and the same in row g + 8.
template <class Mma>
DEVICE void multiply(emu::Warp& warp) {
  constexpr int kDepth = Mma::kDepth, kEach = kDepth / 8;  // elements in a register
  float a[16][kDepth], b[kDepth][8];
  for (int l = 0; l < emu::kWarp; ++l)
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < kEach; ++i) {
        const int g = l / 4, k = half * kDepth / 2 + l % 4 * kEach + i;
        const uint32_t* in = warp.lanes[l].in;
        a[g][k] = Mma::element(in[2 * half], i);
        a[g + 8][k] = Mma::element(in[2 * half + 1], i);
        b[k][g] = Mma::element(in[4 + half], i);
      }
  for (int l = 0; l < emu::kWarp; ++l)
    for (int e = 0; e < 4; ++e) {
      const int row = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
      float& d = warp.lanes[l].d[e];
      for (int k = 0; k < kDepth; ++k) d += a[row][k] * b[k][column];
    }
}

template <class Mma>
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emu::Lane& lane = machine->lane();
  std::memcpy(lane.in, a, sizeof a);
  lane.in[4] = b0;
  lane.in[5] = b1;
  std::memcpy(lane.d, d, sizeof d);
  collective("mma", [](emu::Warp& warp, const auto&) { multiply<Mma>(warp); });
  std::memcpy(d, lane.d, sizeof d);
}

}  // namespace rnnfast::dev
