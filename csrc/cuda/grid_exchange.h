// How the CTAs of a group of the grid family exchange a vector each step, through global memory.
//
// Memory is a ring of kGridRing rounds per part, all bytes 0xff before the launch. A vector lies in
// it as the tensor cores take it: [K tile][row][...], the 16 bytes of a lane together, a word two
// neighbouring units of a row, or one in float32. Words are their own flags: kNothing until they
// are published, and nothing that is published is: NaNs come out of conversions as 0x7fff or, of
// TF32, 0x7fffffff, and as that where float32 stays as it is. Who receives reads the words again
// and again until none is kNothing; each word says of itself that it is there.
//
// Who has received round r of all, which had then received round r - 1, sets its own words of round
// r - 1 to kNothing, for round r - 1 + kGridRing. That this is seen before that round is asked for
// is what the fences are for, of which one comes every kGridFence steps: docs/cuda.md.
#pragma once

#include "cuda/device.h"
#include "cuda/grid_shape.h"
#include "cuda/types.h"

namespace rnnfast::cuda {

template <class S>
struct GridExchange {
  using Pair = StoredPair<typename S::Element>;
  static constexpr uint32_t kNothing = 0xffffffffu;
  static constexpr int kMask = kGridRing - 1;
  uint8_t *from, *to;  // in round 0 of part 0: what this lane receives first, what it publishes

  // The thread publishes the pair of units g of 8 of a block of the hidden units, of one row.
  DEVICE void place(uint8_t* memory, int warp, int lane, int block, int g, int row) {
    from = memory + warp * S::kLoads * kFragmentBytes + lane * 16;
    const int lane_at = (row % kMmaBatch * 4 + (g & 3)) * 16;
    if constexpr (S::kWide && S::kColumns == 2) {  // a load is a tile of 8 units for two columns
      to = memory + (2 * block + (g >> 2)) * kFragmentBytes + lane_at + row / kMmaBatch * 8;
    } else if constexpr (S::kWide) {  // the two tiles of a block
      to = memory + block * kFragmentBytes + lane_at + (g >> 2) * 8;
    } else {  // the tile of a block for two columns, or the tiles of two blocks
      const int half = S::kColumns == 2 ? row / kMmaBatch : block % 2;
      const int load = S::kColumns == 2 ? block : block / 2;
      to = memory + load * kFragmentBytes + lane_at + (half * 2 + (g >> 2)) * 4;
    }
  }

  static DEVICE int at(int round, int part) {
    return (part * kGridRing + (round & kMask)) * S::kRoundBytes;
  }
  DEVICE void store(int round, int part, int in, typename Pair::Bits bits) const {
    uint8_t* p = to + at(round, part) + in * (S::kRoundBytes / S::kIn);
    if constexpr (S::kWide) {
      dev::store_words(reinterpret_cast<uint2*>(p), bits);
    } else {
      dev::store_word(reinterpret_cast<uint32_t*>(p), bits);
    }
  }
  static DEVICE uint32_t word(float x) {
    if constexpr (S::kTwoParts) return x == x ? as_bits(x) : 0x7fffffffu;
    return dev::to_tf32(x);
  }
  DEVICE void publish(int round, int part, int in, const Pair& pair) const {
    if constexpr (S::kWide) {
      uint2 bits;
      bits.x = word(pair.number(0)), bits.y = word(pair.number(1));
      store(round, part, in, bits);
    } else {
      store(round, part, in, pair.bits);
    }
  }
  DEVICE void clear(int round, int part, int in) const {
    if constexpr (S::kWide) {
      uint2 bits;
      bits.x = bits.y = kNothing;
      store(round, part, in, bits);
    } else {
      store(round, part, in, kNothing);
    }
  }

  static DEVICE bool missing(const uint4& v) {
    return v.x == kNothing || v.y == kNothing || v.z == kNothing || v.w == kNothing;
  }
  // This lane's operands of a vector.
  DEVICE const uint8_t* operands(int round, int part) const { return from + at(round, part); }
  static DEVICE uint4 load(const uint8_t* operands, int k) {
    return dev::load_words(reinterpret_cast<const uint4*>(operands + k * kFragmentBytes));
  }
  // Asks again for what has not come; whether all had.
  static DEVICE bool complete(uint4 (&v)[S::kChunk], const uint8_t* operands, int first) {
    bool all = true;
    UNROLL
    for (int k = 0; k < S::kChunk; ++k)
      if (missing(v[k])) v[k] = load(operands, first + k), all = false;
    return all;
  }
  // Asks for the first ones.
  DEVICE void request(uint4 (&v)[S::kChunk], int round, int part) const {
    UNROLL
    for (int k = 0; k < S::kChunk; ++k) v[k] = load(operands(round, part), k);
  }
  // Waits until those from `first` on, which were asked for, are there; by the whole warp.
  static DEVICE void receive(uint4 (&v)[S::kChunk], const uint8_t* operands, int first) {
    dev::poll_until([&] { return complete(v, operands, first); });
  }
};

}  // namespace rnnfast::cuda
