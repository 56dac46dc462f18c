// How the inputs of the kernels for small layers come: through a ring in shared memory, asked for
// kAhead steps before the one that reads them. A step has kWords of them for each pair of units.
#pragma once

#include "cuda/small.h"

namespace rnnfast::cuda {

// What both rings share: slot after slot, one for each of kAhead steps; a slot has its inputs one
// behind the other.
template <class S>
struct SmallSlots {
  static constexpr int kBytes = S::kWords * S::kWordBytes;
  uint8_t* at;  // in the slot of the step to be read, what this thread reads

  DEVICE explicit SmallSlots(int place) : at(dev::smem() + S::kRingAt + place) {}

  DEVICE uint32_t word(int i) const {
    return *reinterpret_cast<const uint32_t*>(at + i * S::kWordBytes);
  }
  // To the next slot; `n`: the step that has been asked for.
  DEVICE int advance(int n) {
    dev::cp_commit();
    const int bytes = n % S::kAhead == S::kAhead - 1 ? -(S::kAhead - 1) * kBytes : kBytes;
    at += bytes;
    return bytes;
  }
  // Before the barrier that ends a step: then all have the inputs of the next one.
  DEVICE void wait() const { dev::cp_wait<S::kAhead - 2>(); }
};

// Each thread copies the words that it reads itself.
template <class W>
struct SmallLaneRing : SmallSlots<typename W::S> {
  using S = typename W::S;
  using E = typename S::Element;
  using SmallSlots<S>::at;

  DEVICE explicit SmallLaneRing(const W&) : SmallSlots<S>(dev::tid() * 4) {}

  DEVICE void copy(const W& self, int i, const E* from, bool wanted) const {
    uint8_t* to = at + i * S::kWordBytes;
    if (self.words) {
      dev::cp_async<4>(to, from, wanted ? 4 : 0);
      return;
    }
    const E zero = narrow<E>(0.f);
    *reinterpret_cast<uint32_t*>(to) =
        pair_of(wanted ? from[0] : zero, wanted && self.second() ? from[1] : zero);
  }
};

// An input at the first step: unit 0 of the first row of the batch, the numbers from row to row.
template <class E>
struct SmallSource {
  const E* first;
  int64_t each;
  bool present;
};

// kRegular: all threads copy 16 bytes at a time, of whole rows.
template <class W>
struct SmallWideRing : SmallSlots<typename W::S> {
  using S = typename W::S;
  using E = typename S::Element;
  using SmallSlots<S>::at;
  static constexpr int kPiece = 8, kPieces = S::kHidden / kPiece;  // of a row
  static constexpr int kAll = S::kWords * kSmallRows * kPieces;
  static constexpr int kMine = (kAll + S::kThreads - 1) / S::kThreads;
  struct Piece {
    const E* from;
    int64_t advance;
    uint8_t* to;
    bool wanted;
  };
  Piece pieces[kMine];

  // source(i): where word i comes from.
  template <class F>
  DEVICE SmallWideRing(const W& self, bool forward, F source)
      : SmallSlots<S>(self.lane % kSmallRows * S::kInputBytes +
                      self.unit * static_cast<int>(sizeof(E))) {
    UNROLL
    for (int m = 0; m < kMine; ++m) {
      const int i = m * S::kThreads + dev::tid(), unit = i % kPieces * kPiece;
      const int word = i / (kPieces * kSmallRows), row_here = i / kPieces % kSmallRows;
      const int row = dev::block_x() * kSmallRows + row_here;
      const SmallSource<E> from = source(word);
      const int64_t step = self.steps.largest * from.each;
      pieces[m].from = dev::opaque_global(from.first + row * from.each + unit);
      pieces[m].advance = forward ? step : -step;
      pieces[m].to = dev::smem() + S::kRingAt + word * S::kWordBytes + row_here * S::kInputBytes +
                     unit * static_cast<int>(sizeof(E));
      pieces[m].wanted = from.present && row < self.steps.largest && unit < self.hidden;
    }
  }

  DEVICE void ask(const W& self, int n) {
    UNROLL
    for (int m = 0; m < kMine; ++m) {
      Piece& p = pieces[m];
      if (kAll % S::kThreads == 0 || m * S::kThreads + dev::tid() < kAll)
        dev::cp_async<16>(p.to, p.from, p.wanted && n < self.count ? 16 : 0);
      p.from += p.advance;
    }
    const int bytes = this->advance(n);
    UNROLL
    for (int m = 0; m < kMine; ++m) pieces[m].to += bytes;
  }
};

template <class W>
using SmallRing = std::conditional_t<W::kRegular, SmallWideRing<W>, SmallLaneRing<W>>;

}  // namespace rnnfast::cuda
