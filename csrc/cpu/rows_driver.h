// Binds the CPU kernels to the ops rnnfast::recurrence and recurrence_backward: allocates, and
// hands the recurrence to its team. Half types are widened.
#pragma once

#include "cpu/matrix.h"
#include "cpu/rows_backward.h"
#include "recurrence_op.h"

namespace rnnfast::cpu {

// Rows of H numbers of type T with a stride.
template <class T>
void copy_in(const Tensor& from, T* to, int64_t stride, int64_t H) {
  const Tensor rows = operand<T>(from);
  copy_rows(const_data<T>(rows), H, to, stride, rows.size(0), H);
}

template <class T>
const T* data_or_null(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

// The operands in T that both passes read.
template <class T>
struct RecurrenceOperands {
  const Plan plan;
  Tensor w_hh, gain, gain_c, bias_c, keep, drop;

  explicit RecurrenceOperands(const Recurrence& r) : plan(plan_for<T>(r.layer)) {
    const auto as_operand = [](const Tensor& t) { return t.defined() ? operand<T>(t) : Tensor(); };
    gain = as_operand(r.gain), gain_c = as_operand(r.gain_c), bias_c = as_operand(r.bias_c);
    keep = as_operand(r.keep), drop = as_operand(r.drop);
  }

  const T* weights(const Recurrence& r) {
    w_hh = operand<T>(r.w_hh);
    return const_data<T>(w_hh);
  }

  template <class Direction>
  void set(const Recurrence& r, Direction& d) {
    d.walk = r.walk(), d.hidden = r.layer.H, d.state_stride = padded<T>(r.layer.H);
    d.gain = data_or_null<T>(gain), d.gain_c = data_or_null<T>(gain_c);
    d.bias_c = data_or_null<T>(bias_c), d.keep = data_or_null<T>(keep);
    d.drop = data_or_null<T>(drop), d.keep_stride = r.keeps_rows ? r.kept() : 0;
    if (r.independent) d.w_own = weights(r);
  }
};

template <class Cell, class T>
void run_forward(const Recurrence& r, const RecurrenceInputs& inputs,
                 const RecurrenceResults& results) {
  const int64_t B = r.layer.B, H = r.layer.H, stride = padded<T>(H);
  constexpr int K = Cell::kStates, kScratch = K + Cell::kReserve;
  RecurrenceOperands<T> operands(r);
  const Plan& plan = operands.plan;
  RecurrenceForward<T> d{};
  operands.set(r, d);
  ForwardMatrix<T> w_hh;
  const Panels<T> panels{H, H, Cell::kGates, Cell::kGates > 1 ? 1 : plan.group};
  d.w_hh = r.independent
               ? Weights<T>{panels, nullptr, nullptr}
               : w_hh.set(r.w_hh, panels, plan.packed, [&] { return operands.weights(r); });
  const Tensor x_gates = operand<T>(inputs.x_gates),
               b_hh = inputs.b_hh.defined() ? operand<T>(inputs.b_hh) : Tensor(),
               output = r.layer.dtype == kScalarType<T>
                            ? results.output
                            : empty(results.output.sizes(), kScalarType<T>);
  d.x_gates = const_data<T>(x_gates), d.b_hh = data_or_null<T>(b_hh);
  d.output = mutable_data<T>(output);
  Scratch<T> products(B * r.gates()), scratch(plan.threads * kScratch * stride),
      states = zero_scratch<T>((K + 1) * B * stride);
  d.products = products.data(), d.operand = states.data();
  const RecurrenceReserve reserve(r, results.reserve);
  for (int k = 0; k < K; ++k) {
    d.states[k] = states.data() + k * B * stride;
    if (!inputs.states.empty()) copy_in(inputs.states[k], d.states[k], stride, H);
    if (!reserve.timelines[k].defined()) continue;
    d.timelines[k] = mutable_data<T>(reserve.timelines[k]);
    copy_rows(d.states[k], stride, d.timelines[k] + r.walk().initial(0) * H, H, B, H);
  }
  if (d.drop) {
    d.operand = states.data() + K * B * stride;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t j = 0; j < H; ++j)
        d.operand[b * stride + j] = d.states[0][b * stride + j] * d.drop[b * H + j];
  }
  const auto place = [](const Tensor& t) { return t.defined() ? mutable_data<T>(t) : nullptr; };
  d.gates = place(reserve.gates), d.normalised = place(reserve.normalised);
  d.statistics = place(reserve.statistics), d.fresh = place(reserve.fresh);
  run_teams(plan, 1, [&](int, const Member& member) {
    recurrence_forward<Cell>(d, scratch.data() + member.rank * kScratch * stride, member);
  });
  w_hh.keep_frozen();
  if (!output.is_same(results.output)) results.output.copy_(output);
  for (int k = 0; k < K; ++k) {
    const Tensor last = empty({B, H}, kScalarType<T>);
    copy_rows(d.states[k], stride, mutable_data<T>(last), H, B, H);
    results.states_n[k].copy_(last);
  }
}

template <class Cell, class T>
void run_backward(const Recurrence& r, const RecurrenceReserve& reserve,
                  const RecurrenceGrads& grads, const Tensors& results) {
  const int64_t B = r.layer.B, H = r.layer.H, stride = padded<T>(H);
  constexpr int K = Cell::kStates;
  RecurrenceOperands<T> operands(r);
  const Plan& plan = operands.plan;
  RecurrenceBackward<T> d{};
  operands.set(r, d);
  d.w_hh = {{H, r.gates(), 1, plan.group}, nullptr, nullptr};
  Scratch<T> packed(r.independent ? 0 : d.w_hh.panels.size());
  if (!r.independent) d.w_hh.plain = operands.weights(r), d.w_hh.packed = packed.data();
  const Tensor grad_output = grads.output.defined() ? operand<T>(grads.output) : Tensor();
  d.grad_output = data_or_null<T>(grad_output), d.clip = static_cast<T>(grads.clip);
  d.gates = data_or_null<T>(reserve.gates), d.normalised = data_or_null<T>(reserve.normalised);
  d.statistics = data_or_null<T>(reserve.statistics), d.fresh = data_or_null<T>(reserve.fresh);
  size_t next = 0;
  d.grad_x = d.grad_h = mutable_data<T>(results[next++]);
  if (r.normalised || Cell::kSharedGates < Cell::kGates)
    d.grad_h = mutable_data<T>(results[next++]);
  d.grad_p = r.normalised ? mutable_data<T>(results[next++]) : d.grad_h;
  if (r.normalises_c()) d.grad_y = mutable_data<T>(results[next++]);
  Scratch<T> states = zero_scratch<T>(K * B * stride), scratch(plan.threads * stride);
  for (int k = 0; k < K; ++k) {
    d.timelines[k] = const_data<T>(reserve.timelines[k]);
    d.grad_states[k] = states.data() + k * B * stride;
    copy_in(results[next + k], d.grad_states[k], stride, H);
  }
  run_teams(plan, 1, [&](int, const Member& member) {
    recurrence_backward<Cell>(d, scratch.data() + member.rank * stride, member);
  });
  for (int k = 0; k < K; ++k)
    copy_rows(d.grad_states[k], stride, mutable_data<T>(results[next + k]), H, B, H);
}

}  // namespace rnnfast::cpu
