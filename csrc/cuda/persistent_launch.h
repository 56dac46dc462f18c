// Instantiates the whole-sequence kernels of a cell. Included once per cell.
#pragma once

#include <array>
#include <utility>

#include "cuda/persistent.h"
#include "cuda/persistent_kernels.h"

namespace rnnfast::cuda {

template <class S>
struct PersistentInstance {
  using E = typename S::Element;
  static constexpr Layout kLayout = S::kLayout;

  static int64_t exchange_bytes(int64_t tiles, int) { return kLayout.exchange_bytes(tiles); }
  static dev::Launch shape(int64_t tiles, int directions) {
    dev::Launch launch{};
    launch.grid_x = tiles * S::kPeers, launch.grid_y = directions;
    launch.threads = S::kThreads, launch.smem_bytes = S::kLayout.shared_bytes();
    launch.cluster = S::kExchange == Exchange::kCluster ? S::kPeers : 1;
    launch.cooperative = S::kExchange == Exchange::kGrid;
    return launch;
  }
  static dev::Status pack(const LayerPackArgs& args, dev::Stream stream) {
    dev::Launch launch{};
    launch.grid_x = (PackWeights<S>::kPieces + kPackThreads - 1) / kPackThreads,
    launch.grid_y = args.directions;
    launch.threads = kPackThreads, launch.cluster = 1;
    return dev::launch(pack_weights<S>, launch, stream, args);
  }
  static dev::Status forward(const ForwardArgs<void>& args, int64_t tiles, int directions,
                             dev::Stream stream) {
    return dev::launch(persistent_forward<S>, shape(tiles, directions), stream, typed<E>(args));
  }
  static dev::Status backward(const BackwardArgs<void>& args, int64_t tiles, int directions,
                              dev::Stream stream) {
    return dev::launch(persistent_backward<S>, shape(tiles, directions), stream, typed<E>(args));
  }
};

template <class Cell, class Operand, int kIndex>
constexpr SequenceLauncher persistent_launcher() {
  constexpr Instance instance = kInstances[kIndex];
  if constexpr (!possible(instance, Cell::kGates, Operand::kPrecision)) {
    return {};
  } else {
    using Chosen = PersistentInstance<Shape<Cell, Operand, kIndex>>;
    SequenceLauncher launcher = launcher_of<Chosen, instance.backward>();
    launcher.pack = Chosen::pack, launcher.packed_bytes = Chosen::kLayout.packed_bytes();
    if constexpr (instance.exchange == Exchange::kGrid)
      launcher.exchange_bytes = Chosen::exchange_bytes;
    return launcher;
  }
}

template <class Cell, class Operand>
constexpr PersistentTable persistent_table() {
  return table_of<PersistentTable>(
      [](auto i) { return persistent_launcher<Cell, Operand, i()>(); });
}

// In the order of Precision.
template <class Cell>
const PersistentTables& persistent_tables() {
  static constexpr PersistentTables kTables = {
      persistent_table<Cell, Bf16Operand>(), persistent_table<Cell, HalfOperand>(),
      persistent_table<Cell, Tf32Operand>(), persistent_table<Cell, FloatOperand>()};
  return kTables;
}

}  // namespace rnnfast::cuda
