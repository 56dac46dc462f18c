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

  DEVICE void multiply(float (&sum)[4], int f, uint32_t b0, uint32_t b1) const {
    if (in_shared(f)) {
      const uint4 v = *shared(f);
      const uint32_t a[4] = {v.x, v.y, v.z, v.w};
      dev::mma<typename S::Operand::Mma>(sum, a, b0, b1);
    } else {
      dev::mma<typename S::Operand::Mma>(sum, held[f - shared_before(f)], b0, b1);
    }
  }

  // Adds K tile `tile`, output `out` to sum.
  DEVICE void multiply_tile(SumOf<S>& sum, int tile, int out, uint32_t b0, uint32_t b1) const {
    const int f = tile * S::kOut + out;
    if constexpr (S::kTwoParts) {
      const uint32_t high0 = dev::to_tf32(as_float(b0)), high1 = dev::to_tf32(as_float(b1));
      const uint32_t low0 = dev::to_tf32(as_float(b0) - as_float(high0)),
                     low1 = dev::to_tf32(as_float(b1) - as_float(high1));
      multiply(sum.high, 2 * f, high0, high1);
      multiply(sum.low, 2 * f + 1, high0, high1);
      multiply(sum.low, 2 * f, low0, low1);
      if (++sum.products == TwoPartSum::kMost) sum.add_high();
    } else {
      multiply(sum.value, f, b0, b1);
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
      const uint32_t high = dev::to_tf32(values[0]);
      return part == 0 ? high : dev::to_tf32(values[0] - as_float(high));
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
