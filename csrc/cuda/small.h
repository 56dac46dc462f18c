// Layers so small that one CTA has all units of a few batch rows, for the whole sequence: h goes
// from step to step through its shared memory, and one barrier ends a step. What the two passes
// share.
//
// A warp has 16 units and all of K: the sums over K end in its accumulators. Of the 8 columns of an
// mma only 4 are of use: then a thread finishes two numbers, and the latency of a step, which is
// all that counts here, is least.
//
// Where a thread is: lane l has units 2 (l / 4) and the next of its warp's 16, a pair, of row l
// % 4. The rows of an mma are laid out so: row g is the first unit of pair g, row g + 8 the second.
// Numbers of a pair lie side by side in all tensors and travel as one word.
//
// The exchanged vector in shared memory: blocks of two parts of 32 numbers of K, which one ldmatrix
// brings: four matrices of 8 numbers x 8 columns, where column 2 r is batch row r of the first part
// and column 2 r + 1 that of the second. Both are multiplied with the weights of one part, and then
// with those of the other, and of either product the columns of that part are taken.
// The order of K is ours to choose, as long as the weights have it too: word c of a column of
// matrix i holds units 8 c + 2 i and the next of the part. So the weights that a lane needs for a
// part lie side by side in a row of w_hh.
#pragma once

#include "cuda/args.h"
#include "cuda/shape.h"
#include "cuda/small_shape.h"
#include "unit.h"

namespace rnnfast::cuda {

template <class Cell_, class Operand_, int kIndex>
struct SmallShape {
  using Cell = Cell_;
  using Operand = Operand_;
  using Element = typename Operand::Element;
  using Number = Value<Element>;
  static constexpr SmallInstance kInstance = kSmallInstances[kIndex];
  static constexpr SmallLayout kLayout = small_layout(kInstance, Cell::kGates);
  static constexpr bool kBackward = kInstance.backward;
  static constexpr int kHidden = kInstance.hidden, kThreads = kLayout.threads();
  static constexpr int kIn = kLayout.in, kOut = kLayout.out;
  static constexpr int kParts = kLayout.parts(), kBlocks = kLayout.blocks();
  static constexpr int kVectorBytes = kLayout.vector_bytes(), kRingAt = kLayout.ring_at();
  static constexpr int kWordBytes = kLayout.word_bytes();
  static constexpr int kChains = kLayout.chains();
  // Words that a thread reads a step: forward its inputs; backward the reserve, the last state
  // before and after the step, and the gradient of the output.
  using Kept = KeptOf<Cell, Element>;
  static constexpr int kWords =
      kBackward ? Cell::kReserve + Cell::kReadsBefore + Cell::kReadsAfter + 1 : Cell::kGates;
  static constexpr int kSharedBytes = kLayout.shared_bytes(kWords);
};

// Whether pairs can be read and written as words in all these tensors.
template <class... T>
RNNFAST_FN bool whole_pairs(int64_t hidden, const T*... tensors) {
  const uintptr_t all = (reinterpret_cast<uintptr_t>(tensors) | ...);
  return hidden % 2 == 0 && all % 4 == 0;
}

template <class E>
DEVICE uint32_t pair_of(E first, E second) {
  uint16_t low, high;
  memcpy(&low, &first, sizeof low);
  memcpy(&high, &second, sizeof high);
  return low | static_cast<uint32_t>(high) << 16;
}

// What is kept of the gates of a pair; `whole`: it is one word, as the pair is in all tensors.
template <class Kept>
struct alignas(largest_word(2 * int{sizeof(Kept)})) KeptPair {
  Kept of[2];

