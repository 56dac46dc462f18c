// The kernels for small layers as the driver sees them, without device code.
#pragma once

#include <array>

#include "cells.h"
#include "cuda/sequence.h"
#include "cuda/small_shape.h"

namespace rnnfast::cuda {

using SmallTable = std::array<SequenceLauncher, kSmallCount>;
using SmallTables = std::array<SmallTable, 2>;  // Precision::kBf16 and kHalf

// One file per cell holds it.
template <class Cell>
const SmallTables& small_tables();

}  // namespace rnnfast::cuda
