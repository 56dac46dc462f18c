// How the driver runs an instance of a kernel that takes a whole sequence. Pointers in the
// arguments stand for the type of the precision; `tiles` of the batch, per direction.
#pragma once

#include "cuda/args.h"
#include "cuda/launch.h"

namespace rnnfast::cuda {

// All null where an instance is not possible; forward or backward is null where it is of the other
// pass.
struct SequenceLauncher {
  dev::Status (*pack)(const PackArgs&, dev::Stream);  // null: the kernel takes w_hh as it lies
  dev::Status (*forward)(const ForwardArgs<void>&, int64_t tiles, int directions, dev::Stream);
  dev::Status (*backward)(const BackwardArgs<void>&, int64_t tiles, int directions, dev::Stream);
  int64_t packed_bytes;                      // of w_hh, one direction
  int64_t (*exchange_bytes)(int64_t tiles);  // for so many over all directions; null: none
  uint8_t exchange_fill;                     // each of these bytes before the launch
};

}  // namespace rnnfast::cuda