  DEVICE void store(Kept* to, bool whole, bool second) const {
    if (whole) {
      *reinterpret_cast<KeptPair*>(to) = *this;
      return;
    }
    to[0] = of[0];
    if (second) to[1] = of[1];
  }
};

// Step of a tile: the rows of the batch that are alive, and the first row of the step in [rows].
struct SmallStep {
  int living;
  int64_t offset;
};

// kRegular: a dense sequence with whole pairs. Then all steps are alike, and pointers advance by a
// constant. Otherwise every step is looked up, and a pair may be half outside or its parts apart.
template <class S_, bool kRegular_>
struct SmallWorker {
  using S = S_;
  using E = typename S::Element;
  static constexpr bool kRegular = kRegular_;
  static constexpr int kNoSeat = 1 << 30;
  const Steps& steps;  // of the kernel's arguments
  const int hidden;
  const int direction, warp, lane;
  const int unit;    // the first one of the pair
  const int row;     // of the batch
  const int count;   // steps at which the tile has living rows: the first `count` in time
  const int seat;    // the row, if the unit exists
  const bool words;  // pairs are whole

  DEVICE SmallWorker(const Steps& all, int64_t H, bool whole)
      : steps(all),
        hidden(static_cast<int>(H)),
        direction(dev::block_y()),
        warp(dev::tid() / kWarpSize),
        lane(dev::tid() % kWarpSize),
        unit(warp * kMmaUnits + lane / 4 * 2),
        row(dev::block_x() * kSmallRows + lane % kSmallRows),
        count(kRegular ? static_cast<int>(steps.count) : steps.living(dev::block_x() * kSmallRows)),
        seat(unit < hidden ? row : kNoSeat),
        words(kRegular || whole) {}

  DEVICE SmallStep step(int t) const {
    if (kRegular) return {static_cast<int>(steps.largest), t * steps.largest};
    if (static_cast<unsigned>(t) >= static_cast<unsigned>(count)) return {0, 0};
    return {static_cast<int>(steps.batch_at(t)), steps.offset_at(t)};
  }
  DEVICE bool alive(const SmallStep& at) const { return seat < at.living; }
  DEVICE bool exists() const { return seat < static_cast<int>(steps.largest); }
  DEVICE bool second() const { return kRegular || unit + 1 < hidden; }

  // In a tensor [D, B, H].
  DEVICE int64_t in_state() const { return (direction * steps.largest + row) * hidden + unit; }
  // The first row of direction d in a timeline; the row of the states before all steps.
  DEVICE int64_t timeline_rows() const { return direction * (steps.rows + steps.largest); }
  DEVICE int64_t initial_row() const {
    return timeline_rows() + row + (direction == 1 ? steps.rows : 0);
  }

  // Two numbers of a state; what does not exist is 0.
  DEVICE void load(float (&to)[2], const E* from, bool wanted) const {
    to[0] = wanted ? widen(from[0]) : 0.f;
    to[1] = wanted && second() ? widen(from[1]) : 0.f;
  }
  DEVICE void store(E* to, uint32_t pair, bool wanted) const {
    if (!wanted) return;
    if (words) {
      *reinterpret_cast<uint32_t*>(to) = pair;
      return;
    }
    uint16_t parts[2] = {static_cast<uint16_t>(pair), static_cast<uint16_t>(pair >> 16)};
    memcpy(to, &parts[0], sizeof(E));
    if (second()) memcpy(to + 1, &parts[1], sizeof(E));
  }

  // ---- the exchanged vector ----
  DEVICE uint8_t* vector(int round) const { return dev::smem() + (round & 1) * S::kVectorBytes; }
  // Where the pair of a number that units exchange is stored, from the vector on.
  DEVICE int place(int number) const {
    const int k = number * S::kHidden + unit, part = k / kSmallPart;
    return part / 2 * 4 * kCoreBytes + k % 8 / 2 * kCoreBytes +
           (lane % kSmallRows * 2 + part % 2) * kRowBytes + k % kSmallPart / 8 * 4;
  }
  // Of what is sent: what does not exist is 0, so that products with it are.
  DEVICE uint32_t mask(bool alive) const { return !alive ? 0 : second() ? 0xffffffff : 0xffff; }
};

// The place of a thread's pair in a tensor, as the steps go by.
template <class W, class T>
struct SmallTrack {
  T* at;
  int64_t each;     // numbers of a row of the tensor
  int64_t advance;  // kRegular: from step to step

