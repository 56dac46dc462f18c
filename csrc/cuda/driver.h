// What the two halves of the driver share: the problem on the device, tensors as pointers.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <optional>
#include <vector>

#include "binder.h"
#include "cuda/kernels.h"
#include "cuda/products.h"

namespace rnnfast::cuda {

// Where and how a call runs, found out by the binder.
struct Context {
  Device device;
  Stream stream;
  std::optional<Kernel> wanted;
};

inline Type type_of(at::ScalarType dtype) {
  return dtype == at::kDouble     ? Type::kFloat64
         : dtype == at::kFloat    ? Type::kFloat32
         : dtype == at::kBFloat16 ? Type::kBfloat16
                                  : Type::kFloat16;
}

inline void check(const Status& status) {
  TORCH_CHECK(status.ok(), "rnnfast: a kernel could not be launched: ", status.text);
}

inline Problem problem_of(const Layer& layer, bool backward, const Context& context) {
  return {
      layer.cell.gates, type_of(layer.dtype),      backward,       layer.T,        layer.B,
      layer.H,          static_cast<int>(layer.D), tf32_allowed(), context.device, context.wanted};
}

// The address of an element of a contiguous tensor.
inline char* address(const Tensor& t, int64_t element) {
  return static_cast<char*>(t.mutable_data_ptr()) +
         element * static_cast<int64_t>(t.element_size());
}
inline const char* const_address(const Tensor& t, int64_t element) {
  return static_cast<const char*>(t.const_data_ptr()) +
         element * static_cast<int64_t>(t.element_size());
}

// The w_hh of all directions, one behind the other.
inline Tensor stacked(const Layer& layer, const Tensors& weights) {
  if (layer.D == 1) return weights[1];
  return at::stack({weights[1], weights[1 + layer.weights_per_direction()]});
}

// A product per direction, of as many rows as the direction has in this step.
inline void multiply_directions(Product product, int64_t directions, const StepRows (&rows)[2]) {
  product.rows = rows[0].count;
  if (directions == 1 || rows[0].count == rows[1].count) {
    product.count = directions;
    multiply(product);
    return;
  }
  for (int64_t d = 0; d < directions; ++d) {
    Product one = product.nth(d);
    one.rows = rows[d].count;
    multiply(one);
  }
}

// The steps of a packed sequence in device memory: kernels write them there from their arguments.
class DeviceSteps {
 public:
  DeviceSteps(const Layer& layer, const at::TensorOptions& options, Stream stream) {
    steps_ = {layer.T, layer.rows, layer.B, nullptr, nullptr};
    if (layer.uniform) return;
    memory_ = at::empty({2, layer.T}, options.dtype(at::kLong));
    int64_t* batch = memory_.mutable_data_ptr<int64_t>();
    ExpandRuns runs{{}, 0, batch, batch + layer.T};
    for (int64_t t = 0; t < layer.T;) {
      int64_t end = t + 1;
      while (end < layer.T && layer.batch[end] == layer.batch[t]) ++end;
      runs.runs[runs.count++] = {t, end - t, layer.batch[t], layer.offset[t]};
      if (runs.count == ExpandRuns::kCapacity || end == layer.T) {
        check(launch_expand_runs(runs, stream));
        runs.count = 0;
      }
      t = end;
    }
    steps_.batch = batch, steps_.offset = batch + layer.T;
  }
  const Steps& get() const { return steps_; }

 private:
  Tensor memory_;
  Steps steps_;
};

}  // namespace rnnfast::cuda
