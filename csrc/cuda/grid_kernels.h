// The kernels of the grid family as the driver sees them, without device code.
#pragma once

#include <array>
#include <string_view>

#include "cells.h"
#include "cuda/grid_shape.h"
#include "cuda/sequence.h"

namespace rnnfast::cuda {

using GridTable = std::array<SequenceLauncher, kGridInstanceCount>;
using GridTables = std::array<GridTable, 4>;  // by Precision

// One file per cell holds it.
template <class Cell>
const GridTables& grid_tables();

inline const SequenceLauncher& grid_kernel(std::string_view cell, Precision precision,
                                           int instance) {
  const GridTables* tables = nullptr;
  dispatch_whole_sequence(cell, [&](auto c) { tables = &grid_tables<decltype(c)>(); });
  return (*tables)[static_cast<int>(precision)][instance];
}

}  // namespace rnnfast::cuda
