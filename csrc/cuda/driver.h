// What the two halves of the driver share: what is asked of a plan, tensors as pointers.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cummin.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "binder.h"
#include "cuda/kernels.h"
#include "cuda/plan_cache.h"
#include "cuda/products.h"

namespace rnnfast::cuda {

// Where and how a call runs, found out by the binder.
struct Context {
  Device device;
  Stream stream;
  std::optional<Wish> wanted;
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

// The layer of a call. Where batch_sizes come with an x of three dimensions, and on its device, so
// many of the first rows of each step are alive; or, where they are a mask [T, B], rows begin anew
// where it is true. Nobody waits to look at them: whatever they are, all rows are alive at the
// first step, and none comes alive later.
inline Layer layer_of(const char* op, std::string_view cell, const Tensor& x,
                      const std::optional<Tensor>& batch_sizes, at::TensorList weights,
                      bool bidirectional) {
  const bool on_device =
      batch_sizes && batch_sizes->defined() && x.dim() == 3 && batch_sizes->device() == x.device();
  Layer layer =
      check_layer(op, cell, x, on_device ? std::nullopt : batch_sizes, weights, bidirectional);
  if (!on_device) return layer;
  const bool is_mask = batch_sizes->scalar_type() == at::kBool;
  if (is_mask)
    check_tensor(op, "batch_sizes", *batch_sizes, x, at::kBool, {layer.T, layer.B});
  else
    check_tensor(op, "batch_sizes", *batch_sizes, x, at::kLong, {layer.T});
  if (layer.rows == 0 || layer.T == 1) return layer;
  if (is_mask) {
    layer.begins = batch_sizes->contiguous();
    return layer;
  }
  layer.alive = std::get<0>(at::cummin(*batch_sizes, 0)).clamp(0, layer.B);
  layer.alive.select(0, 0).fill_(layer.B);
  layer.uniform = false;
  return layer;
}

// The same layer with what the device alone knew, for which this waits.
inline Layer known_here(const Layer& layer) {
  Layer result = layer;
  if (!layer.alive.defined()) return result;
  const Tensor alive = layer.alive.cpu();
  result.batch.assign(alive.const_data_ptr<int64_t>(), alive.const_data_ptr<int64_t>() + layer.T);
  return result;
}

// [T, B], or null where no row begins anew.
inline const bool* begins_of(const Layer& layer) {
  return layer.begins.defined() ? layer.begins.const_data_ptr<bool>() : nullptr;
}

// [B]: whether the rows begin anew between step i of a walk and the step before it; or null.
inline const bool* begins_before(const Layer& layer, const Walk& walk, int64_t i) {
  const bool* begins = begins_of(layer);
  return begins && i > 0 && i < layer.T ? begins + walk.border(i) * layer.B : nullptr;
}

// Memory for the rows of all steps; zeros in those of which some are written by nobody.
inline Tensor memory_of_rows(const Layer& layer, at::IntArrayRef sizes,
                             const at::TensorOptions& options) {
  return layer.alive.defined() ? at::zeros(sizes, options) : at::empty(sizes, options);
}

inline Request request_of(const Layer& layer, bool backward, const Context& context) {
  return {layer.problem(),      layer.cell.whole_sequence,
          type_of(layer.dtype), backward,
          tf32_allowed(),       context.device,
          context.wanted,       layer.begins.defined()};
}

// The w_hh of all directions, one behind the other.
inline Tensor stacked(const Layer& layer, const Tensors& weights) {
  if (layer.D == 1) return weights[1];
  return at::stack({weights[1], weights[1 + layer.weights_per_direction()]});
}

// A product per direction, of as many rows as the direction has in this step.
inline void multiply_directions(PreparedProducts& products, Product product, int64_t directions,
                                const StepRows (&rows)[2]) {
  product.rows = rows[0].count;
  if (most_rows(rows, directions) == 0) return;
  if (directions == 1 || rows[0].count == rows[1].count) {
    product.count = directions;
    products.run(product);
    return;
  }
  for (int64_t d = 0; d < directions; ++d) {
    Product one = product.nth(d);
    one.rows = rows[d].count;
    if (one.rows > 0) products.run(one);
  }
}

// The steps of a sequence that is not dense in device memory, where they may be already; else
// kernels write them from their arguments, only once somebody asks.
class DeviceSteps {
 public:
  DeviceSteps(const Layer& layer, Stream stream) : layer_(layer), stream_(stream) {}

  const Steps& get(const at::TensorOptions& options) {
    if (layer_.uniform || memory_.defined()) return steps_;
    if (layer_.alive.defined()) {
      take_alive();
    } else {
      expand(options);
    }
    return steps_;
  }

 private:
  const Layer& layer_;
  const Stream stream_;
  Steps steps_{layer_.T, layer_.rows, layer_.B, nullptr, nullptr};
  Tensor memory_;

  void take_alive() {
    memory_ = at::arange(0, layer_.rows, layer_.B, layer_.alive.options());
    steps_.batch = layer_.alive.const_data_ptr<int64_t>();
    steps_.offset = memory_.const_data_ptr<int64_t>();
  }

  void expand(const at::TensorOptions& options) {
    memory_ = at::empty({2, layer_.T}, options.dtype(at::kLong));
    int64_t* batch = memory_.mutable_data_ptr<int64_t>();
    steps_.batch = batch, steps_.offset = batch + layer_.T;
    ExpandRuns runs{{}, 0, batch, batch + layer_.T};
    for (int64_t t = 0; t < layer_.T;) {
      int64_t end = t + 1;
      while (end < layer_.T && layer_.batch[end] == layer_.batch[t]) ++end;
      runs.runs[runs.count++] = {t, end - t, layer_.batch[t], layer_.offset[t]};
      if (runs.count == ExpandRuns::kCapacity || end == layer_.T) {
        check(launch_expand_runs(runs, stream_));
        runs.count = 0;
      }
      t = end;
    }
  }
};

}  // namespace rnnfast::cuda
