// The resident weights of the whole-sequence kernels: packed once per call into the order in which
// the tensor cores take them, then loaded by each warp for the whole sequence.
#pragma once

#include "cuda/args.h"
#include "cuda/shape.h"

namespace rnnfast::cuda {

// The sum of one mma's 16 units and 8 batch rows.
struct TileSum {
  float value[4];

  DEVICE void end() {}
};
// Of float32 in two parts. Tensor cores cut off what they add to a sum, so that few products of the
// high parts are added up by them before the rest of the sum is, rounded; and products with a low
// part, which are small, among themselves.
struct TwoPartSum {
  float value[4], high[4], low[4];
  int products;  // in high; the compiler counts them

  static constexpr int kMost = 8;
  DEVICE void add_high() {
    UNROLL
    for (int j = 0; j < 4; ++j) value[j] += high[j], high[j] = 0.f;
    products = 0;
  }
  DEVICE void end() {
    UNROLL
    for (int j = 0; j < 4; ++j) value[j] += high[j] + low[j];
  }
};
template <class S>
using SumOf = std::conditional_t<S::kTwoParts, TwoPartSum, TileSum>;

// A float32 number as the sum of two TF32 numbers.
struct TwoParts {
  uint32_t high, low;

  static DEVICE TwoParts of(float x) {
    const uint32_t high = dev::to_tf32(x);
    return {high, dev::to_tf32(x - as_float(high))};
  }
};

// The A operands of one warp: registers, and evenly among them some in shared memory, whose loads
// overlap with the products of the others.
template <class S>
struct ResidentWeights {
  static constexpr int kFragments = S::kFragments, kShared = S::kShared;
  static constexpr int kRegisters = kFragments - kShared;
  uint32_t held[kRegisters > 0 ? kRegisters : 1][4];
  int shared_at;  // of this lane's 16 bytes of the warp's first fragment in shared memory

  static constexpr DEVICE int shared_before(int f) { return f * kShared / kFragments; }
  static constexpr DEVICE bool in_shared(int f) { return shared_before(f + 1) > shared_before(f); }

  // `packed`: the fragments of this warp, as pack_weights left them; `place`: its part of shared
  // memory.
  DEVICE void load(const uint4* packed, int place, int lane) {
    shared_at = place + lane * static_cast<int>(sizeof(uint4));
    UNROLL
    for (int f = 0; f < kFragments; ++f) {
      const uint4 v = dev::load_l2(packed + f * kWarpSize + lane);
      if (in_shared(f)) {
        *shared(f) = v;
      } else {
        uint32_t (&to)[4] = held[f - shared_before(f)];
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
      }
    }
  }

  DEVICE uint4* shared(int f) const {
    return reinterpret_cast<uint4*>(dev::smem() + shared_at + shared_before(f) * kFragmentBytes);
  }

  using Fragment = uint32_t[4];
  DEVICE void read(Fragment& a, int f) const {
    if (in_shared(f)) {
      const uint4 v = *shared(f);
      a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
    } else {
      UNROLL
      for (int i = 0; i < 4; ++i) a[i] = held[f - shared_before(f)][i];
    }
  }
  // The parts of the f-th operand, which are held, or of which the sum is.
  DEVICE void read_parts(Fragment& high, Fragment& low, int f) const {
    if constexpr (S::kHoldsParts) {
      read(high, 2 * f), read(low, 2 * f + 1);
    } else {
      Fragment whole;
      read(whole, f);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        // Or the compiler would divide them once, for which there are no registers.
        const TwoParts parts = TwoParts::of(dev::opaque(as_float(whole[i])));
        high[i] = parts.high, low[i] = parts.low;
      }
    }
  }

