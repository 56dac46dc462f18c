// One layer backward: the recurrence leaves the gate gradients of every step, large products turn
// them into those of x and of the weights.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>

#include "cells.h"
#include "cuda/driver.h"
#include "cuda/persistent_driver.h"

namespace rnnfast::cuda {

// Whether the gradients of the input-side gates are those of the hidden-side ones too.
inline bool same_gradients(const CellFacts& cell) {
  bool same = false;
  dispatch_cell(cell.name,
                [&](auto c) { same = decltype(c)::kSharedGates == decltype(c)::kGates; });
  return same;
}

class LayerBackward {
 public:
  // hh: somebody asks for gradients of the hidden side's weights.
  LayerBackward(const Layer& layer, const Context& context, at::TensorList weights,
                at::TensorList reserve, const BackwardArguments& arguments, bool hh)
      : layer_(layer),
        context_(context),
        request_(request_of(layer, true, context)),
        steps_(layer, context.stream),
        reserve_(reserve.vec()),
        same_(same_gradients(layer.cell)),
        want_states_0_{arguments.needs[1], layer.cell.states > 1 && arguments.needs[2]} {
    // Kernels read what a unit keeps at once.
    if (layer.cell.reserve &&
        reinterpret_cast<uintptr_t>(reserve_.back().const_data_ptr()) % 16 != 0)
      reserve_.back() = reserve_.back().clone();
    for (const Tensor& w : weights) weights_.push_back(w.contiguous());
    if (arguments.grad_output.defined()) grad_output_ = arguments.grad_output.contiguous();
    for (const std::optional<Tensor> grad : arguments.grad_states_n)
      grad_states_n_.push_back(grad && grad->defined() ? grad->contiguous() : Tensor());
    const auto gates = [&] {
      return memory_of_rows(layer, {layer.D, layer.rows, columns()}, reserve[0].options());
    };
    grad_x_gates_ = gates();
    grad_h_gates_ = same_ || !hh ? grad_x_gates_ : gates();
  }

  void run() {
    BackwardArgs<void> whole = arguments();
    Tensors grads(layer_.cell.states);
    for (int k = 0; k < layer_.cell.states; ++k) {
      if (!want_states_0_[k]) continue;
      grads[k] = at::empty({layer_.D, layer_.B, layer_.H}, grad_x_gates_.options());
      whole.grad_states_0[k] = grads[k].mutable_data_ptr();
    }
    grad_states_0_ = grads;
    if (!run_persistent(layer_, request_, weights_, steps_, whole, context_.stream))
      run_steps(whole);
  }

  Tensor grad_x() const {
    const Tensor result = at::empty(layer_.shape(layer_.I), grad_x_gates_.options());
    for (int64_t d = 0; d < layer_.D && result.numel() > 0; ++d)
      multiply(result.mutable_data_ptr(), Matrix::of(grad_x_gates_, d), false,
               Matrix::of(weight(d, 0)), false, d == 0 ? 0 : 1, request_.tf32);
    return result;
  }

  const Tensor& grad_state(int64_t k) const { return grad_states_0_[k]; }

  // The gradients of all weights that `needs(direction, i)` names, in their order.
  template <class Needs>
  void grad_weights(const Needs& needs, const Tensor& x, Tensors& result) {
    ColumnSums<void, void> sums{};
    for (int64_t d = 0; d < layer_.D; ++d) {
      if (needs(d, 0))
        result.push_back(product_over_rows(
            grad_x_gates_, d, {x.const_data_ptr(), layer_.rows, layer_.I, layer_.dtype}));
      if (needs(d, 1)) {
        Tensor memory;
        const Matrix before = h_before(d, memory);
        result.push_back(product_over_rows(grad_h_gates_, d, before));
      }
      if (!layer_.has_biases) continue;
      const Tensor b_ih = bias_like(needs(d, 2)), b_hh = bias_like(needs(d, 3));
      if (same_) {
        add_sums(sums, grad_x_gates_, d, b_ih, b_hh);
      } else {
        add_sums(sums, grad_x_gates_, d, b_ih, {});
        add_sums(sums, grad_h_gates_, d, b_hh, {});
      }
      for (const Tensor& bias : {b_ih, b_hh})
        if (bias.defined()) result.push_back(bias);
    }
    sum_columns(sums);
  }

