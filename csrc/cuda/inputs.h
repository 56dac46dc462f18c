// The inputs of a step, which come from global memory some steps ahead, by asynchronous copies into
// a ring of slots in shared memory. Each warp copies what its own elements need, 16 bytes a lane,
// so that only its lanes have to meet.
//
// A slot of a warp: [line][element of a thread][piece of 8 units][lane % 4] of 16 bytes, where a
// line is what a step reads per unit and batch row. Threads then read their numbers of one line
// without bank conflicts, at places that the compiler knows from that of the first. Where a step
// reads kept gates, these are the first lines, and a line is a share of them: line l of a piece has
// the l-th 16 bytes of what its units keep, side by side as in memory.
#pragma once

#include "cuda/worker.h"
#include "unit.h"

namespace rnnfast::cuda {

template <class S>
struct InputRing {
  using E = typename S::Element;
  using Kept = KeptOf<typename S::Cell, E>;
  static constexpr int kSlots = S::kRingSlots;
  static constexpr bool kExists = kSlots > 0;
  static constexpr int kPieceUnits = kRowBytes / static_cast<int>(sizeof(E));
  static constexpr int kPieces = kMmaUnits / 2 / kPieceUnits;
  static constexpr int kLinePieces = kMmaBatch / 2 * kPieces * S::kElements;
  static constexpr int kSlotBytes = S::kLines * kLinePieces * kRowBytes;
  static constexpr int kLinesAtOnce = kWarpSize / kLinePieces;
  static_assert(!kExists || kWarpSize % kLinePieces == 0);
  static_assert(S::kWarps * kSlotBytes == S::kLayout.slot_bytes());
  static_assert(kRowBytes % sizeof(Kept) == 0);

  int line;               // of the lane's first copy, among the lines that it copies together
  int row, unit;          // where its 16 bytes begin, in the tile and in the layer
  int seat;               // as Worker::seat, of them
  int write_at, read_at;  // of its first piece and its first element
  int kept_at;            // and from there on to what the unit of that element keeps

  DEVICE InputRing(const Worker<S>& worker) {
    const int lane = worker.lane, piece = lane % kLinePieces, own = worker.split * S::kElements;
    const int element = piece / 4 / kPieces,
              warp_at = S::kRingAt + worker.warp * kSlots * kSlotBytes;
    line = lane / kLinePieces;
    row = piece % 4 * 2 + Accumulator::batch(own) + Accumulator::batch(element);
    unit = worker.first_unit_of_group() + Accumulator::unit(own) + Accumulator::unit(element) +
           piece / 4 % kPieces * kPieceUnits;
    seat = unit < worker.hidden ? row : worker.kNoSeat;
    write_at = warp_at + lane * kRowBytes;
    read_at = warp_at + (lane / 4 / kPieceUnits * 4 + lane % 4) * kRowBytes +
              lane / 4 % kPieceUnits * static_cast<int>(sizeof(E));
    const int kept = lane / 4 % kPieceUnits * static_cast<int>(sizeof(Kept));
    kept_at = kept / kRowBytes * kLinePieces * kRowBytes + kept % kRowBytes -
              lane / 4 % kPieceUnits * static_cast<int>(sizeof(E));
  }

  // From the position of the thread's first element to that of the row of what it copies.
  DEVICE int shift(const Worker<S>& worker) const {
    return (row - worker.tile_row(0)) * worker.hidden;
  }

  // Whether the rows of these tensors can be copied 16 bytes at a time.
  template <class... T>
  static DEVICE bool copies(int hidden, const T*... tensors) {
    return kExists && hidden % kPieceUnits == 0 &&
           ((reinterpret_cast<uintptr_t>(tensors) % kRowBytes == 0) && ...);
  }

  // Copies of the lane's piece of the lines from kFirst on, kLinesAtOnce of them at a time: the
  // i-th of them comes from from(i).
  template <int kFirst, int kCount, class From>
  DEVICE void copy(int step, From from) const {
    uint8_t* to =
        dev::smem() + step % kSlots * kSlotBytes + write_at + kFirst * kLinePieces * kRowBytes;
    UNROLL
    for (int i = 0; i * kLinesAtOnce < kCount; ++i)
      if ((i + 1) * kLinesAtOnce <= kCount || i * kLinesAtOnce + line < kCount)
        dev::cp_async<16>(to + i * kWarpSize * kRowBytes, from(i));
  }

  // The slot of a step, once `kLater` steps after it may still be under way.
  template <int kLater>
  DEVICE const uint8_t* wait(int step) const {
    dev::cp_wait<kLater>();
    dev::warp_sync();
    return dev::smem() + step % kSlots * kSlotBytes + read_at;
  }
  static constexpr DEVICE int place(int line, int e) {
    return (line * S::kElements + e) * kPieces * 4 * kRowBytes;
  }
  static DEVICE E number(const uint8_t* slot, int line, int e) {
    return *reinterpret_cast<const E*>(slot + place(line, e));
  }
  DEVICE Kept kept(const uint8_t* slot, int e) const {
    return *reinterpret_cast<const Kept*>(slot + kept_at + place(0, e));
  }
};

}  // namespace rnnfast::cuda
