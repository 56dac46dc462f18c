// One layer forward: allocates, packs, and alternates the projection of a chunk of steps with the
// time loop over it.
#pragma once

#include <ATen/ops/empty.h>

#include "cpu/products.h"

namespace rnnfast {

template <class Cell, class T>
struct LayerForward {
  const Layer& layer;
  const Plan plan;
  Tensors weights, states;
  Tensor x, output;
  Tensors states_n, reserve;
  Scratch<T> buffers, packed, no_gates;
  Projection<T> x_gates[2], h_gates[2];
  ForwardDirection<T> directions[2];
  Panels<T> panels;

  LayerForward(const Layer& l, const Tensor& input, at::TensorList initial,
               at::TensorList all_weights, bool train)
      : layer(l),
        plan(plan_for<T>(l)),
        panels{l.H, l.H, Cell::kGates, Cell::kGates > 1 ? 1 : plan.group} {
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
    if (plan.packed) packed = Scratch<T>(layer.D * panels.size());
  }

  const Tensor& weight(int64_t d, int64_t i) const {
    return weights[d * layer.weights_per_direction() + i];
  }

  void prepare(int64_t d) {
    const int64_t B = layer.B, H = layer.H, stride = padded<T>(H);
    T* buffer = buffers.data() + d * (Cell::kStates + 1) * B * stride;
    ForwardDirection<T>& f = directions[d] = {};
    f.walk = layer.walk(d), f.hidden = H, f.state_stride = stride;
    f.h[0] = buffer, f.h[1] = buffer + B * stride;
    if (Cell::kStates > 1) f.c = buffer + 2 * B * stride;
    f.output = output.mutable_data_ptr<T>() + d * H, f.output_stride = layer.D * H;
    if (layer.has_biases) f.b_hh = weight(d, 3).template const_data_ptr<T>();
    for (int k = 0; k < Cell::kStates; ++k) {
      f.states_n[k] = states_n[k].template mutable_data_ptr<T>() + d * B * H;
      if (!reserve.empty())
        f.timelines[k] = reserve[k].template mutable_data_ptr<T>() + d * (layer.rows + B) * H;
      fill_initial(f, k, d);
    }
    if (Cell::kReserve && !reserve.empty())
      f.gates = reserve[Cell::kStates].template mutable_data_ptr<T>() +
                d * layer.rows * Cell::kReserve * H;
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
      T* dst = packed.data() + d * panels.size();
      const T* src = w_hh.template const_data_ptr<T>();
      parallel_for(w_hh.numel() < 32768 ? 1 : plan.threads, panels.count(), [&](int64_t panel) {
        pack_forward(src, panels, panel, dst + panels.offset(panel));
      });
      f.w_hh = dst;
      return;
    }
    if (states.empty()) {
      if (!no_gates.data()) no_gates = zero_scratch<T>(Cell::kGates * layer.H);
      f.h_gates = no_gates.data(), f.h_gates_stride = 0;
    } else {
      h_gates[d] = Projection<T>(w_hh, {}, layer.B, plan.threads);
      f.h_gates = h_gates[d](states[0], {d * layer.B, (d + 1) * layer.B});
      f.h_gates_stride = Cell::kGates * layer.H;
    }
  }

  // The rows of x that steps [begin, end) of a walk read.
  Range rows_of(const Walk& walk, int64_t begin, int64_t end) const {
    return walk.reverse ? Range{layer.offset[layer.T - end], layer.offset[layer.T - begin]}
                        : Range{layer.offset[begin], layer.offset[end]};
  }

  void run() {
    const int64_t most_rows = layer.offset[plan.chunk_steps];
    for (int64_t d = 0; d < layer.D; ++d) {
      prepare(d);
      x_gates[d] = Projection<T>(weight(d, 0), layer.has_biases ? weight(d, 2) : Tensor(),
                                 most_rows, plan.threads);
    }
    for (int64_t begin = 0; begin < layer.T; begin += plan.chunk_steps) {
      const int64_t end = std::min(begin + plan.chunk_steps, layer.T);
      for (int64_t d = 0; d < layer.D; ++d) {
        const Range rows = rows_of(directions[d].walk, begin, end);
        directions[d].x_gates = x_gates[d](x, rows), directions[d].x_gates_row = rows.begin;
      }
      run_teams(plan, static_cast<int>(layer.D), [&](int d, Member member) {
        forward_steps<Cell>(directions[d], panels, {begin, end}, member);
      });
    }
  }
};

}  // namespace rnnfast
