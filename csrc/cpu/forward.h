// One layer forward: allocates, and hands each direction to its team.
#pragma once

#include "cpu/buffers.h"

namespace rnnfast {

// S: what the tensors are stored as, or widened to.
template <class Cell, class S>
struct LayerForward {
  using T = Compute<S>;
  const Layer& layer;
  const Plan plan;
  Tensors weights, states;
  Tensor x, output;
  Tensors states_n, reserve;
  Scratch<T> buffers, x_gates;
  Scratch<S> packed, operands;
  ForwardDirection<S> directions[2];
  Panels<S> x_panels, h_panels;

  static constexpr int kGates = Cell::kGates;
  static constexpr bool kCopyH = !std::is_same_v<S, T>;  // h, kept as T, is multiplied as S

  LayerForward(const Layer& l, const Tensor& input, at::TensorList initial,
               at::TensorList all_weights, bool train)
      : layer(l),
        plan(plan_for<T>(l)),
        x_panels{l.H, l.I, kGates, kGates > 1 ? 1 : plan.group},
        h_panels{l.H, l.H, kGates, kGates > 1 ? 1 : plan.group} {
    x = operand<S>(input);
    for (const Tensor& w : all_weights) weights.push_back(operand<S>(w));
    for (const Tensor& s : initial) states.push_back(operand<S>(s));
    const at::ScalarType dtype = x.scalar_type();
    output = empty(layer.shape(layer.D * layer.H), dtype);
    for (int k = 0; k < Cell::kStates; ++k)
      states_n.push_back(empty({layer.D, layer.B, layer.H}, dtype));
    if (train)
      for (const auto& sizes : reserve_sizes(layer)) reserve.push_back(empty(sizes, dtype));
    buffers = zero_scratch<T>(layer.D * (Cell::kStates + 1) * layer.B * padded<T>(layer.H));
    if (kCopyH) operands = zero_scratch<S>(layer.D * 2 * layer.B * padded<T>(layer.H));
    packed = Scratch<S>(layer.D * packed_size());
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

  ForwardDirection<S> direction(int64_t d) {
    const int64_t B = layer.B, H = layer.H, stride = padded<T>(H);
    T* buffer = buffers.data() + d * (Cell::kStates + 1) * B * stride;
    ForwardDirection<S> f{};
    f.walk = layer.walk(d), f.hidden = H, f.input = layer.I;
    f.x = const_data<S>(x);
    S* panels = packed.data() + d * packed_size();
    f.w_ih = {x_panels, const_data<S>(weight(d, 0)), plan.packed ? panels : nullptr};
    f.w_hh = {h_panels, const_data<S>(weight(d, 1)),
              pack_w_hh() ? panels + x_panels.size() : nullptr};
    if (layer.has_biases) {
      f.b_ih = const_data<S>(weight(d, 2));
      f.b_hh = const_data<S>(weight(d, 3));
    }
    f.starts_with_zeros = starts_with_zeros();
    f.x_gates = x_gates.data() + d * chunk_rows() * x_gates_stride();
    f.x_gates_stride = x_gates_stride();
    f.state_stride = stride;
    for (int parity = 0; parity < 2; ++parity) {
      f.h[parity] = buffer + parity * B * stride;
      if constexpr (kCopyH) {
        f.h_operand[parity] = operands.data() + (d * 2 + parity) * B * stride;
      } else {
        f.h_operand[parity] = f.h[parity];
      }
    }
    if (Cell::kStates > 1) f.c = buffer + 2 * B * stride;
    f.output = mutable_data<S>(output) + d * H, f.output_stride = layer.D * H;
    for (int k = 0; k < Cell::kStates; ++k) {
      f.states_n[k] = mutable_data<S>(states_n[k]) + d * B * H;
      if (!reserve.empty()) f.timelines[k] = mutable_data<T>(reserve[k]) + d * (layer.rows + B) * H;
      fill_initial(f, k, d);
    }
    if (Cell::kReserve && !reserve.empty())
      f.gates = mutable_data<T>(reserve[Cell::kStates]) + d * layer.rows * Cell::kReserve * H;
    return f;
  }

  // h goes into both of its buffers: rows that come alive late find it in whichever is read then.
  void fill_initial(ForwardDirection<S>& f, int k, int64_t d) {
    const int64_t B = layer.B, H = layer.H;
    T* timeline = f.timelines[k] ? f.timelines[k] + f.walk.initial(0) * H : nullptr;
    if (states.empty()) {
      if (timeline) std::fill_n(timeline, B * H, T(0));
      return;
    }
    const S* initial = const_data<S>(states[k]) + d * B * H;
    if (timeline) std::copy_n(initial, B * H, timeline);
    if (k == 1) return copy_rows(initial, H, f.c, f.state_stride, B, H);
    for (int parity = 0; parity < 2; ++parity) {
      copy_rows(initial, H, f.h[parity], f.state_stride, B, H);
      if (kCopyH) copy_rows(initial, H, f.h_operand[parity], f.state_stride, B, H);
    }
  }

  void run() {
    for (int64_t d = 0; d < layer.D; ++d) directions[d] = direction(d);
    run_teams(plan, static_cast<int>(layer.D), [&](int d, const Member& member) {
      forward_direction<Cell>(directions[d], plan.chunk_steps, member);
    });
  }
};

}  // namespace rnnfast
