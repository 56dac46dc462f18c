// Binds the CPU kernels to the ops rnnfast::layer and rnnfast::layer_backward. Included once per
// instruction set.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace rnnfast {

using LayerResult = std::tuple<Tensor, Tensors, Tensors>;

// Inside the ops neither autograd nor autocast has a say.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

template <class F>
void dispatch_cell_and_type(const Layer& layer, F&& f) {
  dispatch_cell(layer.cell.name, [&](auto cell) {
    if (layer.dtype == at::kDouble) {
      f(cell, double{});
    } else {
      f(cell, float{});
    }
  });
}

// Nothing to compute: no steps, no batch or no units. The states pass through.
inline LayerResult empty_layer(const Layer& layer, const Tensor& x, at::TensorList states,
                               bool train) {
  LayerResult result{at::zeros(layer.shape(layer.D * layer.H), x.options()), {}, {}};
  for (const auto k : c10::irange(layer.cell.states))
    std::get<1>(result).push_back(states.empty()
                                      ? at::zeros({layer.D, layer.B, layer.H}, x.options())
                                      : states[k].clone(at::MemoryFormat::Contiguous));
  if (train)
    for (const auto& sizes : reserve_sizes(layer))
      std::get<2>(result).push_back(at::zeros(sizes, x.options().dtype(compute_type(layer.dtype))));
  return result;
}

inline LayerResult layer_cpu(std::string_view cell, const Tensor& x,
                             const std::optional<Tensor>& batch_sizes, at::TensorList states,
                             at::TensorList weights, bool bidirectional, bool train) {
  PlainDispatch guard;
  const Layer layer = check_layer("rnnfast::layer", cell, x, batch_sizes, weights, bidirectional);
  check_states("rnnfast::layer", x, states, layer);
  if (layer.rows == 0 || layer.H == 0) return empty_layer(layer, x, states, train);
  LayerResult result;
  dispatch_cell_and_type(layer, [&](auto c, auto zero) {
    LayerForward<decltype(c), decltype(zero)> forward(layer, x, states, weights, train);
    forward.run();
    for (Tensor& s : forward.states_n) s = in_dtype(s, layer.dtype);
    result = {in_dtype(forward.output, layer.dtype), std::move(forward.states_n),
              std::move(forward.reserve)};
  });
  return result;
}

struct BackwardArguments {
  Tensor grad_output;
  c10::List<std::optional<Tensor>> grad_states_n;
  c10::List<bool> needs;
};

inline void check_backward(const Layer& layer, const Tensor& x, at::TensorList weights,
                           at::TensorList reserve, const BackwardArguments& a) {
  constexpr const char* kOp = "rnnfast::layer_backward";
  check_reserve(kOp, x, reserve, layer, compute_type(layer.dtype));
  if (a.grad_output.defined())
    check_tensor(kOp, "grad_output", a.grad_output, x, layer.dtype, layer.shape(layer.D * layer.H));
  TORCH_CHECK(static_cast<int64_t>(a.grad_states_n.size()) == layer.cell.states, kOp,
              ": grad_states_n must have ", layer.cell.states, " entries, got ",
              a.grad_states_n.size());
  for (const std::optional<Tensor> grad : a.grad_states_n)
    if (grad && grad->defined())
      check_tensor(kOp, "grad_states_n", *grad, x, layer.dtype, {layer.D, layer.B, layer.H});
  const size_t wanted = 1 + layer.cell.states + weights.size();
  TORCH_CHECK(a.needs.size() == wanted, kOp, ": needs must have ", wanted,
              " entries (x, states, weights), got ", a.needs.size());
}

// Gradients where there was nothing to compute: those of the states pass through, the others are
// zero.
inline Tensor empty_gradient(const Layer& layer, size_t i, const Tensor& x, at::TensorList weights,
                             const BackwardArguments& a) {
  if (i == 0) return at::zeros(layer.shape(layer.I), x.options());
  const size_t states = layer.cell.states;
  if (i > states) return at::zeros_like(weights[i - 1 - states], at::MemoryFormat::Contiguous);
  const std::optional<Tensor> grad = a.grad_states_n[i - 1];
  return grad && grad->defined() ? grad->clone(at::MemoryFormat::Contiguous)
                                 : at::zeros({layer.D, layer.B, layer.H}, x.options());
}

template <class Cell, class T>
Tensors backward_gradients(const Layer& layer, const Tensor& x, at::TensorList weights,
                           at::TensorList reserve, const BackwardArguments& a) {
  const auto needs = [&](int64_t i) -> bool { return a.needs[i]; };
  const int64_t per_direction = layer.weights_per_direction(), first_weight = 1 + Cell::kStates;
  bool want_hh = false, want_x = false;
  for (int64_t i = 0; i < layer.D * per_direction; ++i) {
    want_hh |= i % 2 == 1 && needs(first_weight + i);
    want_x |= i % per_direction == 0 && needs(first_weight + i);
  }
  LayerBackward<Cell, T> backward(layer, reserve, weights, a.grad_output, needs(1), want_hh);
  backward.run(a.grad_states_n);
  Tensors result;
  if (needs(0)) result.push_back(backward.grad_x());
  for (int k = 0; k < Cell::kStates; ++k)
    if (needs(1 + k)) result.push_back(backward.grad_initial(k));
  const Tensor rows = want_x ? operand<T>(x).view({layer.rows, layer.I}) : Tensor();
  for (int64_t d = 0; d < layer.D; ++d)
    backward.grad_weights(
        d, [&](int64_t i) { return needs(first_weight + d * per_direction + i); }, rows, result);
  for (Tensor& grad : result) grad = in_dtype(grad, layer.dtype);
  return result;
}

inline Tensors layer_backward_cpu(std::string_view cell, const std::optional<Tensor>& grad_output,
                                  const c10::List<std::optional<Tensor>>& grad_states_n,
                                  const Tensor& x, const std::optional<Tensor>& batch_sizes,
                                  at::TensorList weights, bool bidirectional,
                                  at::TensorList reserve, const c10::List<bool>& needs) {
  PlainDispatch guard;
  const Layer layer =
      check_layer("rnnfast::layer_backward", cell, x, batch_sizes, weights, bidirectional);
  const BackwardArguments arguments{grad_output.value_or(Tensor()), grad_states_n, needs};
  check_backward(layer, x, weights, reserve, arguments);
  Tensors result;
  if (layer.rows == 0 || layer.H == 0) {
    for (const auto i : c10::irange(needs.size()))
      if (needs[i]) result.push_back(empty_gradient(layer, i, x, weights, arguments));
    return result;
  }
  dispatch_cell_and_type(layer, [&](auto c, auto zero) {
    result = backward_gradients<decltype(c), decltype(zero)>(layer, x, weights, reserve, arguments);
  });
  return result;
}

TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  m.impl("layer", &layer_cpu);
  m.impl("layer_backward", &layer_backward_cpu);
}

}  // namespace rnnfast