 private:
  const Layer& layer_;
  const Context& context_;
  const Request request_;
  DeviceSteps steps_;
  Tensors reserve_;
  const bool same_;
  const bool want_states_0_[kMaxStates];
  Tensors weights_;
  Tensor grad_output_;
  Tensors grad_states_n_;               // undefined where zero
  Tensor grad_x_gates_, grad_h_gates_;  // [D, rows, G*H]
  Tensors grad_states_0_;

  int64_t columns() const { return layer_.cell.gates * layer_.H; }
  const Tensor& weight(int64_t d, int64_t i) const {
    return weights_[d * layer_.weights_per_direction() + i];
  }
  // Whether there is a matrix of hidden-side gate gradients for all rows.
  bool own_h_gates() const { return !grad_h_gates_.is_same(grad_x_gates_); }

  BackwardArgs<void> arguments() const {
    BackwardArgs<void> a{};
    a.steps = {layer_.T, layer_.rows, layer_.B, nullptr, nullptr}, a.hidden = layer_.H;
    a.begins = begins_of(layer_);
    if (grad_output_.defined()) a.grad_output = grad_output_.const_data_ptr();
    for (int k = 0; k < layer_.cell.states; ++k) {
      if (grad_states_n_[k].defined()) a.grad_states_n[k] = grad_states_n_[k].const_data_ptr();
      a.timelines[k] = reserve_[k].const_data_ptr();
    }
    if (layer_.cell.reserve) a.gates = reserve_[layer_.cell.states].const_data_ptr();
    a.grad_x_gates = grad_x_gates_.mutable_data_ptr();
    if (own_h_gates()) a.grad_h_gates = grad_h_gates_.mutable_data_ptr();
    return a;
  }

  // ---- step by step ----

  // Of the states between steps; that of h_0 is put together there too.
  Tensors running_gradients() const {
    Tensors result(layer_.cell.states);
    const at::ScalarType type = compute_type(layer_.dtype);
    for (int k = 0; k < layer_.cell.states; ++k) {
      const bool of_h_0 = k == 0 && want_states_0_[0];
      if (of_h_0 && type == layer_.dtype) {
        result[k] = grad_states_0_[0];
      } else if (of_h_0 || layer_.T > 1) {
        result[k] = at::empty({layer_.D, layer_.B, layer_.H}, grad_x_gates_.options().dtype(type));
      }
    }
    return result;
  }

  // The hidden-side gate gradients of one step, of all directions: those of the second lie `stride`
  // elements behind those of the first.
  struct StepGates {
    char* data;
    int64_t stride;
  };
  // `one`: holds those of one step only, where nobody wants to keep them.
  StepGates step_gates(const Tensor& one, const StepRows (&rows)[2]) const {
    if (one.defined()) return {address(one, 0), layer_.B * columns()};
    return {address(grad_h_gates_, rows[0].row * columns()),
            (layer_.rows + rows[1].row - rows[0].row) * columns()};
  }

  void run_steps(const BackwardArgs<void>& arguments) {
    const Layer layer = known_here(layer_);
    const Tensors running = running_gradients();
    const bool multiplies = layer_.T > 1 || want_states_0_[0];
    const Tensor w_hh = multiplies ? stacked(layer_, weights_) : Tensor();
    const auto size = static_cast<int64_t>(c10::elementSize(layer_.dtype));
    Tensor one;
    if (!same_ && !own_h_gates() && multiplies)
      one = at::empty({layer_.D, layer_.B, columns()}, grad_x_gates_.options());
    StepBackward<void, void> step{arguments, {}, {}, {}, {}, {}};
    Product product = multiplies ? product_with(w_hh, running[0]) : Product{};
    PreparedProducts products;
    for (int k = 0; k < layer_.cell.states; ++k)
      if (running[k].defined()) step.grad_states[k] = running[k].mutable_data_ptr();
    for (int64_t i = layer_.T - 1; i >= 0; --i) {
      for (int64_t d = 0; d < layer_.D; ++d) {
        const Walk walk = layer.walk(d);
        step.rows[d] = StepRows::of(walk, walk.time(i));
        step.begins[d] = begins_before(layer, walk, i);
        step.ends[d] = begins_before(layer, walk, i + 1);
      }
      const StepGates gates = step_gates(one, step.rows);
      for (int64_t d = 0; d < layer_.D && (own_h_gates() || one.defined()); ++d)
        step.grad_h_gates[d] = gates.data + d * gates.stride * size;
      check(launch_step_backward(layer_.cell.name, request_.type, step, static_cast<int>(layer_.D),
                                 context_.stream));
      product.a = {gates.data, gates.stride, false};
      if (i > 0 || want_states_0_[0]) multiply_directions(products, product, layer_.D, step.rows);
    }
    if (want_states_0_[0] && !running[0].is_same(grad_states_0_[0]))
      grad_states_0_[0].copy_(running[0]);
  }

