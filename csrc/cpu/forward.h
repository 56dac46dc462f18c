// One layer forward: allocates, and hands each direction to its team.
#pragma once

#include "cpu/driver.h"
#include "cpu/matrix.h"

namespace rnnfast::cpu {

// S: what is multiplied; N: what the other tensors are stored as, or widened to.
template <class Cell, class S, class N>
struct LayerForward {
  using T = Compute<S>;
  const Layer& layer;
  const Plan plan;
  Tensors weights, states;
  Tensor x, output;
  Tensors states_n, reserve;
  const at::TensorList given_weights;
  ForwardMatrix<S> matrices[2][2];  // by direction, w_ih and w_hh
  Scratch<T> state_memory, x_gates_memory;
  Scratch<S> operand_memory;
  ForwardDirection<S, N> directions[2];
  Panels<S> x_panels, h_panels;

  static constexpr int kGates = Cell::kGates;
  static constexpr bool kCopyH = !std::is_same_v<S, T>;  // h, kept as T, is multiplied as S

  LayerForward(const Layer& l, const Tensor& input, at::TensorList initial,
               at::TensorList all_weights, bool train)
      : layer(l),
        plan(plan_for<S>(l)),
        weights(all_weights.vec()),
        given_weights(all_weights),
        x_panels{l.H, l.I, kGates, kGates > 1 ? 1 : plan.group},
        h_panels{l.H, l.H, kGates, kGates > 1 ? 1 : plan.group} {
    x = operand<S>(input);
    for (const Tensor& s : initial) states.push_back(operand<N>(s));
    const at::ScalarType dtype = kScalarType<N>;
    output = empty(layer.shape(layer.D * layer.H), dtype);
    for (int k = 0; k < Cell::kStates; ++k)
      states_n.push_back(empty({layer.D, layer.B, layer.H}, dtype));
    if (train)
      for (const auto& sizes : reserve_sizes(layer))
        reserve.push_back(empty(sizes, kScalarType<T>));
    state_memory = Scratch<T>(layer.D * states_size<T>(Cell::kStates + 1));
    if (kCopyH) operand_memory = Scratch<S>(layer.D * states_size<S>(2));
    x_gates_memory = Scratch<T>(layer.D * x_gates_size());
  }

  int64_t index(int64_t d, int64_t i) const { return d * layer.weights_per_direction() + i; }
  template <class As>
  const As* weight(int64_t d, int64_t i) {
    Tensor& w = weights[index(d, i)];
    w = operand<As>(w);
    return const_data<As>(w);
  }
  // Matrix i of direction d.
  Weights<S> matrix(int64_t d, int64_t i, const Panels<S>& panels, bool packs) {
    return matrices[d][i].set(given_weights[index(d, i)], panels, packs,
                              [&] { return weight<S>(d, i); });
  }
  bool starts_with_zeros() const { return states.empty(); }
  int64_t chunk_rows() const { return layer.offset[plan.chunk_steps]; }  // of the longest chunk
  int64_t x_gates_size() const {
    return chunk_rows() * (kGates * whole_registers<T>(layer.H) + plan.threads * Vec<T>::kWidth);
  }
  // Of so many buffers [B, H] of numbers of one type, with gaps between the threads' parts.
  template <class As>
  int64_t states_size(int count) const {
    return count * layer.B * padded<As>(layer.H) + plan.threads * kGapBytes / int64_t{sizeof(As)};
  }

  ForwardDirection<S, N> direction(int64_t d) {
    const int64_t B = layer.B, H = layer.H;
    ForwardDirection<S, N> f{};
    f.walk = layer.walk(d), f.hidden = H, f.input = layer.I;
    f.x = const_data<S>(x);
    f.w_ih = matrix(d, 0, x_panels, plan.packed);
    f.w_hh = matrix(d, 1, h_panels, plan.packed && (layer.T > 1 || !starts_with_zeros()));
    if (layer.has_biases) f.b_ih = weight<N>(d, 2), f.b_hh = weight<N>(d, 3);
    f.starts_with_zeros = starts_with_zeros();
    f.chunk_rows = chunk_rows();
    f.state_stride = padded<T>(H), f.operand_stride = padded<S>(H);
    f.x_gates_memory = x_gates_memory.data() + d * x_gates_size();
    f.state_memory = state_memory.data() + d * states_size<T>(Cell::kStates + 1);
    if (kCopyH) f.operand_memory = operand_memory.data() + d * states_size<S>(2);
    f.output = mutable_data<N>(output) + d * H, f.output_stride = layer.D * H;
    for (int k = 0; k < Cell::kStates; ++k) {
      f.states_n[k] = mutable_data<N>(states_n[k]) + d * B * H;
      if (!reserve.empty()) f.timelines[k] = mutable_data<T>(reserve[k]) + d * (layer.rows + B) * H;
      if (!states.empty()) f.initial[k] = const_data<N>(states[k]) + d * B * H;
    }
    if (Cell::kReserve && !reserve.empty())
      f.gates = mutable_data<T>(reserve[Cell::kStates]) + d * layer.rows * Cell::kReserve * H;
    return f;
  }

  void run() {
    for (int64_t d = 0; d < layer.D; ++d) directions[d] = direction(d);
    run_teams(plan, static_cast<int>(layer.D), [&](int d, const Member& member) {
      forward_direction<Cell>(directions[d], plan.chunk_steps, member);
    });
    for (auto& of_direction : matrices)
      for (ForwardMatrix<S>& matrix : of_direction) matrix.keep_frozen();
  }
};

}  // namespace rnnfast::cpu
