// What the binders of all backends share of the ops rnnfast::recurrence and recurrence_backward:
// all but the kernels.
#pragma once

#include <ATen/ops/empty.h>

#include "check_recurrence.h"

namespace rnnfast {

struct RecurrenceInputs {
  Tensor x_gates, b_hh;  // b_hh undefined: none
  Tensors states;        // empty: zeros
};

struct RecurrenceResults {
  Tensor output;
  Tensors states_n, reserve;
};

inline void check_clip(const char* op, std::optional<double> clip) {
  TORCH_CHECK(!clip || *clip > 0, op, ": clip must be positive, got ", clip.value_or(0));
}

// run(problem, inputs, results): computes what the results hold room for. The reserve is of the
// type that kernels calculate in, everywhere. `clip` is for the backward pass alone.
template <class Run>
LayerResult recurrence(std::string_view cell, const Tensor& x_gates,
                       const std::optional<Tensor>& batch_sizes, int64_t B, at::TensorList states,
                       const Tensor& w_hh, const std::optional<Tensor>& b_hh, at::TensorList norm,
                       const std::optional<Tensor>& keep, const std::optional<Tensor>& drop,
                       bool reverse, std::optional<double> clip, bool train, const Run& run) {
  constexpr const char* kOp = "rnnfast::recurrence";
  PlainDispatch guard;
  TORCH_CHECK(x_gates.dim() == 2, kOp, ": x_gates must be [rows, G*H], got ", x_gates.dim(),
              " dimensions");
  const Recurrence r =
      check_recurrence(kOp, {cell, batch_sizes, B, w_hh, norm, keep, drop, reverse}, x_gates,
                       x_gates.size(0), x_gates.scalar_type());
  const Layer& layer = r.layer;
  check_tensor(kOp, "x_gates", x_gates, w_hh, layer.dtype, {x_gates.size(0), r.gates()});
  check_clip(kOp, clip);
  RecurrenceInputs inputs{x_gates, or_undefined(b_hh), states.vec()};
  if (inputs.b_hh.defined())
    check_tensor(kOp, "b_hh", inputs.b_hh, x_gates, layer.dtype, {r.gates()});
  TORCH_CHECK(states.empty() || static_cast<int64_t>(states.size()) == layer.cell.states, kOp,
              ": states must be empty or hold ", layer.cell.states, " tensors for cell ",
              layer.cell.name, ", got ", states.size());
  for (const Tensor& s : states)
    check_tensor(kOp, "states", s, x_gates, layer.dtype, {layer.B, layer.H});
  const auto options = x_gates.options(),
             reserve_options = options.dtype(compute_type(layer.dtype));
  RecurrenceResults results{at::empty({x_gates.size(0), layer.H}, options), {}, {}};
  for (int k = 0; k < layer.cell.states; ++k)
    results.states_n.push_back(at::empty({layer.B, layer.H}, options));
  if (train)
    for (const auto& sizes : reserve_sizes(r))
      results.reserve.push_back(at::empty(sizes, reserve_options));
  if (!is_empty(r)) {
    run(r, inputs, results);
  } else {
    for (int k = 0; k < layer.cell.states; ++k)
      states.empty() ? results.states_n[k].zero_() : results.states_n[k].copy_(states[k]);
    for (const Tensor& t : results.reserve) t.zero_();
  }
  return {results.output, results.states_n, results.reserve};
}

struct RecurrenceGrads {
  Tensor output;     // undefined: zero
  Tensors states_n;  // the same
  double clip;       // 0: none
};

// run(problem, reserve, grads, results): fills the results, see gradient_sizes.
template <class Run>
Tensors recurrence_backward(std::string_view cell, const std::optional<Tensor>& grad_output,
                            const c10::List<std::optional<Tensor>>& grad_states_n,
                            const std::optional<Tensor>& batch_sizes, int64_t B, const Tensor& w_hh,
                            at::TensorList norm, const std::optional<Tensor>& keep,
                            const std::optional<Tensor>& drop, bool reverse, at::TensorList reserve,
                            std::optional<double> clip, const Run& run) {
  constexpr const char* kOp = "rnnfast::recurrence_backward";
  PlainDispatch guard;
  TORCH_CHECK(!reserve.empty() && reserve[0].defined() && reserve[0].dim() == 2 && B >= 0 &&
                  reserve[0].size(0) >= B,
              kOp, ": reserve must be what rnnfast::recurrence gave with train=True");
  const Recurrence r =
      check_recurrence(kOp, {cell, batch_sizes, B, w_hh, norm, keep, drop, reverse}, w_hh,
                       reserve[0].size(0) - B, w_hh.scalar_type());
  const Layer& layer = r.layer;
  const at::ScalarType compute = compute_type(layer.dtype);
  check_reserve(kOp, r, reserve, compute);
  check_clip(kOp, clip);
  RecurrenceGrads grads{or_undefined(grad_output), {}, clip.value_or(0)};
  if (grads.output.defined())
    check_tensor(kOp, "grad_output", grads.output, w_hh, layer.dtype,
                 {reserve[0].size(0) - B, layer.H});
  TORCH_CHECK(static_cast<int64_t>(grad_states_n.size()) == layer.cell.states, kOp,
              ": grad_states_n must have ", layer.cell.states, " entries, got ",
              grad_states_n.size());
  for (const std::optional<Tensor> grad : grad_states_n) {
    grads.states_n.push_back(or_undefined(grad));
    if (grads.states_n.back().defined())
      check_tensor(kOp, "grad_states_n", grads.states_n.back(), w_hh, layer.dtype,
                   {layer.B, layer.H});
  }
  Tensors results;
  for (const auto& sizes : gradient_sizes(r))
    results.push_back(at::empty(sizes, w_hh.options().dtype(compute)));
  // The last are those of the states, which begin with what is given.
  const size_t first = results.size() - layer.cell.states;
  for (int k = 0; k < layer.cell.states; ++k)
    grads.states_n[k].defined() ? results[first + k].copy_(grads.states_n[k])
                                : results[first + k].zero_();
  if (!is_empty(r)) run(r, RecurrenceReserve(r, reserve), grads, results);
  return results;
}

}  // namespace rnnfast
