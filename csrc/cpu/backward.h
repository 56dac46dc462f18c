// One layer backward: allocates the gradients that are wanted and hands each direction to its team.
#pragma once

#include <ATen/core/List.h>

#include "cpu/driver.h"
#include "cpu/steps_backward.h"

namespace rnnfast::cpu {

// S: what is multiplied; the gradients are T.
template <class Cell, class S>
struct LayerBackward {
  using T = Compute<S>;
  const Layer& layer;
  const BackwardArguments& arguments;
  const Plan plan;
  const Tensors reserve;
  Tensors weights, grad_weights;  // grad_weights: undefined where nobody wants them
  Tensor x, grad_output, grad_states, grad_x;
  Scratch<S> carry, packed, gate_gradients, copies;
  BackwardDirection<S> directions[2];
  Panels<S> h_panels, x_panels;

  static constexpr int64_t kGates = Cell::kGates, kFirstWeight = 1 + Cell::kStates;

  LayerBackward(const Layer& l, const Tensor& input, at::TensorList all_weights,
                at::TensorList kept, const BackwardArguments& a)
      : layer(l),
        arguments(a),
        plan(plan_for<S>(l)),
        reserve(kept.vec()),
        h_panels{l.H, kGates * l.H, 1, plan.group},
        x_panels{l.I, kGates * l.H, 1, kMaxVectors} {
    const at::ScalarType dtype = reserve[0].scalar_type();
    for (const Tensor& w : all_weights) weights.push_back(operand<S>(w));
    for (const auto i : c10::irange(weights.size()))
      grad_weights.push_back(a.needs[kFirstWeight + i] ? empty(weights[i].sizes(), dtype)
                                                       : Tensor());
    x = operand<S>(input);
    if (a.grad_output.defined()) grad_output = operand<T>(a.grad_output);
    grad_states = zeros<T>({layer.D, Cell::kStates, layer.B, padded<T>(layer.H)}, dtype);
    if (a.needs[0]) grad_x = empty({layer.D, layer.rows, layer.I}, dtype);
    carry = zero_scratch<S>(layer.D * 2 * layer.B * gates_stride());
    packed = Scratch<S>(layer.D * packed_size());
    gate_gradients = Scratch<S>(layer.D * chunk_rows() * (gates_stride() + h_gates_stride()));
    copies = Scratch<S>(layer.D * (copied_x() + copied_h()));
  }

  int64_t chunk_rows() const { return layer.offset[plan.grad_chunk_steps]; }
  int64_t gates_stride() const { return padded<S>(kGates * layer.H); }
  int64_t h_gates_stride() const {
    return Cell::kSharedGates < kGates ? padded<S>((kGates - Cell::kSharedGates) * layer.H) : 0;
  }
  bool want_h_0() const { return arguments.needs[1]; }
  bool pack_w_hh() const { return layer.T > 1 || want_h_0(); }
  int64_t packed_size() const {
    return (pack_w_hh() ? h_panels.size() : 0) + (grad_x.defined() ? x_panels.size() : 0);
  }
  // Numbers of a direction's copies of the rows of a chunk, see BackwardDirection.
  int64_t copied_x() const { return kInPairs<S> ? copied(layer.I) : 0; }
  int64_t copied_h() const { return kInPairs<S> || !layer.uniform ? copied(layer.H) : 0; }
  int64_t copied(int64_t columns) const {
    if constexpr (kInPairs<S>) return PairPanels<S>::size(chunk_rows(), columns);
    return chunk_rows() * whole_registers<S>(columns);
  }

  // The gradient of weight i of a direction, or null.
  T* grad_weight(int64_t d, int64_t i) const {
    const int64_t per_direction = layer.weights_per_direction();
    if (i >= per_direction) return nullptr;
    const Tensor& grad = grad_weights[d * per_direction + i];
    return grad.defined() ? grad.template mutable_data_ptr<T>() : nullptr;
  }

  bool began_with_zeros(const BackwardDirection<S>& b) const {
    const T* h_0 = b.timelines[0] + b.walk.initial(0) * layer.H;
    return layer.T == 1 && std::all_of(h_0, h_0 + layer.B * layer.H, [](T h) { return h == T(0); });
  }

