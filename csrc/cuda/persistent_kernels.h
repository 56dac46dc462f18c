// The whole-sequence kernels as the driver sees them, without device code: for each cell, precision
// and instance what packs w_hh and what runs the loop.
#pragma once

#include <array>
#include <string_view>

#include "cells.h"
#include "cuda/args.h"
#include "cuda/instances.h"
#include "cuda/launch.h"

namespace rnnfast::cuda {

// Pointers in the arguments stand for the type of the precision. Null where the instance is not
// possible(), or is one of the other pass. `tiles` of the batch, per direction.
struct PersistentLauncher {
  dev::Status (*pack)(const PackArgs&, dev::Stream);
  dev::Status (*forward)(const ForwardArgs<void>&, int64_t tiles, int directions, dev::Stream);
  dev::Status (*backward)(const BackwardArgs<void>&, int64_t tiles, int directions, dev::Stream);
};

using PersistentTable = std::array<PersistentLauncher, kInstanceCount>;
using PersistentTables = std::array<PersistentTable, 4>;  // by Precision

// One file per cell defines it.
template <class Cell>
const PersistentTables& persistent_tables();
template <>
const PersistentTables& persistent_tables<Elman<Tanh>>();
template <>
const PersistentTables& persistent_tables<Elman<Relu>>();
template <>
const PersistentTables& persistent_tables<Gru>();
template <>
const PersistentTables& persistent_tables<Lstm>();

inline const PersistentLauncher& persistent_kernel(std::string_view cell, Precision precision,
                                                   int instance) {
  const PersistentTables* tables = nullptr;
  dispatch_cell(cell, [&](auto c) { tables = &persistent_tables<decltype(c)>(); });
  return (*tables)[static_cast<int>(precision)][instance];
}

}  // namespace rnnfast::cuda
