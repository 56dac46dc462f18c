// An instance of the whole-sequence kernels for one cell and one type of operands, as constants.
#pragma once

#include "cells.h"
#include "cuda/device.h"
#include "cuda/instances.h"
#include "cuda/types.h"

namespace rnnfast::cuda {

// Operand types of the tensor cores.
struct Bf16Operand {
  using Element = dev::Bf16;
  using Mma = dev::MmaBf16;
  static constexpr Precision kPrecision = Precision::kBf16;
};
struct HalfOperand {
  using Element = dev::Half;
  using Mma = dev::MmaHalf;
  static constexpr Precision kPrecision = Precision::kHalf;
};
struct Tf32Operand {
  using Element = float;
  using Mma = dev::MmaTf32;
  static constexpr Precision kPrecision = Precision::kTf32;
};
// float32 as the sum of two TF32 numbers: three products, of which the fourth, low times low, is
// below the last bit. Relative error of a product at most 2^-21.
struct FloatOperand {
  using Element = float;
  using Mma = dev::MmaTf32;
  static constexpr Precision kPrecision = Precision::kFloat;
};

template <class Cell_, class Operand_, int kIndex>
struct Shape {
  using Cell = Cell_;
  using Operand = Operand_;
  using Element = typename Operand::Element;
  // With which the cell's maths runs.
  using Number = std::conditional_t<Operand::kPrecision == Precision::kFloat, Careful, Approximate>;
  static constexpr Instance kInstance = kInstances[kIndex];
  static constexpr Layout kLayout = layout(kInstance, Cell::kGates, Operand::kPrecision);
  static constexpr Exchange kExchange = kInstance.exchange;
  static constexpr Precision kPrecision = Operand::kPrecision;
  static constexpr bool kBackward = kInstance.backward, kTwoParts = kPrecision == Precision::kFloat;
  static constexpr bool kHoldsParts = true;  // of a weight, both
  static constexpr int kPeers = kLayout.peers, kSplits = kLayout.splits;
  static constexpr int kColumns = kLayout.columns, kBatch = kColumns * kMmaBatch;
  static constexpr int kGroups = kLayout.groups;
  static constexpr int kUnits = kLayout.units, kHidden = kUnits * kPeers;
  static constexpr int kWarps = kLayout.warps(), kThreads = kLayout.threads();
  static constexpr int kTileUnits = kLayout.tile_units, kIn = kLayout.in, kOut = kLayout.out;
  static constexpr int kWarpTiles = kLayout.warp_tiles, kElements = kLayout.elements();
  static constexpr int kFragments = kLayout.fragments;
  static constexpr int kShared =
      kLayout.shared_fragments - (TAKES_MORE_REGISTERS ? 0 : kLayout.spared_fragments);
  static constexpr int kGroupThreads = kSplits * kWarpSize;
  static constexpr int kGroupBytes = kLayout.group_bytes(), kSourceBytes = kLayout.source_bytes();
  static constexpr int kVectorBytes = kLayout.vector_bytes();
  static constexpr int kInBytes = kGroupBytes / kIn;  // of one exchanged number of a group
  static constexpr int kVectorBuffers = kLayout.vector_buffers();
  static constexpr Sending kSending = kLayout.sending();
  static constexpr bool kSums = kSending == Sending::kSums;
  static constexpr bool kTransposed = kLayout.transposed();
  static constexpr int kUnitTiles = kLayout.unit_tiles;
  static constexpr int kPartialBuffers = kLayout.partial_buffers();
  static constexpr int kStageBuffers = kLayout.stage_buffers();
  static constexpr int kPartialBytes = kLayout.partial_bytes();
  static constexpr int kPartialFloats = kLayout.partial_floats();
  static constexpr int kPartialAt = kLayout.partial_at(), kStageAt = kLayout.stage_at();
  static constexpr int kBarsAt = kLayout.bars_at();
  static constexpr int kWeightsAt = kLayout.weights_at();
  static constexpr int kLines = kLayout.lines();
  static constexpr int kRingSlots = kLayout.ring_slots, kRingAt = kLayout.ring_at();
  static_assert(kLines == (!kBackward
                               ? Cell::kGates
                               : Cell::kReserve + Cell::kReadsBefore + Cell::kReadsAfter + 1));
  // Enough independent accumulators to hide the latency of an mma, beside the other warps'.
  static constexpr int kChains = kOut * kColumns >= (kWarps > 4 ? 3 : 4) || kTwoParts ? 1
                                 : kOut * kColumns >= 2                               ? 2
                                                                                      : 4;
  // A thread has elements of one unit, or of two that lie 8 apart.
  static constexpr int kOwnUnits = kElements >= 4 ? 2 : 1;
  static constexpr DEVICE int own_unit(int e) { return kOwnUnits == 2 ? e >> 1 & 1 : 0; }
};

// Where in its group the element j of the 4 * kColumns accumulators of a thread lies: bit 0 next
// batch row, bit 1 unit + 8, from bit 2 on the column. Offsets of consecutive elements add up.
struct Accumulator {
  static constexpr DEVICE int unit(int j) { return (j & 2) ? 8 : 0; }
  static constexpr DEVICE int batch(int j) { return (j & 1) + (j >> 2) * kMmaBatch; }
  // Where its matrix begins in a group's part of a vector of 16-bit numbers, and there its row.
  static constexpr DEVICE int core(int j) {
    return ((j & 2) ? kCoreBytes : 0) + (j >> 2) * kTileBytes;
  }
  static constexpr DEVICE int bytes(int j) { return core(j) + ((j & 1) ? kRowBytes : 0); }
};

}  // namespace rnnfast::cuda