  void set_gradients(BackwardDirection<S>& b, int64_t d) {
    b.grad_w_ih = grad_weight(d, 0), b.grad_w_hh = grad_weight(d, 1);
    b.grad_b_ih = grad_weight(d, 2), b.grad_b_hh = grad_weight(d, 3);
    b.began_with_zeros = began_with_zeros(b);
    if (grad_x.defined()) b.grad_x = grad_x.mutable_data_ptr<T>() + d * layer.rows * layer.I;
    b.want_h_0 = want_h_0();
  }

  void set_buffers(BackwardDirection<S>& b, int64_t d) {
    const int64_t B = layer.B, stride = gates_stride();
    for (int parity = 0; parity < 2; ++parity)
      b.carry[parity] = carry.data() + (d * 2 + parity) * B * stride;
    b.gates_stride = stride, b.h_gates_stride = h_gates_stride();
    b.grad_x_gates = gate_gradients.data() + d * chunk_rows() * (stride + b.h_gates_stride);
    b.grad_h_gates = b.grad_x_gates + chunk_rows() * stride;
    S* const copy = copies.data() + d * (copied_x() + copied_h());
    if (copied_x()) b.x_rows = copy;
    if (copied_h()) b.h_rows = copy + copied_x();
    S* panels = packed.data() + d * packed_size();
    if (pack_w_hh()) b.w_hh.packed = panels, panels += h_panels.size();
    if (grad_x.defined()) b.w_ih.packed = panels;
  }

  BackwardDirection<S> direction(int64_t d) {
    const int64_t B = layer.B, H = layer.H;
    BackwardDirection<S> b{};
    b.walk = layer.walk(d), b.hidden = H, b.input = layer.I, b.state_stride = padded<T>(H);
    const auto plain = [&](int i) {
      return const_data<S>(weights[d * layer.weights_per_direction() + i]);
    };
    b.w_ih = {x_panels, plain(0), nullptr}, b.w_hh = {h_panels, plain(1), nullptr};
    b.x = const_data<S>(x);
    if (grad_output.defined()) b.grad_output = grad_output.const_data_ptr<T>() + d * H;
    b.grad_output_stride = layer.D * H;
    for (int k = 0; k < Cell::kStates; ++k) {
      b.timelines[k] = reserve[k].template const_data_ptr<T>() + d * (layer.rows + B) * H;
      b.grad_states[k] =
          grad_states.mutable_data_ptr<T>() + (d * Cell::kStates + k) * B * b.state_stride;
      const std::optional<Tensor> given = arguments.grad_states_n[k];
      if (!given || !given->defined()) continue;
      const Tensor grad = operand<T>(given->select(0, d));
      copy_rows(grad.const_data_ptr<T>(), H, b.grad_states[k], b.state_stride, B, H);
    }
    if (Cell::kReserve)
      b.gates =
          reserve[Cell::kStates].template const_data_ptr<T>() + d * layer.rows * Cell::kReserve * H;
    set_buffers(b, d);
    set_gradients(b, d);
    return b;
  }

  void run() {
    for (int64_t d = 0; d < layer.D; ++d) directions[d] = direction(d);
    run_teams(plan, static_cast<int>(layer.D), [&](int d, const Member& member) {
      backward_direction<Cell>(directions[d], plan.grad_chunk_steps, member);
    });
  }

  // The gradients that are wanted, in the order of `needs`.
  Tensors results() const {
    Tensors result;
    if (grad_x.defined())
      result.push_back(
          (layer.D == 1 ? grad_x[0] : grad_x[0].add_(grad_x[1])).view(layer.shape(layer.I)));
    for (int k = 0; k < Cell::kStates; ++k)
      if (arguments.needs[1 + k])
        result.push_back(grad_states.select(1, k).narrow(2, 0, layer.H).contiguous());
    for (const Tensor& grad : grad_weights)
      if (grad.defined()) result.push_back(grad);
    return result;
  }
};

}  // namespace rnnfast::cpu
