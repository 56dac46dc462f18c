// One layer forward: allocates, and hands each direction to its team.
#pragma once

#include <ATen/ops/empty.h>

#include "cpu/buffers.h"

namespace rnnfast {

template <class Cell, class T>
struct LayerForward {
  const Layer& layer;
  const Plan plan;
  Tensors weights, states;
  Tensor x, output;
  Tensors states_n, reserve;
  Scratch<T> buffers, packed, x_gates;
  ForwardDirection<T> directions[2];
  Panels<T> x_panels, h_panels;

  static constexpr int kGates = Cell::kGates;

  LayerForward(const Layer& l, const Tensor& input, at::TensorList initial,
               at::TensorList all_weights, bool train)
      : layer(l),
        plan(plan_for<T>(l)),
        x_panels{l.H, l.I, kGates, kGates > 1 ? 1 : plan.group},
        h_panels{l.H, l.H, kGates, kGates > 1 ? 1 : plan.group} {
    x = operand<T>(input);
    for (const Tensor& w : all_weights) weights.push_back(operand<T>(w));
    for (const Tensor& s : initial) states.push_back(operand<T>(s));
    const auto options = x.options();
    output = at::empty(layer.shape(layer.D * layer.H), options);
    for (int k = 0; k < Cell::kStates; ++k)
      states_n.push_back(at::empty({layer.D, layer.B, layer.H}, options));
    if (train)
      for (const auto& sizes : reserve_sizes(layer)) reserve.push_back(at::empty(sizes, options));
    buffers = zero_scratch<T>(layer.D * (Cell::kStates + 1) * layer.B * padded<T>(layer.H));
    packed = Scratch<T>(layer.D * packed_size());
    x_gates = Scratch<T>(layer.D * chunk_rows() * x_gates_stride());
  }

  const Tensor& weight(int64_t d, int64_t i) const {
    return weights[d * layer.weights_per_direction() + i];
  }
  bool starts_with_zeros() const { return states.empty(); }
  bool pack_w_hh() const { return plan.packed && (layer.T > 1 || !starts_with_zeros()); }
  int64_t packed_size() const {
    return (plan.packed ? x_panels.size() : 0) + (pack_w_hh() ? h_panels.size() : 0);
  }
  int64_t chunk_rows() const { return layer.offset[plan.chunk_steps]; }  // of the longest chunk
  int64_t x_gates_stride() const { return padded<T>(kGates * whole_registers<T>(layer.H)); }

  ForwardDirection<T> direction(int64_t d) {
    const int64_t B = layer.B, H = layer.H, stride = padded<T>(H);
    T* buffer = buffers.data() + d * (Cell::kStates + 1) * B * stride;
    ForwardDirection<T> f{};
    f.walk = layer.walk(d), f.hidden = H, f.input = layer.I;
    f.x = x.const_data_ptr<T>();
    T* panels = packed.data() + d * packed_size();
    f.w_ih = {x_panels, weight(d, 0).template const_data_ptr<T>(), plan.packed ? panels : nullptr};
    f.w_hh = {h_panels, weight(d, 1).template const_data_ptr<T>(),
              pack_w_hh() ? panels + x_panels.size() : nullptr};
    if (layer.has_biases) {
      f.b_ih = weight(d, 2).template const_data_ptr<T>();
      f.b_hh = weight(d, 3).template const_data_ptr<T>();
    }
    f.starts_with_zeros = starts_with_zeros();
    f.x_gates = x_gates.data() + d * chunk_rows() * x_gates_stride();
    f.x_gates_stride = x_gates_stride();
    f.state_stride = stride;
    f.h[0] = buffer, f.h[1] = buffer + B * stride;
    if (Cell::kStates > 1) f.c = buffer + 2 * B * stride;
    f.output = output.mutable_data_ptr<T>() + d * H, f.output_stride = layer.D * H;
    for (int k = 0; k < Cell::kStates; ++k) {
      f.states_n[k] = states_n[k].template mutable_data_ptr<T>() + d * B * H;
      if (!reserve.empty())
        f.timelines[k] = reserve[k].template mutable_data_ptr<T>() + d * (layer.rows + B) * H;
      fill_initial(f, k, d);
    }
    if (Cell::kReserve && !reserve.empty())
      f.gates = reserve[Cell::kStates].template mutable_data_ptr<T>() +
                d * layer.rows * Cell::kReserve * H;
    return f;
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

  void run() {
    for (int64_t d = 0; d < layer.D; ++d) directions[d] = direction(d);
    run_teams(plan, static_cast<int>(layer.D), [&](int d, const Member& member) {
      forward_direction<Cell>(directions[d], plan.chunk_steps, member);
    });
  }
};

}  // namespace rnnfast
