// How the driver runs an instance of a kernel that takes a whole sequence. Pointers in the
// arguments stand for the type of the precision; `tiles` of the batch, per direction.
#pragma once

#include <bit>

#include "cuda/args.h"
#include "cuda/launch.h"

namespace rnnfast::cuda {

// The arguments with the type that their pointers stand for.
template <class E>
ForwardArgs<E> typed(const ForwardArgs<void>& args) {
  return std::bit_cast<ForwardArgs<E>>(args);
}
template <class E>
BackwardArgs<E> typed(const BackwardArgs<void>& args) {
  return std::bit_cast<BackwardArgs<E>>(args);
}

// All null where an instance is not possible; forward or backward is null where it is of the other
// pass.
struct SequenceLauncher {
  dev::Status (*pack)(const LayerPackArgs&, dev::Stream);  // null: the kernel takes w_hh as it lies
  dev::Status (*forward)(const ForwardArgs<void>&, int64_t tiles, int directions, dev::Stream);
  dev::Status (*backward)(const BackwardArgs<void>&, int64_t tiles, int directions, dev::Stream);
  int64_t packed_bytes;  // of w_hh, one direction
  // For so many tiles over all directions, of so many rows each; null: none.
  int64_t (*exchange_bytes)(int64_t tiles, int rows);
  uint8_t exchange_fill;  // each of these bytes before the launch
};

// What the class of an instance launches: it is one of a pass forward or backward.
template <class Chosen, bool kBackward>
constexpr SequenceLauncher launcher_of() {
  SequenceLauncher launcher{};
  if constexpr (kBackward) {
    launcher.backward = Chosen::backward;
  } else {
    launcher.forward = Chosen::forward;
  }
  return launcher;
}

// `launcher(i)` of all instances of a family, i a constant.
template <class Table, class F>
constexpr Table table_of(F launcher) {
  return [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    return Table{launcher(std::integral_constant<int, kIndex>{})...};
  }(std::make_integer_sequence<int, static_cast<int>(std::tuple_size_v<Table>)>{});
}

}  // namespace rnnfast::cuda
