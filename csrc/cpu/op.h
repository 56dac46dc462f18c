// Binds the CPU kernels to the ops. Included once per instruction set.
#pragma once

#include <ATen/Context.h>
#include <torch/library.h>

#include "cpu/backward.h"
#include "cpu/fork.h"
#include "cpu/forward.h"
#include "cpu/rows_driver.h"

namespace rnnfast::cpu {

// torch.backends.mkldnn.rnn.fp32_precision, torch's switch for recurrent layers in float32.
inline bool bfloat16_is_precise_enough() {
  return at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::RNN) ==
         at::Float32Precision::BF16;
}

// Whether a layer is multiplied in bfloat16. In training the price of rounding and of pairs is paid
// for by rows.
inline bool multiplies_bfloat16(const Layer& layer, bool train) {
  if (layer.dtype == at::kBFloat16)
    return kBfloat16Products && (!train || many_rows(layer.T, layer.B));
  return kTiles && layer.dtype == at::kFloat && fill_tiles(layer.T, layer.B) &&
         bfloat16_is_precise_enough();
}

// Calls f with the cell, with what its numbers are multiplied as, and with what the other tensors
// are read and written as: half types are widened, but for bfloat16 where this library has products
// of it.
template <class F>
void dispatch_forward(const Layer& layer, bool train, F&& f) {
  dispatch_cell(layer.cell.name, [&](auto cell) {
    if (layer.dtype == at::kDouble) return f(cell, double{}, double{});
    if constexpr (kBfloat16Products)
      if (layer.dtype == at::kBFloat16 && multiplies_bfloat16(layer, train))
        return f(cell, Bfloat16{}, Bfloat16{});
    if constexpr (kTiles)
      if (layer.dtype == at::kFloat && multiplies_bfloat16(layer, train))
        return f(cell, Bfloat16{}, float{});
    f(cell, float{}, float{});
  });
}

template <class F>
void dispatch_backward(const Layer& layer, F&& f) {
  dispatch_cell(layer.cell.name, [&](auto cell) {
    if (layer.dtype == at::kDouble) return f(cell, double{});
    if constexpr (kBfloat16Products)
      if (multiplies_bfloat16(layer, true)) return f(cell, Bfloat16{});
    f(cell, float{});
  });
}

inline LayerResult layer_cpu(std::string_view cell, const Tensor& x,
                             const std::optional<Tensor>& batch_sizes, at::TensorList states,
                             at::TensorList weights, bool bidirectional, bool train) {
  PlainDispatch guard;
  const Layer layer = check_layer("rnnfast::layer", cell, x, batch_sizes, weights, bidirectional);
  check_states("rnnfast::layer", x, states, layer);
  if (is_empty(layer)) return empty_layer(layer, x, states, train, compute_type(layer.dtype));
  LayerResult result;
  dispatch_forward(layer, train, [&](auto c, auto factor, auto number) {
    LayerForward<decltype(c), decltype(factor), decltype(number)> forward(layer, x, states, weights,
                                                                          train);
    forward.run();
    for (Tensor& s : forward.states_n) s = in_dtype(s, layer.dtype);
    result = {in_dtype(forward.output, layer.dtype), std::move(forward.states_n),
              std::move(forward.reserve)};
  });
  return result;
}

template <class Cell, class S>
Tensors backward_gradients(const Layer& layer, const Tensor& x, at::TensorList weights,
                           at::TensorList reserve, const BackwardArguments& a) {
  LayerBackward<Cell, S> backward(layer, x, weights, reserve, a);
  backward.run();
  Tensors result = backward.results();
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
  check_backward(layer, x, weights, reserve, compute_type(layer.dtype), arguments);
  if (is_empty(layer)) return empty_gradients(layer, x, weights, arguments);
  Tensors result;
  dispatch_backward(layer, [&](auto c, auto zero) {
    result = backward_gradients<decltype(c), decltype(zero)>(layer, x, weights, reserve, arguments);
  });
  return result;
}

// Calls f with the cell and with the type that it is calculated in.
template <class F>
void dispatch_recurrence(const Recurrence& r, F&& f) {
  dispatch_cell(r.layer.cell.name, [&](auto cell) {
    r.layer.dtype == at::kDouble ? f(cell, double{}) : f(cell, float{});
  });
}

inline LayerResult recurrence_cpu(std::string_view cell, const Tensor& x_gates,
                                  const std::optional<Tensor>& batch_sizes, int64_t B,
                                  at::TensorList states, const Tensor& w_hh,
                                  const std::optional<Tensor>& b_hh, at::TensorList norm,
                                  const std::optional<Tensor>& keep,
                                  const std::optional<Tensor>& drop, bool reverse,
                                  std::optional<double> clip, bool train) {
  return recurrence(cell, x_gates, batch_sizes, B, states, w_hh, b_hh, norm, keep, drop, reverse,
                    clip, train, [](const Recurrence& r, const auto& inputs, const auto& results) {
                      dispatch_recurrence(r, [&](auto c, auto number) {
                        run_forward<decltype(c), decltype(number)>(r, inputs, results);
                      });
                    });
}

inline Tensors recurrence_backward_cpu(std::string_view cell,
                                       const std::optional<Tensor>& grad_output,
                                       const c10::List<std::optional<Tensor>>& grad_states_n,
                                       const std::optional<Tensor>& batch_sizes, int64_t B,
                                       const Tensor& w_hh, at::TensorList norm,
                                       const std::optional<Tensor>& keep,
                                       const std::optional<Tensor>& drop, bool reverse,
                                       at::TensorList reserve, std::optional<double> clip) {
  return rnnfast::recurrence_backward(
      cell, grad_output, grad_states_n, batch_sizes, B, w_hh, norm, keep, drop, reverse, reserve,
      clip, [](const Recurrence& r, const auto& kept, const auto& grads, const Tensors& results) {
        dispatch_recurrence(r, [&](auto c, auto number) {
          run_backward<decltype(c), decltype(number)>(r, kept, grads, results);
        });
      });
}

inline void set_frozen_cpu(const Tensor& weight, bool frozen) {
  TORCH_CHECK(!weight.is_inference(),
              "rnnfast::set_frozen: weight was made in inference mode, where autograd counts no "
              "changes to it: make it outside, or use weight.clone()");
  FrozenWeights::instance().set(weight, frozen);
}

inline bool is_frozen_cpu(const Tensor& weight) { return FrozenWeights::instance().has(weight); }

TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  prepare_for_forks();
  m.impl("set_frozen", &set_frozen_cpu);
  m.impl("is_frozen", &is_frozen_cpu);
  m.impl("layer", &layer_cpu);
  m.impl("layer_backward", &layer_backward_cpu);
  m.impl("recurrence", &recurrence_cpu);
  m.impl("recurrence_backward", &recurrence_backward_cpu);
}

}  // namespace rnnfast::cpu
