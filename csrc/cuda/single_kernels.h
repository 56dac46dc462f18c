// `single` as the driver sees it, without device code: a launcher for each cell, type and instance.
#pragma once

#include <array>

#include "cells.h"
#include "cuda/args.h"
#include "cuda/launch.h"
#include "cuda/single_plan.h"

namespace rnnfast::cuda {

template <class E>
struct SingleArgs {
  ForwardArgs<E> layer;           // without x_gates
  const E* x;                     // [B, I]
  const E* w_ih[2];               // per direction [G*H, I]
  int inputs;                     // I
  int directions, tiles;          // the grid's y: the tiles of one direction, then of the other
  int input_warps;                // see there
  int input_part, hidden_part;    // of the rows of the two products: what a warp takes at most
  int input_width, hidden_width;  // bytes that the rows of the two products are aligned to, or 16
  bool settled;  // no kernel nearby stores to the weights: they may be read before it has ended
};

// Null where the instance is not possible().
using SingleLauncher = dev::Status (*)(const SingleArgs<void>&, int64_t tiles, int directions,
                                       bool dependent, dev::Stream);
using SingleTable = std::array<SingleLauncher, kSingleInstanceCount>;
using SingleTables = std::array<SingleTable, 3>;  // float32, bfloat16, float16

// One file per cell holds it.
template <class Cell>
const SingleTables& single_tables();

}  // namespace rnnfast::cuda
