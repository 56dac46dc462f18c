// What a warp computes together, and conversions, on the emulator. Exits with the number of tests
// that failed.
#include <cmath>
#include <limits>
#include <random>

#include "check.h"

using namespace rnnfast;
using namespace rnnfast::dev;
using namespace rnnfast::emu;

namespace {

struct Floats {
  float* out;
};

// ---- warp collectives ----

KERNEL butterfly(const Floats args) {
  float sum = static_cast<float>(tid());
  for (int mask = 16; mask > 0; mask /= 2) sum += shfl_xor(sum, mask);
  args.out[tid()] = sum + static_cast<float>(shfl_xor(static_cast<uint32_t>(tid()), 1));
}

void shfl_xor_exchanges() {
  float out[64];
  check_runs(butterfly, {.threads = 64}, {out});
  for (int i = 0; i < 64; ++i)
    check(out[i] == static_cast<float>((i < 32 ? 496 : 1520) + (i ^ 1)), "wrong sum");
}

struct Bits {
  uint32_t* out;
};

// Four 8x8 matrices of 16-bit numbers, where element (i, j) of matrix m is 64 m + 8 i + j.
template <bool kTransposed>
KERNEL load_matrices(const Bits args) {
  auto* x = reinterpret_cast<uint16_t*>(smem());
  for (int i = tid(); i < 256; i += threads()) x[i] = static_cast<uint16_t>(i);
  cta_sync();
  uint32_t r[4];
  if (kTransposed)
    ldm4_transposed(r, x + tid() * 8);
  else
    ldm4(r, x + tid() * 8);
  for (int i = 0; i < 4; ++i) args.out[tid() * 4 + i] = r[i];
}

template <bool kTransposed>
void ldm4_has_the_layout() {
  uint32_t out[128];
  check_runs(load_matrices<kTransposed>, {.threads = 32, .smem_bytes = 512}, {out});
  constexpr uint32_t kAcross = kTransposed ? 1 : 8, kAlong = kTransposed ? 8 : 1;
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t low = 64 * m + kAcross * (lane / 4) + kAlong * 2 * (lane % 4);
      check(out[lane * 4 + m] == (low | (low + kAlong) << 16), "wrong element");
    }
}

struct Product {
  const float* a;  // [16, depth]
  const float* b;  // [depth, 8]
  float* d;        // [16, 8]
};

// An element in the operand type, as it lies in shared memory.
template <class E>
E operand(float x) {
  if constexpr (sizeof(E) == 4)
    return to_tf32(x);
  else
    return from_float<E>(x);
}

// One product, its operands loaded by ldm4: A by rows, B by columns.
template <class Mma, class E>
KERNEL multiply_once(const Product args) {
  constexpr int kDepth = Mma::kDepth, kRow = 16 / static_cast<int>(sizeof(E));
  auto* a = reinterpret_cast<E*>(smem());
  E* b = a + 16 * kDepth;  // [column][depth]
  for (int i = tid(); i < 16 * kDepth; i += threads()) a[i] = operand<E>(args.a[i]);
  for (int i = tid(); i < 8 * kDepth; i += threads())
    b[i] = operand<E>(args.b[i % kDepth * 8 + i / kDepth]);
  cta_sync();
  uint32_t fa[4], fb[4];
  const int row = tid() % 8, matrix = tid() / 8;
  ldm4(fa, a + (row + matrix % 2 * 8) * kDepth + matrix / 2 * kRow);
  ldm4(fb, b + row * kDepth + matrix % 2 * kRow);
  float d[4] = {1, 1, 1, 1};
  mma<Mma>(d, fa, fb[0], fb[1]);
  for (int e = 0; e < 4; ++e) args.d[(tid() / 4 + e / 2 * 8) * 8 + tid() % 4 * 2 + e % 2] = d[e];
}

template <class Mma, class E>
void mma_multiplies() {
  constexpr int kDepth = Mma::kDepth;
  float a[16 * kDepth], b[kDepth * 8], d[128];
  std::mt19937 random(1);  // sixteenths: exact in every type
  for (float& x : a) x = static_cast<float>(static_cast<int>(random() % 33) - 16) / 16;
  for (float& x : b) x = static_cast<float>(static_cast<int>(random() % 33) - 16) / 16;
  check_runs(multiply_once<Mma, E>, {.threads = 32, .smem_bytes = 24 * kDepth * sizeof(E)},
             {a, b, d});
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 1;
      for (int k = 0; k < kDepth; ++k) sum += a[i * kDepth + k] * b[k * 8 + j];
      check(d[i * 8 + j] == sum, "wrong product");
    }
}

// ---- numbers ----

// All finite numbers of a 16-bit type survive; what lies between two goes to the nearer one, or to
// the even one.
template <class E>
void rounds_to_nearest(uint16_t infinity) {
  for (uint16_t bits = 0; bits < infinity; ++bits) {
    const float low = to_float(E{bits});
    check(from_float<E>(low).bits == bits, "does not survive");
    check(from_float<E>(-low).bits == (bits | 0x8000), "sign");
    if (bits + 1 == infinity) break;
    const float high = to_float(E{static_cast<uint16_t>(bits + 1)}),
                middle = low + (high - low) / 2;
    check(from_float<E>(middle).bits == bits + bits % 2, "a tie does not go to even");
    check(from_float<E>(std::nextafter(middle, 0.f)).bits == bits, "above the nearest");
    check(from_float<E>(std::nextafter(middle, INFINITY)).bits == bits + 1, "below the nearest");
  }
  check(from_float<E>(INFINITY).bits == infinity, "infinity");
  check(from_float<E>(std::numeric_limits<float>::max()).bits == infinity, "overflow");
  check(to_float(E{infinity}) == INFINITY, "infinity as float");
  check(std::isnan(to_float(from_float<E>(NAN))), "NaN");
}

void conversions_round() {
  rounds_to_nearest<Bf16>(0x7f80);
  rounds_to_nearest<Half>(0x7c00);
  check(to_float(Half{0x3c00}) == 1.f && to_float(Half{0x0001}) == 0x1p-24f, "half");
  check(to_float(Half{0x7bff}) == 65504.f && to_float(Bf16{0x3f80}) == 1.f, "half, bf16");
  check(from_float<Half>(65519.996f).bits == 0x7bff, "the last below infinity");
  check(from_float<Half>(65520.f).bits == 0x7c00, "the first that is infinite");
  check(pack2<Bf16>(1.f, -2.f) == 0xc0003f80u, "pack2");
  check(bit_cast<float>(to_tf32(1.f + 0x1p-11f)) == 1.f + 0x1p-10f, "tf32 ties go away from zero");
  check(bit_cast<float>(to_tf32(-1.f - 0x1.8p-12f)) == -1.f, "tf32 nearest");
  check(std::fabs(tanh_approx(0.5f) / std::tanh(0.5f) - 1) < 0x1p-10f, "tanh");
  check(exp2_approx(-130.f) == 0.f && exp2_approx(3.f) == 8.f && rcp_approx(4.f) == .25f, "exp2");
}

}  // namespace

int main() {
  return run_tests({
      {"shfl_xor", shfl_xor_exchanges},
      {"ldm4", ldm4_has_the_layout<false>},
      {"ldm4_transposed", ldm4_has_the_layout<true>},
      {"mma bf16", mma_multiplies<MmaBf16, Bf16>},
      {"mma half", mma_multiplies<MmaHalf, Half>},
      {"mma tf32", mma_multiplies<MmaTf32, uint32_t>},
      {"conversions", conversions_round},
  });
}