  // What a step sends back through w_hh to the h before it, to which a cell that reads h has sent
  // something already. The gate gradients are still to be named.
  Product product_with(const Tensor& w_hh, const Tensor& grad_h) const {
    const int64_t B = layer_.B, H = layer_.H;
    Product product{};
    product.columns = H, product.depth = columns(), product.type = layer_.dtype;
    product.b = {w_hh.const_data_ptr(), columns() * H, false};
    product.out = grad_h.mutable_data_ptr(), product.out_stride = B * H;
    product.out_type = grad_h.scalar_type(), product.tf32 = request_.tf32;
    product.beta = layer_.cell.reads_h ? 1 : 0;
    return product;
  }

  // ---- gradients of the weights ----

  // g [D, rows, N] of a direction, transposed, times x [rows, K].
  Tensor product_over_rows(const Tensor& g, int64_t d, const Matrix& x) const {
    const Tensor result = at::empty({columns(), x.columns}, g.options());
    if (x.columns > 0)
      multiply(result.mutable_data_ptr(), Matrix::of(g, d), true, x, false, 0, request_.tf32);
    return result;
  }

  // The h that every row found [rows, H]: in the timeline it lies B rows before the row's own,
  // unless the batch shrinks or rows begin anew. Then it is put together in `memory`.
  Matrix h_before(int64_t d, Tensor& memory) {
    const Tensor& timelines = reserve_[0];
    const int64_t timeline = d * (layer_.rows + layer_.B) * layer_.H;
    Matrix result{nullptr, layer_.rows, layer_.H, layer_.dtype};
    if (layer_.uniform && !layer_.begins.defined()) {
      result.data = const_address(timelines, timeline + (d ? layer_.B : 0) * layer_.H);
      return result;
    }
    memory = memory_of_rows(layer_, {layer_.rows, layer_.H}, timelines.options());
    check(launch_states_before(request_.type,
                               {{steps_.get(memory.options()), d == 1},
                                layer_.H,
                                const_address(timelines, timeline),
                                memory.mutable_data_ptr(),
                                begins_of(layer_)},
                               context_.stream));
    result.data = memory.const_data_ptr();
    return result;
  }

  Tensor bias_like(bool wanted) const {
    return wanted ? at::empty({columns()}, grad_x_gates_.options()) : Tensor();
  }

  // The sums of all rows of `matrix` [D, rows, columns] in a direction, into those of the two that
  // are defined.
  void add_sums(ColumnSums<void, void>& sums, const Tensor& matrix, int64_t d, const Tensor& first,
                const Tensor& second) const {
    if (!first.defined() && !second.defined()) return;
    auto& own = sums.matrices[sums.count++];
    own.rows = Matrix::of(matrix, d).data;
    if (first.defined()) own.sums[0] = first.mutable_data_ptr();
    if (second.defined()) own.sums[1] = second.mutable_data_ptr();
  }

  void sum_columns(ColumnSums<void, void>& sums) const {
    if (sums.count == 0) return;
    constexpr int64_t kMostParts = 256;  // enough for every processor, and few to add up
    const int64_t part_rows = std::max<int64_t>(32, (layer_.rows - 1) / kMostParts + 1),
                  parts = (layer_.rows - 1) / part_rows + 1;
    Tensor partial;
    if (parts > 1) {
      partial = at::empty({sums.count, parts, columns()},
                          weights_[0].options().dtype(compute_type(layer_.dtype)));
      sums.partial = partial.mutable_data_ptr();
    }
    sums.rows = layer_.rows, sums.columns = columns();
    sums.part_rows = part_rows, sums.parts = parts;
    check(launch_column_sums(request_.type, sums, context_.stream));
  }
};

}  // namespace rnnfast::cuda
