// What the driver knows of the kernels: their arguments and their launchers, without torch and
// without device code. A driver holds tensors of any type: there E and C are void, and the launcher
// gives the pointers the type that `type` names.
#pragma once

#include <cstdint>
#include <string_view>

#include "cuda/args.h"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace rnnfast::cuda {

// One step of all directions, once the product with w_hh is there. C is the type of sums and of
// running states.
template <class E, class C>
struct StepForward {
  ForwardArgs<E> layer;
  StepRows rows[2];
  const C* h_gates;  // [D, B, G*H] W_hh h_{t-1}
  C* states[2];      // per state [D, B, H] the running states; h only where the cell reads it
  E* h;              // [D, B, H] h as it is stored, for the next product; null: states[0] is that
  bool last_h;       // that of a row's last step only: products find others in the output
  const bool* begins[2];  // per direction [B], whether a row begins anew with this step; or null
};

template <class E, class C>
struct StepBackward {
  BackwardArgs<E> layer;
  StepRows rows[2];
  C* grad_states[2];   // per state [D, B, H] gradients of the running states; null: not to be kept
  E* grad_h_gates[2];  // per direction [rows of the step, G*H]; null where they equal those of x
  const bool* begins[2];  // as in StepForward
  const bool* ends[2];    // the same of the step after this one
};

// Sums of the columns of some matrices, in two stages: of `part_rows` rows each, then of those
// sums.
template <class E, class C>
struct ColumnSums {
  static constexpr int kMost = 4;  // the gate gradients of both sides, in both directions
  struct Matrix {
    const E* rows;  // [rows, columns]
    E* sums[2];     // [columns] each; either may be null
  };
  Matrix matrices[kMost];
  int count;
  C* partial;  // [matrices, parts, columns]; of one part there are none
  int64_t rows, columns, part_rows, parts;
};

// Steps [first, first + count) of a sequence, of one batch size; their rows begin at `row`.
struct Run {
  int64_t first, count, batch, row;
};
// Runs go to the device as arguments of a kernel: no copy from the host, so that CUDA graphs can
// record it.
struct ExpandRuns {
  static constexpr int kCapacity = 120;  // a kernel takes 4 KB of arguments
  Run runs[kCapacity];
  int count;
  int64_t* batch;   // [T]
  int64_t* offset;  // [T]
};

// The state before every row of a sequence, out of a timeline.
template <class E>
struct StatesBefore {
  Walk walk;  // steps in device memory
  int64_t hidden;
  const E* timeline;   // [rows + B, H]
  E* result;           // [rows, H]
  const bool* begins;  // as in ForwardArgs
};

using dev::Status;
using dev::Stream;

Status launch_step_forward(std::string_view cell, Type type, const StepForward<void, void>& args,
                           int directions, Stream stream);
Status launch_step_backward(std::string_view cell, Type type, const StepBackward<void, void>& args,
                            int directions, Stream stream);
Status launch_column_sums(Type type, const ColumnSums<void, void>& args, Stream stream);
Status launch_expand_runs(const ExpandRuns& args, Stream stream);
Status launch_states_before(Type type, const StatesBefore<void>& args, Stream stream);

// What the kernels' code for the current device may use, see dev::compiled_for.
int compiled_for();

}  // namespace rnnfast::cuda
