// Runs a recurrence whose steps see whole rows: a product and a kernel for every step, or one
// launch for all of them where no unit sees another.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include "cuda/driver.h"
#include "cuda/rows_kernels.h"
#include "recurrence_op.h"

namespace rnnfast::cuda {

// What both passes of a recurrence have.
class RowsDriver {
 protected:
  RowsDriver(const Recurrence& r, Stream stream)
      : r_(r),
        layer_(r.layer),
        stream_(stream),
        type_(type_of(r.layer.dtype)),
        compute_(compute_type(r.layer.dtype)),
        w_hh_(r.w_hh.contiguous()),
        device_steps_(r.layer, stream) {}

  const Recurrence& r_;
  const Layer& layer_;
  const Stream stream_;
  const Type type_;
  const at::ScalarType compute_;
  const Tensor w_hh_;
  PreparedProducts products_;

  // Of independent units that are not normalised every unit is on its own.
  bool single_units() const { return r_.independent && !r_.normalised; }

  Tensor memory(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::empty(sizes, w_hh_.options().dtype(type));
  }
  // As a kernel takes it, as long as this driver lives.
  const void* contiguous(const Tensor& t) {
    if (!t.defined()) return nullptr;
    held_.push_back(t.contiguous());
    return held_.back().const_data_ptr();
  }
  static void* data(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

  Rows<void> rows() {
    Rows<void> a{};
    a.walk = r_.walk(), a.hidden = layer_.H;
    if (single_units()) a.walk.steps = device_steps_.get(w_hh_.options());
    if (r_.independent) a.w_own = w_hh_.const_data_ptr();
    a.gain = contiguous(r_.gain), a.gain_c = contiguous(r_.gain_c);
    a.bias_c = contiguous(r_.bias_c), a.keep = contiguous(r_.keep), a.drop = contiguous(r_.drop);
    a.keep_stride = r_.keeps_rows ? r_.kept() : 0;
    return a;
  }

  // `columns` of the result; the operand with w_hh is still to be named.
  Product product(int64_t columns, bool transposed, const Tensor& out) const {
    Product p{};
    p.count = 1, p.columns = columns, p.depth = transposed ? layer_.H : r_.gates();
    p.type = layer_.dtype, p.out_type = compute_, p.tf32 = tf32_allowed();
    p.b = {w_hh_.const_data_ptr(), 0, transposed}, p.out = out.mutable_data_ptr();
    return p;
  }

 private:
  DeviceSteps device_steps_;
  Tensors held_;
};

class RowsForwardDriver : RowsDriver {
 public:
  RowsForwardDriver(const Recurrence& r, const RecurrenceInputs& inputs,
                    const RecurrenceResults& results, Stream stream)
      : RowsDriver(r, stream), inputs_(inputs) {
    const RecurrenceReserve reserve(r, results.reserve);
    a_.rows = rows();
    a_.x_gates = contiguous(inputs.x_gates), a_.b_hh = contiguous(inputs.b_hh);
    a_.output = data(results.output);
    for (int k = 0; k < layer_.cell.states; ++k) {
      if (!inputs.states.empty()) a_.states_0[k] = contiguous(inputs.states[k]);
      a_.states_n[k] = data(results.states_n[k]), a_.timelines[k] = data(reserve.timelines[k]);
    }
    a_.gates = data(reserve.gates), a_.normalised = data(reserve.normalised);
    a_.statistics = data(reserve.statistics), a_.fresh = data(reserve.fresh);
  }

  void run() {
    if (single_units()) {
      check(launch_units_forward(layer_.cell.name, type_, a_, stream_));
    } else {
      run_steps();
    }
  }

 private:
  const RecurrenceInputs& inputs_;
  RowsForward<void, void> a_{};

  // What the first product of a row takes.
  Tensor initial_operand() const {
    const Tensor operand = memory({layer_.B, layer_.H}, layer_.dtype);
    if (inputs_.states.empty()) return operand.zero_();
    if (r_.drop.defined()) return operand.copy_(at::mul(inputs_.states[0], r_.drop));
    return operand.copy_(inputs_.states[0]);
  }

