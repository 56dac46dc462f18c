// The kernels of the grid family as the driver sees them, without device code.
#pragma once

#include <array>

#include "cells.h"
#include "cuda/grid_shape.h"
#include "cuda/sequence.h"

namespace rnnfast::cuda {

using GridTable = std::array<SequenceLauncher, kGridInstanceCount>;
using GridTables = std::array<GridTable, 4>;  // by Precision

// One file per cell holds it.
template <class Cell>
const GridTables& grid_tables();

}  // namespace rnnfast::cuda
