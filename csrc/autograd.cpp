// The derivative of rnnfast::layer, on every device: its node in autograd's graph calls
// rnnfast::layer_backward. Where the gradients must themselves be made of differentiable
// operations, they come from rnnfast.reference.differentiable_gradients, in Python.
#include <ATen/core/LegacyTypeDispatch.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "cells.h"
#include "ops.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// What rnnfast::layer is given besides tensors, and where its reserve goes: it has no gradient.
struct Options {
  c10::DispatchKeySet keys;
  std::string_view cell;
  bool bidirectional;
  variable_list& reserve;
};

CellFacts facts_of(std::string_view cell) {
  return *std::find_if(std::begin(kCells), std::end(kCells),
                       [&](const CellFacts& facts) { return cell == facts.name; });
}

// What the node has saved: x, batch_sizes or nothing, states, weights, reserve.
class Saved {
 public:
  explicit Saved(const AutogradContext& ctx)
      : cell(ctx.saved_data.at("cell").toStringRef()),
        facts(facts_of(cell)),
        bidirectional(ctx.saved_data.at("bidirectional").toBool()),
        given(ctx.saved_data.at("given").toInt()),
        tensors_(ctx.get_saved_variables()) {
    if (tensors_[1].defined()) batch_sizes = tensors_[1];
  }

  const Tensor& x() const { return tensors_[0]; }
  at::TensorList states() const { return all().slice(2, given); }
  at::TensorList weights() const {
    return all().slice(2 + given, tensors_.size() - 2 - given - reserve().size());
  }
  at::TensorList reserve() const {
    const size_t count = facts.states + (facts.reserve > 0);
    return all().slice(tensors_.size() - count, count);
  }

  const std::string cell;
  const CellFacts facts;
  const bool bidirectional;
  const size_t given;  // how many states
  std::optional<Tensor> batch_sizes;

 private:
  at::TensorList all() const { return tensors_; }
  variable_list tensors_;
};

// Whether someone differentiates or batches the operations of the backward pass.
bool needs_graph(at::TensorList grads) {
  if (at::GradMode::is_enabled()) return true;
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode))
    return true;
  return std::any_of(grads.begin(), grads.end(), [](const Tensor& grad) {
    // autograd.grad(is_grads_batched=True) batches in a way of its own, which no mode tells of.
    return grad.defined() &&
           (grad.key_set().has(c10::DispatchKey::Batched) || grad._fw_grad(/*level=*/0).defined());
  });
}

std::optional<Tensor> optional(const Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

// The gradients of x, the given states and the weights, where `needs` is true, one after another.
variable_list fused_gradients(const Saved& saved, at::TensorList grads,
                              const std::vector<bool>& needs) {
  c10::List<std::optional<Tensor>> grad_states_n;
  for (const Tensor& grad : grads.slice(1)) grad_states_n.push_back(optional(grad));
  c10::List<bool> wanted;
  wanted.push_back(needs[0]);
  for (int k = 0; k < saved.facts.states; ++k) wanted.push_back(saved.given && needs[1 + k]);
  for (size_t i = 1 + saved.given; i < needs.size(); ++i) wanted.push_back(needs[i]);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return layer_backward_op().call(saved.cell, optional(grads[0]), grad_states_n, saved.x(),
                                  saved.batch_sizes, saved.weights(), saved.bidirectional,
                                  saved.reserve(), wanted);
}

// The same, each the result of operations that have derivatives; an undefined one is zero.
variable_list differentiable_gradients(const Saved& saved, at::TensorList grads,
                                       const std::vector<bool>& needs) {
  py::gil_scoped_acquire gil;
  try {
    std::vector<std::optional<Tensor>> given;
    for (const Tensor& grad : grads) given.push_back(optional(grad));
    const py::object gradients =
        py::module_::import("rnnfast.reference").attr("differentiable_gradients");
    const py::list found = gradients(saved.cell, saved.x(), saved.batch_sizes, saved.states().vec(),
                                     saved.weights().vec(), saved.bidirectional, given, needs);
    variable_list result;
    for (const auto& grad : py::cast<std::vector<std::optional<Tensor>>>(found))
      result.push_back(grad.value_or(Tensor()));
    return result;
  } catch (py::error_already_set& error) {
    error.restore();
    python_error persistent;  // the engine may raise it in another thread
    persistent.persist();
    throw persistent;
  }
}

struct LayerFunction : torch::autograd::Function<LayerFunction> {
  static constexpr bool is_traceable = true;

  // Returns the output, then states_n. The output is not saved: users may edit it in place.
  static variable_list forward(AutogradContext* ctx, const Options& options, const Tensor& x,
                               const std::optional<Tensor>& batch_sizes, at::TensorList states,
                               at::TensorList weights) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, results, reserve] =
        layer_op().redispatch(options.keys & c10::after_autograd_keyset, options.cell, x,
                              batch_sizes, states, weights, options.bidirectional, true);
    variable_list saved{x, batch_sizes.value_or(Tensor())};
    for (const at::TensorList tensors : {states, weights, at::TensorList(reserve)})
      saved.insert(saved.end(), tensors.begin(), tensors.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["cell"] = std::string(options.cell);
    ctx->saved_data["bidirectional"] = options.bidirectional;
    ctx->saved_data["given"] = static_cast<int64_t>(states.size());
    ctx->set_materialize_grads(false);
    options.reserve = std::move(reserve);
    results.insert(results.begin(), std::move(output));
    return std::move(results);
  }

  // Returns a gradient for every argument of forward, a list counting as its tensors.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Saved saved(*ctx);
    // Only tensors have flags, batch_sizes too where it is one.
    const size_t first = 1 + saved.batch_sizes.has_value();
    std::vector<bool> needs{ctx->needs_input_grad(0)};
    for (size_t i = 0; i < saved.states().size() + saved.weights().size(); ++i)
      needs.push_back(ctx->needs_input_grad(first + i));
    variable_list wanted = needs_graph(grads) ? differentiable_gradients(saved, grads, needs)
                                              : fused_gradients(saved, grads, needs);
    variable_list result(3 + needs.size() - 1);  // options, x, batch_sizes, states and weights
    auto next = wanted.begin();
    for (size_t i = 0; i < needs.size(); ++i)
      if (needs[i]) result[i == 0 ? 1 : 2 + i] = std::move(*next++);
    return result;
  }
};

LayerResult layer_autograd(c10::DispatchKeySet keys, std::string_view cell, const Tensor& x,
                           const std::optional<Tensor>& batch_sizes, at::TensorList states,
                           at::TensorList weights, bool bidirectional, bool train) {
  const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
  if (!at::GradMode::is_enabled() ||
      !(x.requires_grad() || std::any_of(states.begin(), states.end(), requires_grad) ||
        std::any_of(weights.begin(), weights.end(), requires_grad))) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return layer_op().redispatch(keys & c10::after_autograd_keyset, cell, x, batch_sizes, states,
                                 weights, bidirectional, train);
  }
  variable_list reserve;
  variable_list results = LayerFunction::apply(Options{keys, cell, bidirectional, reserve}, x,
                                               batch_sizes, states, weights);
  LayerResult result{std::move(results[0]), {}, {}};
  std::get<1>(result).assign(std::make_move_iterator(results.begin() + 1),
                             std::make_move_iterator(results.end()));
  if (train) std::get<2>(result) = std::move(reserve);
  return result;
}

TORCH_LIBRARY_IMPL(rnnfast, Autograd, m) { m.impl("layer", &layer_autograd); }

}  // namespace
}  // namespace rnnfast