  // Adds to `sum` the products of the f-th operand.
  DEVICE void multiply(SumOf<S>& sum, int f, uint32_t b0, uint32_t b1) const {
    using Mma = typename S::Operand::Mma;
    if constexpr (S::kTwoParts) {
      const TwoParts first = TwoParts::of(as_float(b0)), second = TwoParts::of(as_float(b1));
      Fragment high, low;
      read_parts(high, low, f);
      dev::mma<Mma>(sum.high, high, first.high, second.high);
      dev::mma<Mma>(sum.low, low, first.high, second.high);
      dev::mma<Mma>(sum.low, high, first.low, second.low);
      if (++sum.products == TwoPartSum::kMost) sum.add_high();
    } else {
      Fragment a;
      read(a, f);
      dev::mma<Mma>(sum.value, a, b0, b1);
    }
  }
};

// w_hh between unit `to` of output `out` and unit `from` of input `in`: one of both counts gates.
// Units past H are zero.
template <class S>
DEVICE float weight(const PackArgs& a, int out, int64_t to, int in, int64_t from) {
  if (to >= a.hidden || from >= a.hidden) return 0.f;
  const int64_t row = S::kBackward ? from : to, column = S::kBackward ? to : from;
  const auto* w = static_cast<const typename S::Element*>(a.w_hh);
  return widen(w[((out + in) * a.hidden + row) * a.hidden + column]);
}

// One 16-byte piece of packed weights per thread.
template <class S>
struct PackWeights {
  using E = typename S::Element;
  static constexpr int kPerWord = sizeof(uint32_t) / sizeof(E);
  static constexpr int64_t kPieces = int64_t{S::kPeers} * S::kWarps * S::kFragments * kWarpSize;
  const PackArgs& a;

  DEVICE uint32_t word(const float (&values)[kPerWord], int part) const {
    if constexpr (kPerWord == 2) {
      return dev::pack2<E>(values[0], values[1]);
    } else {
      const TwoParts parts = TwoParts::of(values[0]);
      return part == 0 ? parts.high : parts.low;
    }
  }

  DEVICE void run(int64_t piece) const {
    constexpr int kParts = S::kTwoParts ? 2 : 1;
    const int lane = piece % kWarpSize;
    int64_t rest = piece / kWarpSize;
    const int fragment = rest % S::kFragments;
    rest /= S::kFragments;
    const int warp = rest % S::kWarps, rank = rest / S::kWarps, split = warp % S::kSplits;
    const int part = fragment % kParts, out = fragment / kParts % S::kOut;
    int64_t first_unit = (int64_t{rank} * S::kWarps + warp) / S::kSplits * kMmaUnits;
    int tile = split * S::kWarpTiles + fragment / kParts / S::kOut;
    if constexpr (S::kSums) {
      first_unit = int64_t{warp * S::kUnitTiles + fragment / kParts / S::kWarpTiles} * kMmaUnits;
      tile = rank * S::kWarpTiles + fragment / kParts % S::kWarpTiles;
    }
    constexpr int kParTile = kMmaUnits / S::kTileUnits;  // tiles for 16 units
    const int in = tile / kParTile % S::kIn;
    const int64_t from_group = tile / kParTile / S::kIn;
    const int64_t from_unit = from_group * kMmaUnits + tile % kParTile * S::kTileUnits;
    // The warp's own accumulators come first, see Reduction.
    const int upper = S::kSums ? 0 : split * S::kElements >> 1 & 1;
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      float values[kPerWord];
      for (int j = 0; j < kPerWord; ++j)
        values[j] = weight<S>(a, out, first_unit + lane / 4 + ((i & 1) ^ upper) * 8, in,
                              from_unit + (i >> 1) * S::kTileUnits / 2 + lane % 4 * kPerWord + j);
      words[i] = word(values, part);
    }
    uint4 v;
    v.x = words[0], v.y = words[1], v.z = words[2], v.w = words[3];
    static_cast<uint4*>(a.packed)[piece] = v;
  }
};

template <class S>
KERNEL LAUNCH_BOUNDS(kPackThreads) pack_weights(const LayerPackArgs args) {
  const int64_t piece = int64_t{dev::block_x()} * kPackThreads + dev::tid();
  const PackArgs own = args.of(dev::block_y());
  if (piece < PackWeights<S>::kPieces) PackWeights<S>{own}.run(piece);
}

}  // namespace rnnfast::cuda
