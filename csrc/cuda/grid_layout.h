// An instance of the kernels of the grid family for one cell and one type of operands, as
// constants; how their weights are packed, and their arguments.
#pragma once

#include "cuda/args.h"
#include "cuda/grid_shape.h"
#include "cuda/shape.h"
#include "cuda/weights.h"

namespace rnnfast::cuda {

template <class Cell_, class Operand_, int kIndex>
struct GridShape {
  using Cell = Cell_;
  using Operand = Operand_;
  using Element = typename Operand::Element;
  static constexpr Precision kPrecision = Operand::kPrecision;
  static constexpr bool kTwoParts = kPrecision == Precision::kFloat;
  using Number = std::conditional_t<kTwoParts, Careful, Approximate>;
  static constexpr GridInstance kInstance = kGridInstances[kIndex];
  static constexpr bool kWide = sizeof(Element) == 4;
  static constexpr GridLayout kLayout = grid_layout(kInstance, Cell::kGates, kPrecision);
  static constexpr bool kBackward = kInstance.backward;
  static constexpr bool kHoldsParts = false;  // weights are divided when they are multiplied
  static constexpr int kHidden = kLayout.hidden, kUnits = kLayout.units, kRows = kLayout.rows;
  static constexpr int kPeers = kLayout.peers, kBlocks = kLayout.blocks;
  static constexpr int kColumns = kLayout.columns, kIn = kLayout.in, kOut = kLayout.out;
  static constexpr int kWarps = kGridWarps, kThreads = kGridThreads;
  static constexpr int kActive = kLayout.active();
  static constexpr int kWarpTiles = kLayout.warp_tiles, kFragments = kLayout.fragments;
  static constexpr int kShared =
      kLayout.shared_fragments - (TAKES_MORE_REGISTERS ? 0 : kLayout.spared_fragments);
  static constexpr int kChains = kLayout.chains;
  static constexpr int kLoads = kLayout.loads, kChunk = kLayout.chunk;
  static constexpr int kPartials = kLayout.partials, kPartialBytes = kLayout.partial_bytes();
  static constexpr int kPartialAt = kLayout.partial_at(), kBiasAt = kLayout.bias_at();
  static constexpr int kStatesAt = kLayout.states_at(), kRoundBytes = kLayout.round_bytes();
};

// `parts` of the batch are a CTA's, which runs them in turn.
template <class E>
struct GridForwardArgs {
  ForwardArgs<E> layer;
  int parts;
};
template <class E>
struct GridBackwardArgs {
  BackwardArgs<E> layer;
  int parts;
};

// One 16-byte piece of packed weights per thread. Rows g and g + 8 of an operand are the units 2 g
// and 2 g + 1 of a block, so that a thread finishes pairs of neighbours; of TF32, columns q and q +
// 4 are the units 2 q and 2 q + 1 of a tile, so that a pair is published at once.
template <class S>
KERNEL LAUNCH_BOUNDS(kPackThreads) grid_pack(const LayerPackArgs layer) {
  const PackArgs args = layer.of(dev::block_y());
  const int64_t piece = int64_t{dev::block_x()} * kPackThreads + dev::tid();
  const int lane = piece % kWarpSize;
  int64_t rest = piece / kWarpSize;
  const int fragment = rest % S::kFragments;
  rest /= S::kFragments;
  const int warp = rest % S::kWarps, rank = rest / S::kWarps;
  if (rank >= S::kPeers) return;
  constexpr int kM = S::kOut * S::kBlocks, kTiles = S::kHidden / kMmaUnits;
  const int step = fragment / kM, m = fragment % kM;
  const int tile = warp * S::kWarpTiles + (S::kWide ? step / 2 : step), in = tile / kTiles;
  const int out = m / S::kBlocks;
  const int to = rank * S::kUnits + m % S::kBlocks * kMmaUnits + lane / 4 * 2;
  const int from = tile % kTiles * kMmaUnits + (S::kWide ? step % 2 * 8 : 0) + lane % 4 * 2;
  uint32_t words[4];
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const int unit = to + (i & 1);
    if constexpr (S::kWide) {
      const float w = weight<S>(args, out, unit, in, from + (i >> 1));
      words[i] = S::kTwoParts ? as_bits(w) : dev::to_tf32(w);
    } else {
      const int first = from + (i >> 1) * 8;
      words[i] = dev::pack2<typename S::Element>(weight<S>(args, out, unit, in, first),
                                                 weight<S>(args, out, unit, in, first + 1));
    }
  }
  uint4 v;
  v.x = words[0], v.y = words[1], v.z = words[2], v.w = words[3];
  static_cast<uint4*>(args.packed)[piece] = v;
}

}  // namespace rnnfast::cuda
