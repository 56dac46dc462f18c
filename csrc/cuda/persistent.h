// The time loop of a layer in one launch. Each CTA owns some hidden units of one tile of the batch
// for the whole sequence and keeps their rows of w_hh (backward: columns) in registers, as operands
// of the tensor cores; what does not fit there lies in shared memory. So a step reads no weights.
//
// One step, forward and backward alike:
//   receive   the exchanged vector of all units: h, or backward the hidden-side gate gradients
//   multiply  with the resident weights. A group of 16 units (the M of one mma) has kSplits warps,
//             which share K among them
//   reduce    their partial sums through shared memory, in a fixed order; then each thread owns
//             kElements (unit, batch row) pairs with all their gates, states in registers
//   update    the cell's maths (cells.h), results to global memory
//   send      the new piece of the vector to all CTAs of the tile
//
// Three ways to exchange: within one CTA, through its shared memory; within a cluster, by st.async
// into the shared memory of the peers, counted by mbarriers; across a grid, through global memory
// and one flag per CTA.
#pragma once

#include "cuda/persistent_backward.h"
#include "cuda/persistent_forward.h"

namespace rnnfast::cuda {

template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads) persistent_forward(const ForwardArgs<typename S::Element> args) {
  ForwardWorker<S>(args).run();
}
template <class S>
KERNEL LAUNCH_BOUNDS(S::kThreads)
    persistent_backward(const BackwardArgs<typename S::Element> args) {
  BackwardWorker<S>(args).run();
}

}  // namespace rnnfast::cuda
