// Device primitives, included by cuda/device.h: numbers, and what the lanes of a warp do together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/device/threads.h"

namespace rnnfast::dev {

// ---- numbers ----

using Bf16 = __nv_bfloat16;
using Half = __half;

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(Bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(Half x) { return __half2float(x); }

// Two values, rounded to nearest even, `low` in the low 16 bits.
template <class E>
DEVICE uint32_t pack2(float low, float high) {
  static_assert(std::is_same_v<E, Bf16> || std::is_same_v<E, Half>);
  std::conditional_t<std::is_same_v<E, Half>, __half2, __nv_bfloat162> both;
  if constexpr (std::is_same_v<E, Half>)
    both = __floats2half2_rn(low, high);
  else
    both = __floats2bfloat162_rn(low, high);
  uint32_t pair;
  memcpy(&pair, &both, sizeof pair);
  return pair;
}

// The two values of such a pair.
template <class E>
DEVICE float low_float(uint32_t pair) {
  if constexpr (std::is_same_v<E, Half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair)));
  else
    return __uint_as_float(pair << 16);
}
template <class E>
DEVICE float high_float(uint32_t pair) {
  if constexpr (std::is_same_v<E, Half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
  else
    return __uint_as_float(pair & 0xffff0000u);
}

// By pack2: the conversion of a single value is a slow instruction on sm_90.
template <class E>
DEVICE E from_float(float x) {
  if constexpr (std::is_same_v<E, float>)
    return x;
  else if constexpr (std::is_same_v<E, Bf16>)
    return __ushort_as_bfloat16(static_cast<unsigned short>(pack2<E>(x, 0.f)));
  else
    return __ushort_as_half(static_cast<unsigned short>(pack2<E>(x, 0.f)));
}

// Rounded to tf32, as the bits that mma<MmaTf32> takes.
DEVICE uint32_t to_tf32(float x) {
#if HAS_MMA
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  trap("tf32 needs compute capability 8.0");
  return 0;
#endif
}

// 2 ULP; 1 ULP; relative error 2^-11. Subnormal results are zero.
DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same value, but the compiler no longer knows where it comes from: keeps it from computing
// addresses ahead of a loop, where they would take registers that the loop needs.
template <class T>
DEVICE T opaque(T x) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (std::is_same_v<T, float>)
    asm volatile("" : "+f"(x));
  else if constexpr (std::is_same_v<T, double>)
    asm volatile("" : "+d"(x));
  else if constexpr (sizeof(T) == 4)
    asm volatile("" : "+r"(x));
  else
    asm volatile("" : "+l"(x));
  return x;
}

// The same for a pointer into global memory.
template <class T>
DEVICE T* opaque_global(T* p) {
  p = opaque(p);
  __builtin_assume(__isGlobal(p));
  return p;
}

// The same for a pointer into shared memory.
template <class T>
DEVICE T* opaque_shared(T* p) {
  return static_cast<T*>(__cvta_shared_to_generic(opaque(shared_address(p))));
}

// ---- warp collectives: all 32 lanes call them together ----

DEVICE uint32_t shfl_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shfl_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE double shfl_xor(double v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shfl(float v, int from) { return __shfl_sync(0xffffffffu, v, from); }

// Four 8x8 matrices of 16-bit elements out of shared memory. Lane l brings the address of row l % 8
// of matrix l / 8, 16 bytes aligned to 16; r[i] gets, of matrix i, elements 2 (l % 4) and the next
// of row l / 4.
DEVICE void ldm4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with each matrix transposed: r[i] gets elements 2 (l % 4) and the next of column l / 4.
DEVICE void ldm4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += A B on the tensor cores: A is 16 x kDepth, B kDepth x 8, d 16 x 8 in float, in PTX's
// fragment layout of mma.m16n8k16 (of m16n8k8 for tf32).
struct MmaBf16 {
  static constexpr int kDepth = 16;
};
struct MmaHalf {
  static constexpr int kDepth = 16;
};
struct MmaTf32 {
  static constexpr int kDepth = 8;
};

template <class Mma>
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if HAS_MMA
  if constexpr (std::is_same_v<Mma, MmaBf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (std::is_same_v<Mma, MmaHalf>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  trap("this mma needs compute capability 8.0");
#endif
}

}  // namespace rnnfast::dev