  // Opaque: or the compiler derives one track from another, by multiplications.
  DEVICE SmallTrack(const W& self, T* tensor, int64_t row, int64_t numbers, bool forward)
      : at(dev::opaque_global(tensor + row * numbers)), each(numbers) {
    const int64_t step = self.steps.largest * numbers;
    advance = forward ? step : -step;
  }
  DEVICE void go(const SmallStep& from, const SmallStep& to) {
    at += W::kRegular ? advance : (to.offset - from.offset) * each;
  }
};

// Words in shared memory that this thread alone copies there, kSmallAhead steps before it reads
// them. In a step's place word i of all threads follows on word i - 1 of all; what is kept of the
// gates takes the places of the first words, thread by thread.
template <class W>
struct SmallRing {
  using S = typename W::S;
  using Kept = typename S::Kept;
  static constexpr int kWord = S::kWordBytes, kStep = S::kWords * kWord;
  uint8_t* at;  // of the step to be read

  DEVICE SmallRing() : at(dev::smem() + S::kRingAt + dev::tid() * 4) {}

  DEVICE uint32_t word(int i) const { return *reinterpret_cast<const uint32_t*>(at + i * kWord); }
  DEVICE KeptPair<Kept>* kept() const {
    const int thread = dev::tid() * static_cast<int>(sizeof(KeptPair<Kept>) - sizeof(uint32_t));
    return reinterpret_cast<KeptPair<Kept>*>(at + thread);
  }
  DEVICE void copy_kept(const W& self, const Kept* from, bool wanted) const {
    Kept* const to = kept()->of;
    constexpr int kSize = sizeof(Kept);
    if (self.words) {
      dev::cp_async<2 * kSize>(to, from, wanted ? 2 * kSize : 0);
      return;
    }
    dev::cp_async<kSize>(to, from, wanted ? kSize : 0);
    dev::cp_async<kSize>(to + 1, from + 1, wanted && self.second() ? kSize : 0);
  }
  template <class E>
  DEVICE void copy(const W& self, int i, const E* from, bool wanted) const {
    if (self.words) {
      dev::cp_async<4>(at + i * kWord, from, wanted ? 4 : 0);
      return;
    }
    const E zero = narrow<E>(0.f);
    *reinterpret_cast<uint32_t*>(at + i * kWord) =
        pair_of(wanted ? from[0] : zero, wanted && self.second() ? from[1] : zero);
  }
  // The step of round `n` has been read, and the one kSmallAhead later asked for.
  DEVICE void advance(int n) {
    dev::cp_commit();
    at += (n & (kSmallAhead - 1)) == kSmallAhead - 1 ? -(kSmallAhead - 1) * kStep : kStep;
  }
  DEVICE void wait() const { dev::cp_wait<kSmallAhead - 1>(); }
};

// The weights of a warp as operands, in registers, straight from w_hh.
template <class W>
struct SmallWeights {
  using S = typename W::S;
  using E = typename S::Element;
  uint32_t held[2 * S::kParts][S::kOut][4];  // of a part two tiles

  // Numbers `column` and the next of a row of w_hh; zeros beside it.
  static DEVICE uint32_t pair(const W& self, const E* row, int column, bool words) {
    if (column >= self.hidden) return 0;
    if (words) return *reinterpret_cast<const uint32_t*>(row + column);
    return pair_of(row[column], column + 1 < self.hidden ? row[column + 1] : narrow<E>(0.f));
  }

  DEVICE void load(const W& self, const E* w_hh) {
    if constexpr (S::kBackward) {
      load_columns(self, w_hh);
    } else {
      load_rows(self, w_hh);
    }
  }

  // Forward: a lane has 8 numbers of its two units' rows in every part.
  DEVICE void load_rows(const W& self, const E* w_hh) {
    const bool wide = self.hidden % 8 == 0 && reinterpret_cast<uintptr_t>(w_hh) % 16 == 0;
    const bool words = whole_pairs(self.hidden, w_hh);
    UNROLL
    for (int i = 0; i < S::kOut * 2 * S::kParts; ++i) {
      const int part = i / (S::kOut * 2), out = i / 2 % S::kOut, half = i % 2;
      const int column = part * kSmallPart + self.lane % 4 * 8;
      const E* row = w_hh + (out * self.hidden + self.unit + half) * self.hidden;
      uint4 v{0, 0, 0, 0};
      if (self.unit + half < self.hidden) {
        if (wide) {
          if (column < self.hidden) v = *reinterpret_cast<const uint4*>(row + column);
        } else {
          v.x = pair(self, row, column, words), v.y = pair(self, row, column + 2, words);
          v.z = pair(self, row, column + 4, words), v.w = pair(self, row, column + 6, words);
        }
      }
      held[2 * part][out][half] = v.x, held[2 * part][out][half + 2] = v.y;
      held[2 * part + 1][out][half] = v.z, held[2 * part + 1][out][half + 2] = v.w;
    }
  }

