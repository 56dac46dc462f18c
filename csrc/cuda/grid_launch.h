// Instantiates the kernels of the grid family for a cell. Included once per cell.
#pragma once

#include <utility>

#include "cuda/grid_backward.h"
#include "cuda/grid_forward.h"
#include "cuda/grid_kernels.h"

namespace rnnfast::cuda {

template <class S>
struct GridInstanceLauncher {
  using E = typename S::Element;
  static constexpr GridLayout kLayout = S::kLayout;

  static int64_t exchange_bytes(int64_t tiles, int rows) {
    return kLayout.exchange_bytes(tiles * (rows / S::kRows));
  }
  // Of one CTA, where `tiles` groups of them share the batch.
  static int parts(const Steps& steps, int64_t tiles) {
    const int64_t all = (steps.largest - 1) / S::kRows + 1;
    return static_cast<int>((all - 1) / tiles + 1);
  }
  static dev::Launch shape(int64_t tiles, int directions, int parts) {
    dev::Launch launch{};
    launch.grid_x = static_cast<int>(tiles) * S::kPeers, launch.grid_y = directions;
    launch.threads = S::kThreads, launch.smem_bytes = kLayout.shared_bytes(parts);
    launch.cooperative = true;
    return launch;
  }
  static dev::Status pack(const LayerPackArgs& args, dev::Stream stream) {
    dev::Launch launch{};
    launch.grid_x = static_cast<int>(kLayout.packed_bytes() / 16 / kPackThreads);
    launch.grid_y = args.directions;
    launch.threads = kPackThreads;
    return dev::launch(grid_pack<S>, launch, stream, args);
  }
  static dev::Status forward(const ForwardArgs<void>& args, int64_t tiles, int directions,
                             dev::Stream stream) {
    const int n = parts(args.steps, tiles);
    return dev::launch(grid_forward<S>, shape(tiles, directions, n), stream,
                       GridForwardArgs<E>{typed<E>(args), n});
  }
  static dev::Status backward(const BackwardArgs<void>& args, int64_t tiles, int directions,
                              dev::Stream stream) {
    const int n = parts(args.steps, tiles);
    return dev::launch(grid_backward<S>, shape(tiles, directions, n), stream,
                       GridBackwardArgs<E>{typed<E>(args), n});
  }
};

template <class Cell, class Operand, int kIndex>
constexpr SequenceLauncher grid_launcher() {
  constexpr GridInstance instance = kGridInstances[kIndex];
  if constexpr (!grid_possible(instance, Cell::kGates, Operand::kPrecision)) {
    return {};
  } else {
    using Chosen = GridInstanceLauncher<GridShape<Cell, Operand, kIndex>>;
    SequenceLauncher launcher = launcher_of<Chosen, instance.backward>();
    launcher.pack = Chosen::pack, launcher.packed_bytes = Chosen::kLayout.packed_bytes();
    launcher.exchange_bytes = Chosen::exchange_bytes, launcher.exchange_fill = 0xff;
    return launcher;
  }
}

template <class Cell, class Operand>
constexpr GridTable grid_table() {
  return table_of<GridTable>([](auto i) { return grid_launcher<Cell, Operand, i()>(); });
}

template <class Cell>
const GridTables& grid_tables() {
  static constexpr GridTables kTables = {
      grid_table<Cell, Bf16Operand>(), grid_table<Cell, HalfOperand>(),
      grid_table<Cell, Tf32Operand>(), grid_table<Cell, FloatOperand>()};
  return kTables;
}

}  // namespace rnnfast::cuda
