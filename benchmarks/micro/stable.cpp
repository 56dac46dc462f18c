// Ops that compute nothing, each registered by torch's usual API and by its stable one: of one
// tensor, and with the arguments and results of rnnfast::layer. The first has a derivative in C++,
// the second gets one in Python. See stable.py.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using Stable = torch::stable::Tensor;

Tensor one(const Tensor& x) { return at::empty_like(x); }
Stable one_stable(const Stable& x) { return torch::stable::empty_like(x); }

struct OneFunction : torch::autograd::Function<OneFunction> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("stable::one", "").typed<decltype(one)>();
    return op.call(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list& grads) {
    return grads;
  }
};
Tensor one_recorded(const Tensor& x) { return OneFunction::apply(x); }

using Result = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;
Result layer(std::string_view, const Tensor& x, const std::optional<Tensor>&, at::TensorList,
             at::TensorList, bool, bool) {
  return {at::empty_like(x), {at::empty_like(x)}, {}};
}

using StableResult = std::tuple<Stable, std::vector<Stable>, std::vector<Stable>>;
StableResult layer_stable(const std::string&, const Stable& x, const std::optional<Stable>&,
                          const std::vector<Stable>&, const std::vector<Stable>&, bool, bool) {
  return {torch::stable::empty_like(x), {torch::stable::empty_like(x)}, {}};
}

template <class Op>
c10::TypedOperatorHandle<Op> find(const std::string& name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("stable::" + name).c_str(), "")
      .typed<Op>();
}

// Nanoseconds a call from C++, as rnnfast makes them: `one_op` is of one tensor, else the layer's.
double from_cpp(const std::string& name, bool one_op, const Tensor& x,
                const std::vector<Tensor>& weights, int calls) {
  const auto time = [&](const auto& call) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) call();
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    return took.count() / calls;
  };
  if (one_op) return time([op = find<Tensor(const Tensor&)>(name), &x] { return op.call(x); });
  const auto op = find<decltype(layer)>(name);
  return time([&] { return op.call("gru", x, std::nullopt, {}, weights, false, false); });
}

}  // namespace

static const std::string kLayer =
    "(str cell, Tensor x, Tensor? batch_sizes, Tensor[] states, Tensor[] weights, bool "
    "bidirectional, bool train) -> (Tensor output, Tensor[] states_n, Tensor[] reserve)";

TORCH_LIBRARY(stable, m) {
  m.def("one(Tensor x) -> Tensor");
  m.def("one_stable(Tensor x) -> Tensor");
  m.def(("layer" + kLayer).c_str());
  m.def(("layer_stable" + kLayer).c_str());
}
TORCH_LIBRARY_IMPL(stable, CPU, m) {
  m.impl("one", one);
  m.impl("layer", layer);
}
TORCH_LIBRARY_IMPL(stable, Autograd, m) { m.impl("one", one_recorded); }
STABLE_TORCH_LIBRARY_IMPL(stable, CPU, m) {
  m.impl("one_stable", TORCH_BOX(&one_stable));
  m.impl("layer_stable", TORCH_BOX(&layer_stable));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("from_cpp", &from_cpp); }
