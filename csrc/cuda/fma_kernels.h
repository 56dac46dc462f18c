// The float32 kernels as the driver sees them: for each cell and instance what runs it.
#pragma once

#include <array>

#include "cells.h"
#include "cuda/fma_shape.h"
#include "cuda/sequence.h"

namespace rnnfast::cuda {

using FmaTable = std::array<SequenceLauncher, kFmaInstanceCount>;

// One file per cell holds it.
template <class Cell>
const FmaTable& fma_table();

}  // namespace rnnfast::cuda
