// The two ops as C++ calls them: through the dispatcher, unboxed.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace rnnfast {

using LayerResult = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>>;

using LayerOp = LayerResult(std::string_view cell, const at::Tensor& x,
                            const std::optional<at::Tensor>& batch_sizes, at::TensorList states,
                            at::TensorList weights, bool bidirectional, bool train);

using LayerBackwardOp = std::vector<at::Tensor>(
    std::string_view cell, const std::optional<at::Tensor>& grad_output,
    const c10::List<std::optional<at::Tensor>>& grad_states_n, const at::Tensor& x,
    const std::optional<at::Tensor>& batch_sizes, at::TensorList weights, bool bidirectional,
    at::TensorList reserve, const c10::List<bool>& needs);

template <class Op>
c10::TypedOperatorHandle<Op> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
}

inline const c10::TypedOperatorHandle<LayerOp>& layer_op() {
  static const auto op = find_op<LayerOp>("rnnfast::layer");
  return op;
}

inline const c10::TypedOperatorHandle<LayerBackwardOp>& layer_backward_op() {
  static const auto op = find_op<LayerBackwardOp>("rnnfast::layer_backward");
  return op;
}

}  // namespace rnnfast