  void run_steps() {
    const int64_t B = layer_.B, H = layer_.H;
    const Tensor running = memory({layer_.cell.states, B, H}, compute_);
    for (int k = 0; k < layer_.cell.states; ++k) a_.states[k] = address(running, k * B * H);
    const Tensor scratch =
        r_.normalises_c() ? memory({B, 1 + layer_.cell.reserve, H}, compute_) : Tensor();
    a_.scratch = data(scratch);
    Tensor operand, products;
    Product p{};
    if (!r_.independent) {
      operand = initial_operand(), a_.operand = data(operand);
      // Zero states need no product at their first step.
      products = at::zeros({B, r_.gates()}, w_hh_.options().dtype(compute_));
      a_.products = products.const_data_ptr();
      p = product(r_.gates(), true, products), p.a.data = operand.const_data_ptr();
    }
    const Walk walk = r_.walk();
    for (int64_t i = 0; i < layer_.T; ++i) {
      a_.rows.step = StepRows::of(walk, walk.time(i));
      p.rows = a_.rows.step.count;
      if (!r_.independent && (i > 0 || !inputs_.states.empty())) products_.run(p);
      check(launch_rows_forward(layer_.cell.name, type_, a_, stream_));
    }
  }
};

class RowsBackwardDriver : RowsDriver {
 public:
  RowsBackwardDriver(const Recurrence& r, const RecurrenceReserve& reserve,
                     const RecurrenceGrads& grads, const Tensors& results, Stream stream)
      : RowsDriver(r, stream) {
    a_.rows = rows(), a_.clip = grads.clip;
    a_.grad_output = contiguous(grads.output);
    a_.gates = data(reserve.gates), a_.normalised = data(reserve.normalised);
    a_.statistics = data(reserve.statistics), a_.fresh = data(reserve.fresh);
    size_t next = 0;
    grad_p_ = results[next++], a_.grad_x = data(grad_p_);
    if (r.normalised || layer_.cell.shared_gates < layer_.cell.gates)
      grad_p_ = results[next++], a_.grad_h = data(grad_p_);
    if (r.normalised) grad_p_ = results[next++], a_.grad_p = data(grad_p_);
    if (r.normalises_c()) a_.grad_y = data(results[next++]);
    grad_h_0_ = results[next];
    for (int k = 0; k < layer_.cell.states; ++k) {
      a_.timelines[k] = reserve.timelines[k].const_data_ptr();
      a_.grad_states[k] = data(results[next + k]);
    }
  }

  void run() {
    if (single_units()) {
      check(launch_units_backward(layer_.cell.name, type_, a_, stream_));
    } else {
      run_steps();
    }
  }

 private:
  RowsBackward<void, void> a_{};
  Tensor grad_p_, grad_h_0_;

  void run_steps() {
    const int64_t B = layer_.B, H = layer_.H;
    const Tensor scratch = r_.normalises_c() ? memory({B, H}, compute_) : Tensor();
    a_.scratch = data(scratch);
    Tensor back, operand;
    Product p{};
    if (!r_.independent) {
      back = memory({B, H}, compute_), a_.back = data(back);
      p = product(H, false, back);
      if (compute_ != layer_.dtype)
        operand = memory({B, r_.gates()}, layer_.dtype), a_.operand = data(operand);
    }
    const Walk walk = r_.walk();
    for (int64_t i = layer_.T - 1; i >= 0; --i) {
      a_.rows.step = StepRows::of(walk, walk.time(i));
      check(launch_rows_backward(layer_.cell.name, type_, a_, stream_));
      if (r_.independent) continue;
      p.rows = a_.rows.step.count;
      p.a.data = operand.defined() ? operand.const_data_ptr()
                                   : const_address(grad_p_, a_.rows.step.row * r_.gates());
      products_.run(p);
    }
    // What the first step of each row sends back.
    if (back.defined()) grad_h_0_.add_(r_.drop.defined() ? at::mul(back, r_.drop) : back);
  }
};

}  // namespace rnnfast::cuda
