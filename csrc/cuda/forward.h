// One layer forward: the projection of all rows at once, then the recurrence.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "cuda/driver.h"
#include "cuda/persistent_driver.h"
#include "cuda/single_driver.h"

namespace rnnfast::cuda {

class LayerForward {
 public:
  Tensor output;  // [rows, D*H]
  Tensors states_n, reserve;

  LayerForward(const Layer& layer, const Context& context, const Tensor& x, at::TensorList states,
               at::TensorList weights, bool train)
      : layer_(layer),
        context_(context),
        request_(request_of(layer, false, context)),
        x_(x.contiguous()) {
    for (const Tensor& w : weights) weights_.push_back(w.contiguous());
    for (const Tensor& s : states) states_.push_back(s.contiguous());
    const auto options = x.options();
    output = memory_of_rows(layer, {layer.rows, layer.D * layer.H}, options);
    for (int k = 0; k < layer.cell.states; ++k)
      states_n.push_back(at::empty({layer.D, layer.B, layer.H}, options));
    if (train)
      for (const auto& sizes : reserve_sizes(layer)) reserve.push_back(at::empty(sizes, options));
  }

  void run() {
    if (layer_.T == 1 && run_single(layer_, request_, x_, weights_, arguments(), context_.stream))
      return;
    project_inputs();
    DeviceSteps steps(layer_, context_.stream);
    if (!run_persistent(layer_, request_, weights_, steps, arguments(), context_.stream))
      run_steps();
  }

 private:
  const Layer& layer_;
  const Context& context_;
  const Request request_;
  const Tensor x_;
  Tensors weights_, states_;
  Tensor x_gates_;  // [D, rows, G*H]

  int64_t columns() const { return layer_.cell.gates * layer_.H; }
  const Tensor& weight(int64_t d, int64_t i) const {
    return weights_[d * layer_.weights_per_direction() + i];
  }

  void project_inputs() {
    x_gates_ = at::empty({layer_.D, layer_.rows, columns()}, x_.options());
    if (layer_.I == 0) {
      x_gates_.zero_();
      return;
    }
    const Matrix x{x_.const_data_ptr(), layer_.rows, layer_.I, x_.scalar_type()};
    // Over few inputs TF32 saves nothing, and cuDNN, too, leaves them in float32.
    constexpr int64_t kFewInputs = 64;
    const bool tf32 = request_.tf32 && layer_.I >= kFewInputs;
    for (int64_t d = 0; d < layer_.D; ++d)
      multiply(address(x_gates_, d * layer_.rows * columns()), x, false, Matrix::of(weight(d, 0)),
               true, 0, tf32);
  }

  ForwardArgs<void> arguments() const {
    ForwardArgs<void> a{};
    a.steps = {layer_.T, layer_.rows, layer_.B, nullptr, nullptr}, a.hidden = layer_.H;
    a.begins = begins_of(layer_);
    a.output = output.mutable_data_ptr();
    if (x_gates_.defined()) a.x_gates = x_gates_.const_data_ptr();
    for (int64_t d = 0; layer_.has_biases && d < layer_.D; ++d)
      a.b_ih[d] = weight(d, 2).const_data_ptr(), a.b_hh[d] = weight(d, 3).const_data_ptr();
    for (int k = 0; k < layer_.cell.states; ++k) {
      if (!states_.empty()) a.states_0[k] = states_[k].const_data_ptr();
      a.states_n[k] = states_n[k].mutable_data_ptr();
      if (!reserve.empty()) a.timelines[k] = reserve[k].mutable_data_ptr();
    }
    if (layer_.cell.reserve && !reserve.empty())
      a.gates = reserve[layer_.cell.states].mutable_data_ptr();
    return a;
  }

  // ---- step by step ----

  void fill_with_initial(const Tensor& state, int k) const {
    if (states_.empty()) {
      state.zero_();
    } else {
      state.copy_(states_[k]);
    }
  }

  // The running states, of which those of float32 and float64 become states_n where they stand. h
  // is undefined where the cell does not read it.
  Tensors running_states(at::ScalarType type) const {
    Tensors result(layer_.cell.states);
    for (int k = layer_.cell.reads_h ? 0 : 1; k < layer_.cell.states; ++k) {
      result[k] = states_n[k].scalar_type() == type
                      ? states_n[k]
                      : at::empty_like(states_n[k], states_n[k].options().dtype(type));
      fill_with_initial(result[k], k);
    }
    return result;
  }

  void fill_initial() const {
    for (int k = 0; k < layer_.cell.states && !reserve.empty(); ++k)
      for (int64_t d = 0; d < layer_.D; ++d) {
        const Tensor initial = reserve[k][d].narrow(0, layer_.walk(d).initial(0), layer_.B);
        if (states_.empty()) {
          initial.zero_();
        } else {
          initial.copy_(states_[k][d]);
        }
      }
  }

  void run_steps() const {
    const Layer layer = known_here(layer_);
    const at::ScalarType type = compute_type(layer_.dtype);
    fill_initial();
    const Tensors running = running_states(type);
    if (!running[0].is_same(states_n[0])) fill_with_initial(states_n[0], 0);  // for the products
    const Tensor w_hh = stacked(layer_, weights_);
    // Zero states need no product at their first step.
    const Tensor h_gates = at::zeros({layer_.D, layer_.B, columns()}, x_.options().dtype(type));
    StepForward<void, void> step{arguments(), {}, h_gates.const_data_ptr(), {}, nullptr, false, {}};
    for (int k = 0; k < layer_.cell.states; ++k)
      if (running[k].defined()) step.states[k] = running[k].mutable_data_ptr();
    if (!running[0].is_same(states_n[0])) step.h = states_n[0].mutable_data_ptr();
    step.last_h = layer_.D == 1;
    Product product = product_with(w_hh, h_gates);
    PreparedProducts products;
    for (int64_t i = 0; i < layer_.T; ++i) {
      // Of one direction the rows of h lie side by side in the output as well.
      if (i > 0 && layer_.D == 1)
        product.a.data = const_address(output, step.rows[0].row * layer_.H);
      for (int64_t d = 0; d < layer_.D; ++d) {
        const Walk walk = layer.walk(d);
        step.rows[d] = StepRows::of(walk, walk.time(i));
        step.begins[d] = begins_before(layer, walk, i);
      }
      if (i > 0 || !states_.empty()) multiply_directions(products, product, layer_.D, step.rows);
      check(launch_step_forward(layer_.cell.name, request_.type, step, static_cast<int>(layer_.D),
                                context_.stream));
    }
    for (int k = 1; k < layer_.cell.states; ++k)
      if (!running[k].is_same(states_n[k])) states_n[k].copy_(running[k]);
  }

  // The rows of h that take part in a step, times w_hh transposed. h lies in states_n.
  Product product_with(const Tensor& w_hh, const Tensor& h_gates) const {
    const int64_t B = layer_.B, H = layer_.H;
    Product product{};
    product.columns = columns(), product.depth = H, product.type = layer_.dtype;
    product.a = {states_n[0].const_data_ptr(), B * H, false};
    product.b = {w_hh.const_data_ptr(), columns() * H, true};
    product.out = h_gates.mutable_data_ptr(), product.out_stride = B * columns();
    product.out_type = h_gates.scalar_type(), product.tf32 = request_.tf32;
    return product;
  }
};

}  // namespace rnnfast::cuda
