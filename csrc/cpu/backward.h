// One layer backward: the time loop leaves the gate gradients of every step, large products turn
// them into those of x and of the weights.
#pragma once

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include "cpu/products.h"

namespace rnnfast {

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

  static constexpr int kGates = Cell::kGates;

  LayerBackward(const Layer& l, at::TensorList kept, at::TensorList all_weights, const Tensor& grad,
                bool h_0, bool hh)
      : layer(l),
        plan(plan_for<T>(l)),
        reserve(kept.vec()),
        panels{l.H, kGates * l.H, 1, plan.group},
        want_h_0(h_0),
        want_hh(hh) {
    for (const Tensor& w : all_weights) weights.push_back(operand<T>(w));
    if (grad.defined()) grad_output = operand<T>(grad);
    const auto options = reserve[0].options();
    const int64_t B = layer.B, columns = kGates * layer.H;
    grad_states = zeros<T>({layer.D, Cell::kStates, B, padded<T>(layer.H)}, options);
    carry = zeros<T>({layer.D, 2, B, padded<T>(columns)}, options);
    grad_x_gates = at::empty({layer.D, layer.rows, columns}, options);
    const bool own_h_gates = !Cell::kSameGradients && (want_hh || want_h_0);
    grad_h_gates = own_h_gates ? at::empty_like(grad_x_gates) : grad_x_gates;
    if (plan.packed) packed = at::empty({layer.D, panels.size()}, options);
  }

  const Tensor& weight(int64_t d, int64_t i) const {
    return weights[d * layer.weights_per_direction() + i];
  }

  void prepare(int64_t d, const c10::List<std::optional<Tensor>>& grad_states_n) {
    const int64_t B = layer.B, H = layer.H, columns = kGates * H;
    BackwardDirection<T>& b = directions[d] = {};
    b.walk = layer.walk(d), b.hidden = H, b.state_stride = padded<T>(H),
    b.carry_stride = padded<T>(columns);
    if (grad_output.defined()) b.grad_output = grad_output.const_data_ptr<T>() + d * H;
    b.grad_output_stride = layer.D * H;
    for (int k = 0; k < Cell::kStates; ++k) {
      b.timelines[k] = reserve[k].template const_data_ptr<T>() + d * (layer.rows + B) * H;
      b.grad_states[k] =
          grad_states.mutable_data_ptr<T>() + (d * Cell::kStates + k) * B * b.state_stride;
      const std::optional<Tensor> given = grad_states_n[k];
      if (!given || !given->defined()) continue;
      const Tensor grad = operand<T>(given->select(0, d));
      copy_rows(grad.const_data_ptr<T>(), H, b.grad_states[k], b.state_stride, B, H);
    }
    if (Cell::kReserve)
      b.gates =
          reserve[Cell::kStates].template const_data_ptr<T>() + d * layer.rows * Cell::kReserve * H;
    for (int parity = 0; parity < 2; ++parity)
      b.carry[parity] = carry.mutable_data_ptr<T>() + (d * 2 + parity) * B * b.carry_stride;
    b.grad_x_gates = grad_x_gates.mutable_data_ptr<T>() + d * layer.rows * columns;
    if (!grad_h_gates.is_same(grad_x_gates))
      b.grad_h_gates = grad_h_gates.mutable_data_ptr<T>() + d * layer.rows * columns;
    b.want_h_0 = want_h_0 && plan.packed;
    if (plan.packed) pack(b, d);
  }

  void pack(BackwardDirection<T>& b, int64_t d) {
    T* dst = packed.mutable_data_ptr<T>() + d * panels.size();
    const T* src = weight(d, 1).template const_data_ptr<T>();
    parallel_for(
        weight(d, 1).numel() < 32768 ? 1 : plan.threads, panels.count(),
        [&](int64_t panel) { pack_backward(src, panels, panel, dst + panels.offset(panel)); });
    b.w_hh = dst;
  }

  void run(const c10::List<std::optional<Tensor>>& grad_states_n) {
    for (int64_t d = 0; d < layer.D; ++d) prepare(d, grad_states_n);
    run_teams(plan, static_cast<int>(layer.D),
              [&](int d, Member member) { backward_steps<Cell>(directions[d], panels, member); });
  }

  Tensor grad_x() const {
    Tensor sum;
    for (int64_t d = 0; d < layer.D; ++d) {
      Tensor grad = times(grad_x_gates[d], weight(d, 0));
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

  // The state that every row found: in the timeline it lies B rows before the row's own, unless the
  // batch shrinks.
  Tensor h_before(int64_t d) const {
    const Tensor timeline = reserve[0][d];
    if (layer.uniform) return timeline.narrow(0, d ? layer.B : 0, layer.rows);
    Tensor result = at::empty({layer.rows, layer.H}, timeline.options());
    const T* src = timeline.const_data_ptr<T>();
    T* dst = result.mutable_data_ptr<T>();
    for (int64_t t = 0; t < layer.T; ++t)
      for (int64_t b = 0; b < layer.batch[t]; ++b, dst += layer.H)
        std::copy_n(src + layer.walk(d).before(t, b) * layer.H, layer.H, dst);
    return result;
  }

  // Where a sequence of one step began with zeros, no product is needed to know the gradient of
  // w_hh.
  bool began_with_zeros(int64_t d) const {
    const T* h_0 = directions[d].timelines[0] + directions[d].walk.initial(0) * layer.H;
    return layer.T == 1 && std::all_of(h_0, h_0 + layer.B * layer.H, [](T h) { return h == T(0); });
  }

  Tensor product_over_rows(const Tensor& g, const Tensor& rows) const {
    return transposed_times<T>(g, rows, sum_block(layer.B, layer.T), plan.threads);
  }

  Tensor grad_w_hh(int64_t d) const {
    if (began_with_zeros(d)) return zeros<T>({kGates * layer.H, layer.H}, grad_x_gates.options());
    return product_over_rows(grad_h_gates[d], h_before(d));
  }

  // The gradients of all weights of a direction that `needs(i)` names, in their order.
  template <class Needs>
  void grad_weights(int64_t d, const Needs& needs, const Tensor& x, Tensors& result) const {
    const Tensor x_gates = grad_x_gates[d];
    if (needs(0)) result.push_back(product_over_rows(x_gates, x));
    if (needs(1)) result.push_back(grad_w_hh(d));
    if (!layer.has_biases) return;
    const bool same = grad_h_gates.is_same(grad_x_gates);
    if (needs(2)) result.push_back(at::sum(x_gates, 0));
    if (needs(3))
      result.push_back(same && needs(2) ? result.back().clone() : at::sum(grad_h_gates[d], 0));
  }
};

}  // namespace rnnfast
