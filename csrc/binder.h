// What the binders of all backends share beyond the checks: dispatch below autograd, and the
// results where there is nothing to compute.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <optional>
#include <vector>

#include "check.h"
#include "ops.h"

namespace rnnfast {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// Inside the ops neither autograd nor autocast has a say.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// The type that kernels calculate in.
inline at::ScalarType compute_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// Nothing to compute: no steps, no batch or no units. The states pass through.
inline bool is_empty(const Layer& layer) { return layer.rows == 0 || layer.H == 0; }

inline LayerResult empty_layer(const Layer& layer, const Tensor& x, at::TensorList states,
                               bool train, at::ScalarType reserve_type) {
  LayerResult result{at::zeros(layer.shape(layer.D * layer.H), x.options()), {}, {}};
  for (const auto k : c10::irange(layer.cell.states))
    std::get<1>(result).push_back(states.empty()
                                      ? at::zeros({layer.D, layer.B, layer.H}, x.options())
                                      : states[k].clone(at::MemoryFormat::Contiguous));
  if (train)
    for (const auto& sizes : reserve_sizes(layer))
      std::get<2>(result).push_back(at::zeros(sizes, x.options().dtype(reserve_type)));
  return result;
}

struct BackwardArguments {
  Tensor grad_output;
  c10::List<std::optional<Tensor>> grad_states_n;
  c10::List<bool> needs;
};

inline void check_backward(const Layer& layer, const Tensor& x, at::TensorList weights,
                           at::TensorList reserve, at::ScalarType reserve_type,
                           const BackwardArguments& a) {
  constexpr const char* kOp = "rnnfast::layer_backward";
  check_reserve(kOp, x, reserve, layer, reserve_type);
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

inline Tensors empty_gradients(const Layer& layer, const Tensor& x, at::TensorList weights,
                               const BackwardArguments& a) {
  Tensors result;
  for (const auto i : c10::irange(a.needs.size()))
    if (a.needs[i]) result.push_back(empty_gradient(layer, i, x, weights, a));
  return result;
}

}  // namespace rnnfast
