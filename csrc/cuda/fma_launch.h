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
  if constexpr (!fma_possible(instance, Cell::kGates)) {
    return {};
  } else {
    return launcher_of<FmaRunner<FmaShape<Cell, kIndex>>, instance.backward>();
  }
}

template <class Cell>
const FmaTable& fma_table() {
  static constexpr FmaTable kTable =
      table_of<FmaTable>([](auto i) { return fma_launcher<Cell, i()>(); });
  return kTable;
}

}  // namespace rnnfast::cuda
