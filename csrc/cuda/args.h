// What the kernels that run a whole sequence are given: one struct for both directions, passed by
// value. Direction d of a tensor [D, ...] begins at d times the size of the rest. E is the type the
// tensors are stored in. Null pointers stand for what is absent or not wanted.
#pragma once

#include "recurrence.h"

namespace rnnfast {

template <class E>
struct ForwardArgs {
  Steps steps;           // batch and offset in device memory
  const bool* begins;    // [T, B], see Layer; then the steps are dense. Null: nothing begins anew
  int64_t hidden;        // H
  const E* w_hh[2];      // per direction [G*H, H]
  const void* packed;    // w_hh packed for the kernel [D, packed_bytes]; null: it packs nothing
  int64_t packed_bytes;  // of one direction
  const E* x_gates;      // [D, rows, G*H] W_ih x
  const E* b_ih[2];      // per direction [G*H]; null: none, or x_gates has it
  const E* b_hh[2];      // per direction [G*H]
  const E* states_0[2];  // per state [D, B, H]; null: zeros
  E* output;             // [rows, D*H]
  E* states_n[2];        // per state [D, B, H]
  E* timelines[2];       // per state [D, rows + B, H], see Walk; null: inference
  E* gates;              // [D, rows, H, reserve]; null: inference, or a cell without
  void* exchange;        // global memory of SequenceLauncher::exchange_bytes, filled as it says
};

template <class E>
struct BackwardArgs {
  Steps steps;
  const bool* begins;
  int64_t hidden;
  const E* w_hh[2];  // these three as in ForwardArgs
  const void* packed;
  int64_t packed_bytes;
  const E* grad_output;       // [rows, D*H]
  const E* grad_states_n[2];  // per state [D, B, H]
  const E* timelines[2];      // as written by forward
  const E* gates;
  E* grad_x_gates;      // [D, rows, G*H]
  E* grad_h_gates;      // [D, rows, G*H]; null where it equals grad_x_gates or nobody asks
  E* grad_states_0[2];  // per state [D, B, H]
  void* exchange;
};

// For the kernels that pack w_hh in the order in which a whole-sequence kernel takes it: of one
// direction, and as they are launched, for all of them.
struct PackArgs {
  const void* w_hh;  // [G*H, H]
  int64_t hidden;    // H
  void* packed;      // [rank][warp][fragment][lane] of 16 bytes
};
struct LayerPackArgs {
  const void* w_hh[2];  // per direction
  int64_t hidden;
  uint8_t* packed;
  int64_t packed_bytes;  // of one direction
  int directions;

  RNNFAST_FN PackArgs of(int direction) const {
    return {w_hh[direction], hidden, packed + direction * packed_bytes};
  }
};

}  // namespace rnnfast
