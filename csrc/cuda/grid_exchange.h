// How the CTAs of a group of the grid family exchange a vector each step, through global memory.
//
// Memory is a ring of kGridRing rounds per part, all bytes 0xff before the launch. A vector lies in
// it as the tensor cores take it: [K tile][row][...], the 16 bytes of a lane together, a word two
// neighbouring units of a row. Words are their own flags: kNothing until they are published, and no
// rounding makes it, as NaNs come out of conversions as 0x7fff. Who receives reads the words again
// and again until none is kNothing; each word says of itself that it is there.
//
// Who has received round r of all, which had then received round r - 1, sets its own words of round
// r - 1 to kNothing, for round r - 1 + kGridRing. That this is seen before that round is asked for
// is what the fences are for, of which one comes every kGridFence steps: docs/cuda.md.
#pragma once

#include "cuda/device.h"
#include "cuda/grid_shape.h"

namespace rnnfast::cuda {

template <class S>
struct GridExchange {
  static constexpr uint32_t kNothing = 0xffffffffu;
  static constexpr int kMask = kGridRing - 1;
  uint8_t *from, *to;  // in round 0 of part 0: what this lane receives first, what it publishes

  // The thread publishes the pair of units g of 8 of a block of the hidden units, of one row.
  DEVICE void place(uint8_t* memory, int warp, int lane, int block, int g, int row) {
    from = memory + warp * S::kLoads * kFragmentBytes + lane * 16;
    const int lane16 = (row % kMmaBatch * 4 + (g & 3)) * 16;
    const int half = S::kColumns == 2 ? row / kMmaBatch : block % 2;
    const int load = S::kColumns == 2 ? block : block / 2;
    to = memory + load * kFragmentBytes + lane16 + (half * 2 + (g >> 2)) * 4;
  }

  static DEVICE int at(int round, int part) {
    return (part * kGridRing + (round & kMask)) * S::kRoundBytes;
  }
  DEVICE uint32_t* word(int round, int part, int in) const {
    return reinterpret_cast<uint32_t*>(to + at(round, part) + in * (S::kRoundBytes / S::kIn));
  }
  DEVICE void publish(int round, int part, int in, uint32_t pair) const {
    dev::store_word(word(round, part, in), pair);
  }
  DEVICE void clear(int round, int part, int in) const {
    dev::store_word(word(round, part, in), kNothing);
  }

  static DEVICE bool missing(const uint4& v) {
    return v.x == kNothing || v.y == kNothing || v.z == kNothing || v.w == kNothing;
  }
  // Asks again for what has not come; whether all had.
  static DEVICE bool complete(uint4 (&v)[S::kChunk], const uint8_t* from) {
    bool all = true;
    UNROLL
    for (int k = 0; k < S::kChunk; ++k)
      if (missing(v[k])) v[k] = load(from, k), all = false;
    return all;
  }
  static DEVICE uint4 load(const uint8_t* from, int k) {
    return dev::load_words(reinterpret_cast<const uint4*>(from + k * kFragmentBytes));
  }
  // The operands from the load `first` on; by the whole warp.
  DEVICE void receive(uint4 (&v)[S::kChunk], int round, int part, int first) const {
    const uint8_t* p = from + at(round, part) + first * kFragmentBytes;
    UNROLL
    for (int k = 0; k < S::kChunk; ++k) v[k] = load(p, k);
    dev::poll_until([&] { return complete(v, p); });
  }
};

}  // namespace rnnfast::cuda
