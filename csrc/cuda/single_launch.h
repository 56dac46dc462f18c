// Instantiates `single` for a cell. Included once per cell.
#pragma once

#include <bit>
#include <utility>

#include "cuda/sequence.h"
#include "cuda/single.h"
#include "cuda/single_kernels.h"

namespace rnnfast::cuda {

// What each of `warps` takes of a row, in whole blocks.
inline int warp_part(int depth, int warps, int block) {
  if (warps == 0) return 0;
  const int blocks = (depth + block - 1) / block;
  return (blocks + warps - 1) / warps * block;
}

template <class S>
dev::Status launch_single(const SingleArgs<void>& args, int64_t tiles, int directions,
                          bool dependent, dev::Stream stream) {
  const int hidden = static_cast<int>(args.layer.hidden);
  SingleArgs<void> all = args;
  all.directions = directions, all.tiles = static_cast<int>(tiles);
  all.input_part = warp_part(args.inputs, args.input_warps, S::kBlock);
  all.hidden_part = warp_part(hidden, kSingleWarps - args.input_warps, S::kBlock);
  dev::Launch launch{};
  launch.grid_x = (hidden - 1) / S::kUnits + 1, launch.grid_y = directions * all.tiles;
  launch.threads = kSingleThreads, launch.smem_bytes = S::kLayout.shared_bytes();
  launch.dependent = dependent;
  return dev::launch(single_step<S>, launch, stream,
                     std::bit_cast<SingleArgs<typename S::Element>>(all));
}

template <class Cell, class E, int kIndex>
constexpr SingleLauncher single_launcher() {
  if constexpr (possible(kSingleInstances[kIndex], sizeof(E) == 2)) {
    return launch_single<SingleShape<Cell, E, kIndex>>;
  } else {
    return nullptr;
  }
}

template <class Cell, class E>
constexpr SingleTable single_table() {
  return table_of<SingleTable>([](auto i) { return single_launcher<Cell, E, i()>(); });
}

template <class Cell>
const SingleTables& single_tables() {
  static constexpr SingleTables kTables = {single_table<Cell, float>(),
                                           single_table<Cell, dev::Bf16>(),
                                           single_table<Cell, dev::Half>()};
  return kTables;
}

}  // namespace rnnfast::cuda
