// The whole-sequence kernels as the driver sees them, without device code: for each cell, precision
// and instance what packs w_hh and what runs the loop.
#pragma once

#include <array>

#include "cells.h"
#include "cuda/instances.h"
#include "cuda/sequence.h"

namespace rnnfast::cuda {

using PersistentTable = std::array<SequenceLauncher, kInstanceCount>;
using PersistentTables = std::array<PersistentTable, 4>;  // by Precision

// One file per cell holds it.
template <class Cell>
const PersistentTables& persistent_tables();

}  // namespace rnnfast::cuda
