// Instantiates the kernels for small layers of a cell. Included once per cell.
#pragma once

#include <bit>
#include <utility>

#include "cuda/small_backward.h"
#include "cuda/small_forward.h"
#include "cuda/small_kernels.h"

namespace rnnfast::cuda {

template <class S>
struct SmallLaunches {
  using E = typename S::Element;

  static dev::Launch shape(int64_t tiles, int directions) {
    dev::Launch launch{};
    launch.grid_x = static_cast<int>(tiles), launch.grid_y = directions;
    launch.threads = S::kThreads, launch.smem_bytes = S::kSharedBytes;
    return launch;
  }
  template <class Args>
  static dev::Status run(void (*regular)(Args), void (*any)(Args), bool is_regular,
                         const Args& args, int64_t tiles, int directions, dev::Stream stream) {
    return dev::launch(is_regular ? regular : any, shape(tiles, directions), stream, args);
  }
  template <bool kSave>
  static dev::Status forward_of(const ForwardArgs<E>& args, int64_t tiles, int directions,
                                dev::Stream stream) {
    const bool regular = args.steps.batch == nullptr && SmallForward<S, kSave, true>::words(args);
    return run(small_forward<S, kSave, true>, small_forward<S, kSave, false>, regular, args, tiles,
               directions, stream);
  }
  static dev::Status forward(const ForwardArgs<void>& all, int64_t tiles, int directions,
                             dev::Stream stream) {
    const auto args = std::bit_cast<ForwardArgs<E>>(all);
    return args.timelines[0] != nullptr ? forward_of<true>(args, tiles, directions, stream)
                                        : forward_of<false>(args, tiles, directions, stream);
  }
  static dev::Status backward(const BackwardArgs<void>& all, int64_t tiles, int directions,
                              dev::Stream stream) {
    const auto args = std::bit_cast<BackwardArgs<E>>(all);
    const bool regular = args.steps.batch == nullptr && SmallBackward<S, true>::words(args);
    return run(small_backward<S, true>, small_backward<S, false>, regular, args, tiles, directions,
               stream);
  }
};

template <class Cell, class Operand, int kIndex>
constexpr SequenceLauncher small_launcher() {
  using Chosen = SmallLaunches<SmallShape<Cell, Operand, kIndex>>;
  return launcher_of<Chosen, kSmallInstances[kIndex].backward>();
}

template <class Cell, class Operand>
constexpr SmallTable small_table() {
  return table_of<SmallTable>([](auto i) { return small_launcher<Cell, Operand, i()>(); });
}

template <class Cell>
const SmallTables& small_tables() {
  static constexpr SmallTables kTables = {small_table<Cell, Bf16Operand>(),
                                          small_table<Cell, HalfOperand>()};
  return kTables;
}

}  // namespace rnnfast::cuda