  // Backward: K runs over the rows of w_hh, of which a lane reads the columns of its two units.
  DEVICE void load_columns(const W& self, const E* w_hh) {
    const bool words = whole_pairs(self.hidden, w_hh);
    UNROLL
    for (int tile = 0; tile < 2 * S::kParts; ++tile) {
      const int k = tile / 2 * kSmallPart, gate = k / S::kHidden;
      const int from = k % S::kHidden + self.lane % 4 * 8 + tile % 2 * 4;
      uint32_t rows[4];
      UNROLL
      for (int j = 0; j < 4; ++j) {
        const E* row = w_hh + (gate * self.hidden + from + j) * self.hidden;
        rows[j] = from + j < self.hidden ? pair(self, row, self.unit, words) : 0;
      }
      UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t a = rows[2 * j], b = rows[2 * j + 1];
        held[tile][0][2 * j] = (a & 0xffff) | b << 16;
        held[tile][0][2 * j + 1] = a >> 16 | (b & 0xffff0000);
      }
    }
  }

  // The first blocks of a vector, on their way while the thread does something else.
  static constexpr int kEarly = S::kBlocks < 4 ? S::kBlocks : 4;
  using Early = uint32_t[kEarly][4];
  static DEVICE void begin(const uint8_t* vector, Early& early) {
    UNROLL
    for (int block = 0; block < kEarly; ++block) dev::ldm4(early[block], lane_at(vector, block));
  }
  static DEVICE const uint8_t* lane_at(const uint8_t* vector, int block) {
    return vector + block * 4 * kCoreBytes + dev::tid() % kWarpSize * kRowBytes;
  }

  // Of a tile of a part: an even one for the first part, as the columns to be taken are different.
  static constexpr DEVICE int chain(int part, int n) {
    return (S::kParts == 1 ? n : part + 2 * n) % S::kChains;
  }
  static constexpr DEVICE int column_of(int chain) { return S::kParts == 1 ? 0 : chain % 2; }

  // sum[unit of the pair][output] of the numbers in a vector. Output by output: what the cell does
  // with the first ones goes on beside the products of the others.
  DEVICE void multiply(const uint8_t* vector, const Early& early, float (&sum)[2][S::kOut]) const {
    static_assert(S::kOut == 1 || S::kBlocks == kEarly);
    float acc[S::kChains][S::kOut][4] = {};
    uint32_t later[S::kBlocks - kEarly + 1][4];
    UNROLL
    for (int i = 0; i < S::kOut * S::kBlocks * 4; ++i) {
      const int o = i / (S::kBlocks * 4), block = i / 4 % S::kBlocks, part = i % 2, n = i / 2 % 2;
      const int tile = 2 * (2 * block + part) + n;
      if (i % 4 == 0 && block >= kEarly) dev::ldm4(later[block - kEarly], lane_at(vector, block));
      if (tile >= 2 * S::kParts) continue;
      const uint32_t* b = block < kEarly ? early[block] : later[block - kEarly];
      dev::mma<typename S::Operand::Mma>(acc[chain(part, n)][o], held[tile][o], b[2 * n],
                                         b[2 * n + 1]);
    }
    UNROLL
    for (int i = 0; i < 2 * S::kOut; ++i) {
      const int half = i % 2, o = i / 2;
      float total = acc[0][o][2 * half];
      UNROLL
      for (int chain = 1; chain < S::kChains; ++chain)
        total += acc[chain][o][2 * half + column_of(chain)];
      sum[half][o] = total;
    }
  }
};

}  // namespace rnnfast::cuda
