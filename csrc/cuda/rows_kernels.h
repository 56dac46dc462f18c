// What the driver of recurrences knows of the kernels that take whole rows: as kernels.h.
#pragma once

#include "cuda/kernels.h"

namespace rnnfast::cuda {

// A recurrence (see check_recurrence.h) as both passes are given it. What is not asked for is null.
template <class E>
struct Rows {
  Walk walk;                        // steps in device memory, or null where dense
  StepRows step;                    // of a launch of one step
  int64_t hidden;                   // H
  const E* w_own;                   // [G*H] of independent units
  const E *gain, *gain_c, *bias_c;  // [G*H], [H], [H]
  const E *keep, *drop;             // [rows or one, K*H], [B, H]
  int64_t keep_stride;              // 0: the same for all rows
};

// C is the type of sums, of running states and of the reserve.
template <class E, class C>
struct RowsForward {
  Rows<E> rows;
  const E *x_gates, *b_hh;        // [rows, G*H], [G*H]
  const E* states_0[kMaxStates];  // [B, H]; null: zeros
  const C* products;              // [B, G*H] of the step
  C* states[kMaxStates];          // [B, H] the running states
  E* operand;                     // [B, H] what the next product takes: h times drop
  C* scratch;                     // [B, (1 + Q)*H] c', then the gates, where c is normalised
  E* output;                      // [rows, H]
  E* states_n[kMaxStates];        // [B, H]
  C *timelines[kMaxStates], *gates, *normalised, *statistics, *fresh;  // the reserve
};

template <class E, class C>
struct RowsBackward {
  Rows<E> rows;
  const E* grad_output;                                                      // [rows, H]
  const C *timelines[kMaxStates], *gates, *normalised, *statistics, *fresh;  // the reserve
  C* grad_states[kMaxStates];   // [B, H] in: gradients of states_n; out: of the initial states
  const C* back;                // [B, H] what the product of the step after sends back
  C *grad_x, *grad_h, *grad_p;  // [rows, G*H]; null: equal to the one before
  C* grad_y;                    // [rows, H]
  E* operand;                   // [B, G*H] grad_p as the product takes it, where that is no C
  C* scratch;                   // [B, H] gradients of c', where c is normalised
  double clip;                  // 0: none
};

// One step, once its product is there.
Status launch_rows_forward(std::string_view cell, Type type, const RowsForward<void, void>& args,
                           Stream stream);
Status launch_rows_backward(std::string_view cell, Type type, const RowsBackward<void, void>& args,
                            Stream stream);
// All steps of independent units without normalisation.
Status launch_units_forward(std::string_view cell, Type type, const RowsForward<void, void>& args,
                            Stream stream);
Status launch_units_backward(std::string_view cell, Type type, const RowsBackward<void, void>& args,
                             Stream stream);

}  // namespace rnnfast::cuda
