// The ops rnnfast::layer and rnnfast::layer_backward by the CUDA kernels, whose reserve is kept in
// the dtype of x, half types too; and what rnnfast::recurrence and recurrence_backward run.
#pragma once

#include <string_view>

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/rows_driver.h"

namespace rnnfast::cuda {

// `get_context` is called once the arguments have been found good.
template <class GetContext>
LayerResult layer(std::string_view cell, const Tensor& x, const std::optional<Tensor>& batch_sizes,
                  at::TensorList states, at::TensorList weights, bool bidirectional, bool train,
                  const GetContext& get_context) {
  PlainDispatch guard;
  const Layer layer = layer_of("rnnfast::layer", cell, x, batch_sizes, weights, bidirectional);
  check_states("rnnfast::layer", x, states, layer);
  if (is_empty(layer)) return empty_layer(layer, x, states, train, layer.dtype);
  const Context context = get_context();
  LayerForward forward(layer, context, x, states, weights, train);
  forward.run();
  return {forward.output.view(layer.shape(layer.D * layer.H)), forward.states_n, forward.reserve};
}

inline Tensors wanted_gradients(const Layer& layer, const Context& context, const Tensor& x,
                                at::TensorList weights, at::TensorList reserve,
                                const BackwardArguments& a) {
  const auto needs = [&](int64_t i) -> bool { return a.needs[i]; };
  const int64_t per_direction = layer.weights_per_direction(), first_weight = 1 + layer.cell.states;
  bool want_hh = false, want_x = false;
  for (int64_t i = 0; i < layer.D * per_direction; ++i) {
    want_hh |= i % 2 == 1 && needs(first_weight + i);
    want_x |= i % per_direction == 0 && needs(first_weight + i);
  }
  LayerBackward backward(layer, context, weights, reserve, a, want_hh);
  backward.run();
  Tensors result;
  if (needs(0)) result.push_back(backward.grad_x());
  for (int64_t k = 0; k < layer.cell.states; ++k)
    if (needs(1 + k)) result.push_back(backward.grad_state(k));
  const Tensor rows = want_x ? x.contiguous() : x;
  backward.grad_weights(
      [&](int64_t d, int64_t i) { return needs(first_weight + d * per_direction + i); }, rows,
      result);
  return result;
}

template <class GetContext>
Tensors layer_backward(std::string_view cell, const std::optional<Tensor>& grad_output,
                       const c10::List<std::optional<Tensor>>& grad_states_n, const Tensor& x,
                       const std::optional<Tensor>& batch_sizes, at::TensorList weights,
                       bool bidirectional, at::TensorList reserve, const c10::List<bool>& needs,
                       const GetContext& get_context) {
  PlainDispatch guard;
  const Layer layer =
      layer_of("rnnfast::layer_backward", cell, x, batch_sizes, weights, bidirectional);
  const BackwardArguments arguments{grad_output.value_or(Tensor()), grad_states_n, needs};
  check_backward(layer, x, weights, reserve, layer.dtype, arguments);
  if (is_empty(layer)) return empty_gradients(layer, x, weights, arguments);
  return wanted_gradients(layer, get_context(), x, weights, reserve, arguments);
}

// `run` of recurrence_op.h. `get_stream` is called once the arguments have been found good.
template <class GetStream>
auto rows_forward_on(const GetStream& get_stream) {
  return [get_stream](const Recurrence& r, const RecurrenceInputs& inputs,
                      const RecurrenceResults& results) {
    RowsForwardDriver(r, inputs, results, get_stream()).run();
  };
}
template <class GetStream>
auto rows_backward_on(const GetStream& get_stream) {
  return [get_stream](const Recurrence& r, const RecurrenceReserve& reserve,
                      const RecurrenceGrads& grads, const Tensors& results) {
    RowsBackwardDriver(r, reserve, grads, results, get_stream()).run();
  };
}

}  // namespace rnnfast::cuda
