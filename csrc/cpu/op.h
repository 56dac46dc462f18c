// Binds the CPU kernels to the ops rnnfast::layer and rnnfast::layer_backward. Included once per instruction set.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/products.h"

namespace rnnfast {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using LayerResult = std::tuple<Tensor, Tensors, Tensors>;

inline at::ScalarType compute_type(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

template <class T>
Plan plan_for(const Layer& layer) {
  const int threads = at::in_parallel_region() ? 1 : std::min(at::get_num_threads(), free_processors());
  return plan({layer.cell.gates, layer.T, layer.B, layer.I, layer.H, static_cast<int>(layer.D), layer.uniform, threads,
               Vec<T>::kWidth, static_cast<int>(sizeof(T))});
}

// Rows padded to whole registers, and off the power of two at which all rows of a tile would fall into one set of the L1 cache.
template <class T>
int64_t padded(int64_t columns) {
  return (ceil_div(columns, Vec<T>::kWidth) + 1) * Vec<T>::kWidth;
}

template <class T>
void copy_rows(const T* src, int64_t src_stride, T* dst, int64_t dst_stride, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(src + r * src_stride, columns, dst + r * dst_stride);
}

template <class Cell, class T>
struct LayerForward {
  const Layer& layer;
  const Plan plan;
  Tensors weights, states;
  Tensor x, output, buffers, packed, h_gates;
  Tensors states_n, reserve;
  ForwardDirection<T> directions[2];
  Panels<T> panels;

  static constexpr at::ScalarType kType = c10::CppTypeToScalarType<T>::value;

  LayerForward(const Layer& l, const Tensor& input, at::TensorList initial, at::TensorList all_weights, bool train)
      : layer(l), plan(plan_for<T>(l)), panels{l.H, l.H, Cell::kGates, Cell::kGates > 1 ? 1 : plan.group} {
    x = input.to(kType).contiguous().view({layer.rows, layer.I});
    for (const Tensor& w : all_weights) weights.push_back(w.to(kType).contiguous());
    for (const Tensor& s : initial) states.push_back(s.to(kType).contiguous());
    const auto options = x.options();
    output = at::empty({layer.rows, layer.D * layer.H}, options);
    for (int k = 0; k < Cell::kStates; ++k) states_n.push_back(at::empty({layer.D, layer.B, layer.H}, options));
    if (train)
      for (const auto& sizes : reserve_sizes(layer)) reserve.push_back(at::empty(sizes, options));
    buffers = at::zeros({layer.D, Cell::kStates + 1, layer.B, padded<T>(layer.H)}, options);
    if (plan.packed) packed = at::empty({layer.D, panels.size()}, options);
  }

  const Tensor& weight(int64_t d, int64_t i) const { return weights[d * layer.weights_per_direction() + i]; }

  void prepare(int64_t d) {
    const int64_t B = layer.B, H = layer.H, stride = padded<T>(H);
    T* buffer = buffers.mutable_data_ptr<T>() + d * (Cell::kStates + 1) * B * stride;
    ForwardDirection<T>& f = directions[d] = {};
    f.walk = layer.walk(d), f.hidden = H, f.state_stride = stride;
    f.h[0] = buffer, f.h[1] = buffer + B * stride;
    if (Cell::kStates > 1) f.c = buffer + 2 * B * stride;
    f.output = output.mutable_data_ptr<T>() + d * H, f.output_stride = layer.D * H;
    if (layer.has_biases) f.b_hh = weight(d, 3).template const_data_ptr<T>();
    for (int k = 0; k < Cell::kStates; ++k) {
      f.states_n[k] = states_n[k].template mutable_data_ptr<T>() + d * B * H;
      if (!reserve.empty()) f.timelines[k] = reserve[k].template mutable_data_ptr<T>() + d * (layer.rows + B) * H;
      fill_initial(f, k, d);
    }
    if (Cell::kReserve && !reserve.empty())
      f.gates = reserve[Cell::kStates].template mutable_data_ptr<T>() + d * layer.rows * Cell::kReserve * H;
    prepare_product(f, d);
  }

  // h goes into both of its buffers: rows that come alive late find it in whichever is read then.
  void fill_initial(ForwardDirection<T>& f, int k, int64_t d) {
    const int64_t B = layer.B, H = layer.H;
    T* timeline = f.timelines[k] ? f.timelines[k] + f.walk.initial(0) * H : nullptr;
    if (states.empty()) {
      if (timeline) std::fill_n(timeline, B * H, T(0));
      return;
    }
    const T* initial = states[k].template const_data_ptr<T>() + d * B * H;
    if (timeline) std::copy_n(initial, B * H, timeline);
    copy_rows(initial, H, k == 0 ? f.h[0] : f.c, f.state_stride, B, H);
    if (k == 0) copy_rows(initial, H, f.h[1], f.state_stride, B, H);
  }

  void prepare_product(ForwardDirection<T>& f, int64_t d) {
    const Tensor& w_hh = weight(d, 1);
    if (plan.packed) {
      T* dst = packed.mutable_data_ptr<T>() + d * panels.size();
      const T* src = w_hh.template const_data_ptr<T>();
      parallel_for(w_hh.numel() < 32768 ? 1 : plan.threads, panels.count(),
                   [&](int64_t panel) { pack_forward(src, panels, panel, dst + panels.offset(panel)); });
      f.w_hh = dst;
      return;
    }
    const int64_t columns = Cell::kGates * layer.H;
    Tensor product = states.empty() ? at::zeros({columns}, x.options()) : at::mm(states[0][d], w_hh.t());
    f.h_gates = product.const_data_ptr<T>(), f.h_gates_stride = states.empty() ? 0 : columns;
    kept.push_back(product);
  }

  // The rows of x that steps [begin, end) of a walk read.
  Range rows_of(const Walk& walk, int64_t begin, int64_t end) const {
    return walk.reverse ? Range{layer.offset[layer.T - end], layer.offset[layer.T - begin]} : Range{layer.offset[begin], layer.offset[end]};
  }

  // w_ih as times_transposed likes it, for products of `rows` rows.
  Tensor projection_weight(int64_t d, int64_t rows) const {
    const Tensor& w_ih = weight(d, 0);
    return use_onednn(x.narrow(0, 0, rows), w_ih.size(0)) ? transposed<T>(w_ih, plan.threads).t() : w_ih;
  }

  void run() {
    Tensor w_ih[2];
    for (int64_t d = 0; d < layer.D; ++d) {
      prepare(d);
      w_ih[d] = projection_weight(d, layer.offset[plan.chunk_steps]);
    }
    for (int64_t begin = 0; begin < layer.T; begin += plan.chunk_steps) {
      const int64_t end = std::min(begin + plan.chunk_steps, layer.T);
      Tensor x_gates[2];
      for (int64_t d = 0; d < layer.D; ++d) {
        const Range rows = rows_of(directions[d].walk, begin, end);
        x_gates[d] = times_transposed(x.narrow(0, rows.begin, rows.end - rows.begin), w_ih[d], layer.has_biases ? weight(d, 2) : Tensor());
        directions[d].x_gates = x_gates[d].const_data_ptr<T>(), directions[d].x_gates_row = rows.begin;
      }
      run_teams(plan, static_cast<int>(layer.D),
                [&](int d, Member member) { forward_steps<Cell>(directions[d], panels, {begin, end}, member); });
    }
  }

  Tensors kept;  // alive until the kernels are through
};

template <class Cell, class T>
struct LayerBackward {
  const Layer& layer;
  const Plan plan;
  const Tensors reserve;
  Tensors weights;
  Tensor grad_output, grad_states, carry, packed;
  Tensor grad_x_gates, grad_h_gates;  // [D, rows, G*H]
  BackwardDirection<T> directions[2];
  Panels<T> panels;
  bool want_h_0, want_hh;

  static constexpr at::ScalarType kType = c10::CppTypeToScalarType<T>::value;
  static constexpr int kGates = Cell::kGates;

  LayerBackward(const Layer& l, at::TensorList kept, at::TensorList all_weights, const Tensor& grad, bool h_0, bool hh)
      : layer(l), plan(plan_for<T>(l)), reserve(kept.vec()), panels{l.H, kGates * l.H, 1, plan.group}, want_h_0(h_0), want_hh(hh) {
    for (const Tensor& w : all_weights) weights.push_back(w.to(kType).contiguous());
    if (grad.defined()) grad_output = grad.to(kType).contiguous();
    const auto options = reserve[0].options();
    const int64_t B = layer.B, columns = kGates * layer.H;
    grad_states = at::zeros({layer.D, Cell::kStates, B, padded<T>(layer.H)}, options);
    carry = at::zeros({layer.D, 2, B, padded<T>(columns)}, options);
    grad_x_gates = at::empty({layer.D, layer.rows, columns}, options);
    const bool own_h_gates = !Cell::kSameGradients && (want_hh || want_h_0);
    grad_h_gates = own_h_gates ? at::empty_like(grad_x_gates) : grad_x_gates;
    if (plan.packed) packed = at::empty({layer.D, panels.size()}, options);
  }

  const Tensor& weight(int64_t d, int64_t i) const { return weights[d * layer.weights_per_direction() + i]; }

  void prepare(int64_t d, const c10::List<std::optional<Tensor>>& grad_states_n) {
    const int64_t B = layer.B, H = layer.H, columns = kGates * H;
    BackwardDirection<T>& b = directions[d] = {};
    b.walk = layer.walk(d), b.hidden = H, b.state_stride = padded<T>(H), b.carry_stride = padded<T>(columns);
    if (grad_output.defined()) b.grad_output = grad_output.const_data_ptr<T>() + d * H;
    b.grad_output_stride = layer.D * H;
    for (int k = 0; k < Cell::kStates; ++k) {
      b.timelines[k] = reserve[k].template const_data_ptr<T>() + d * (layer.rows + B) * H;
      b.grad_states[k] = grad_states.mutable_data_ptr<T>() + (d * Cell::kStates + k) * B * b.state_stride;
      const std::optional<Tensor> given = grad_states_n[k];
      if (!given || !given->defined()) continue;
      const Tensor grad = given->select(0, d).to(kType).contiguous();
      copy_rows(grad.const_data_ptr<T>(), H, b.grad_states[k], b.state_stride, B, H);
    }
    if (Cell::kReserve) b.gates = reserve[Cell::kStates].template const_data_ptr<T>() + d * layer.rows * Cell::kReserve * H;
    for (int parity = 0; parity < 2; ++parity) b.carry[parity] = carry.mutable_data_ptr<T>() + (d * 2 + parity) * B * b.carry_stride;
    b.grad_x_gates = grad_x_gates.mutable_data_ptr<T>() + d * layer.rows * columns;
    if (!grad_h_gates.is_same(grad_x_gates)) b.grad_h_gates = grad_h_gates.mutable_data_ptr<T>() + d * layer.rows * columns;
    b.want_h_0 = want_h_0 && plan.packed;
    if (plan.packed) pack(b, d);
  }

  void pack(BackwardDirection<T>& b, int64_t d) {
    T* dst = packed.mutable_data_ptr<T>() + d * panels.size();
    const T* src = weight(d, 1).template const_data_ptr<T>();
    parallel_for(weight(d, 1).numel() < 32768 ? 1 : plan.threads, panels.count(),
                 [&](int64_t panel) { pack_backward(src, panels, panel, dst + panels.offset(panel)); });
    b.w_hh = dst;
  }

  void run(const c10::List<std::optional<Tensor>>& grad_states_n) {
    for (int64_t d = 0; d < layer.D; ++d) prepare(d, grad_states_n);
    run_teams(plan, static_cast<int>(layer.D), [&](int d, Member member) { backward_steps<Cell>(directions[d], panels, member); });
  }

  Tensor grad_x() const {
    Tensor sum;
    for (int64_t d = 0; d < layer.D; ++d) {
      Tensor grad = times_transposed(grad_x_gates[d], weight(d, 0).t());
      sum = sum.defined() ? sum.add_(grad) : grad;
    }
    return sum.view(layer.shape(layer.I));
  }

  Tensor grad_initial(int k) const {
    Tensor grad = grad_states.select(1, k).narrow(2, 0, layer.H).contiguous();
    if (k > 0 || plan.packed) return grad;
    for (int64_t d = 0; d < layer.D; ++d) grad[d].addmm_(grad_h_gates[d], weight(d, 1));
    return grad;
  }

  // The state that every row found: in the timeline it lies B rows before the row's own, unless the batch shrinks.
  Tensor h_before(int64_t d) const {
    const Tensor timeline = reserve[0][d];
    if (layer.uniform) return timeline.narrow(0, d ? layer.B : 0, layer.rows);
    Tensor result = at::empty({layer.rows, layer.H}, timeline.options());
    const T* src = timeline.const_data_ptr<T>();
    T* dst = result.mutable_data_ptr<T>();
    for (int64_t t = 0; t < layer.T; ++t)
      for (int64_t b = 0; b < layer.batch[t]; ++b, dst += layer.H) std::copy_n(src + layer.walk(d).before(t, b) * layer.H, layer.H, dst);
    return result;
  }

  Tensor grad_weight(int64_t d, int64_t i, const Tensor& x) const {
    switch (i) {
      case 0: return transposed_times<T>(grad_x_gates[d], x, plan.threads);
      case 1: return transposed_times<T>(grad_h_gates[d], h_before(d), plan.threads);
      case 2: return at::sum(grad_x_gates[d], 0);
      default: return at::sum(grad_h_gates[d], 0);
    }
  }
};

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
inline LayerResult empty_layer(const Layer& layer, const Tensor& x, at::TensorList states, bool train) {
  LayerResult result{at::zeros(layer.shape(layer.D * layer.H), x.options()), {}, {}};
  for (const auto k : c10::irange(layer.cell.states))
    std::get<1>(result).push_back(states.empty() ? at::zeros({layer.D, layer.B, layer.H}, x.options())
                                                 : states[k].clone(at::MemoryFormat::Contiguous));
  if (train)
    for (const auto& sizes : reserve_sizes(layer)) std::get<2>(result).push_back(at::zeros(sizes, x.options().dtype(compute_type(layer.dtype))));
  return result;
}

inline LayerResult layer_cpu(std::string_view cell, const Tensor& x, const std::optional<Tensor>& batch_sizes, at::TensorList states,
                             at::TensorList weights, bool bidirectional, bool train) {
  PlainDispatch guard;
  const Layer layer = check_layer("rnnfast::layer", cell, x, batch_sizes, weights, bidirectional);
  check_states("rnnfast::layer", x, states, layer);
  if (layer.rows == 0 || layer.H == 0) return empty_layer(layer, x, states, train);
  LayerResult result;
  dispatch_cell_and_type(layer, [&](auto c, auto zero) {
    LayerForward<decltype(c), decltype(zero)> forward(layer, x, states, weights, train);
    forward.run();
    for (Tensor& s : forward.states_n) s = s.to(layer.dtype);
    result = {forward.output.to(layer.dtype).view(layer.shape(layer.D * layer.H)), forward.states_n, forward.reserve};
  });
  return result;
}

struct BackwardArguments {
  Tensor grad_output;
  c10::List<std::optional<Tensor>> grad_states_n;
  c10::List<bool> needs;
};

inline void check_backward(const Layer& layer, const Tensor& x, at::TensorList weights, at::TensorList reserve,
                           const BackwardArguments& a) {
  constexpr const char* kOp = "rnnfast::layer_backward";
  check_reserve(kOp, x, reserve, layer, compute_type(layer.dtype));
  if (a.grad_output.defined()) check_tensor(kOp, "grad_output", a.grad_output, x, layer.dtype, layer.shape(layer.D * layer.H));
  TORCH_CHECK(static_cast<int64_t>(a.grad_states_n.size()) == layer.cell.states, kOp, ": grad_states_n must have ", layer.cell.states,
              " entries, got ", a.grad_states_n.size());
  for (const std::optional<Tensor> grad : a.grad_states_n)
    if (grad && grad->defined()) check_tensor(kOp, "grad_states_n", *grad, x, layer.dtype, {layer.D, layer.B, layer.H});
  const size_t wanted = 1 + layer.cell.states + weights.size();
  TORCH_CHECK(a.needs.size() == wanted, kOp, ": needs must have ", wanted, " entries (x, states, weights), got ", a.needs.size());
}

// Gradients where there was nothing to compute: those of the states pass through, the others are zero.
inline Tensor empty_gradient(const Layer& layer, size_t i, const Tensor& x, at::TensorList weights, const BackwardArguments& a) {
  if (i == 0) return at::zeros(layer.shape(layer.I), x.options());
  const size_t states = layer.cell.states;
  if (i > states) return at::zeros_like(weights[i - 1 - states], at::MemoryFormat::Contiguous);
  const std::optional<Tensor> grad = a.grad_states_n[i - 1];
  return grad && grad->defined() ? grad->clone(at::MemoryFormat::Contiguous) : at::zeros({layer.D, layer.B, layer.H}, x.options());
}

template <class Cell, class T>
Tensors backward_gradients(const Layer& layer, const Tensor& x, at::TensorList weights, at::TensorList reserve,
                           const BackwardArguments& a) {
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
  const Tensor rows = want_x ? x.to(backward.kType).contiguous().view({layer.rows, layer.I}) : Tensor();
  for (int64_t i = 0; i < layer.D * per_direction; ++i)
    if (needs(first_weight + i)) result.push_back(backward.grad_weight(i / per_direction, i % per_direction, rows));
  for (Tensor& grad : result) grad = grad.to(layer.dtype);
  return result;
}

inline Tensors layer_backward_cpu(std::string_view cell, const std::optional<Tensor>& grad_output,
                                  const c10::List<std::optional<Tensor>>& grad_states_n, const Tensor& x,
                                  const std::optional<Tensor>& batch_sizes, at::TensorList weights, bool bidirectional,
                                  at::TensorList reserve, const c10::List<bool>& needs) {
  PlainDispatch guard;
  const Layer layer = check_layer("rnnfast::layer_backward", cell, x, batch_sizes, weights, bidirectional);
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
