// Instantiates the float32 kernels of a cell. Included once per cell.
#pragma once

#include <bit>
#include <utility>

#include "cuda/fma_backward.h"
#include "cuda/fma_forward.h"
#include "cuda/fma_kernels.h"

namespace rnnfast::cuda {

template <class S>
struct FmaRunner {
  static dev::Launch shape(int64_t tiles, int directions) {
    dev::Launch launch{};
    launch.grid_x = static_cast<int>(tiles) * S::kPeers, launch.grid_y = directions;
    launch.threads = S::kThreads, launch.cluster = S::kPeers;
    launch.smem_bytes = S::kLayout.shared_bytes();
    return launch;
  }
  static dev::Status forward(const ForwardArgs<void>& args, int64_t tiles, int directions,
                             dev::Stream stream) {
    const auto kernel = args.steps.offset != nullptr   ? fma_forward<S, true, true>
                        : args.timelines[0] == nullptr ? fma_forward<S, false, false>
                                                       : fma_forward<S, false, true>;
    return dev::launch(kernel, shape(tiles, directions), stream,
                       std::bit_cast<ForwardArgs<float>>(args));
  }
  static dev::Status backward(const BackwardArgs<void>& args, int64_t tiles, int directions,
                              dev::Stream stream) {
    const auto kernel =
        args.steps.offset != nullptr ? fma_backward<S, true> : fma_backward<S, false>;
    return dev::launch(kernel, shape(tiles, directions), stream,
                       std::bit_cast<BackwardArgs<float>>(args));
  }
};

template <class Cell, int kIndex>
constexpr SequenceLauncher fma_launcher() {
  constexpr FmaInstance instance = kFmaInstances[kIndex];
  SequenceLauncher launcher{};
  if constexpr (fma_possible(instance, Cell::kGates)) {
    using Runner = FmaRunner<FmaShape<Cell, kIndex>>;
    if constexpr (instance.backward) {
      launcher.backward = Runner::backward;
    } else {
      launcher.forward = Runner::forward;
    }
  }
  return launcher;
}

template <class Cell>
const FmaTable& fma_table() {
  static constexpr FmaTable kTable = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    return FmaTable{fma_launcher<Cell, kIndex>()...};
  }(std::make_integer_sequence<int, kFmaInstanceCount>{});
  return kTable;
}

}  // namespace rnnfast::cuda
