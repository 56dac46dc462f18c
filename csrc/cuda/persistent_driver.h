// Runs a whole sequence in one launch where a kernel for that fits the problem and the device.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "cuda/driver.h"
#include "cuda/persistent_kernels.h"

namespace rnnfast::cuda {

inline Status launch(const PersistentLauncher& kernel, const ForwardArgs<void>& args, int64_t tiles,
                     int directions, Stream stream) {
  return kernel.forward(args, tiles, directions, stream);
}
inline Status launch(const PersistentLauncher& kernel, const BackwardArgs<void>& args,
                     int64_t tiles, int directions, Stream stream) {
  return kernel.backward(args, tiles, directions, stream);
}

// The w_hh of all directions, each packed for the kernel.
inline Tensor packed_weights(const Layer& layer, const Tensors& weights, const Layout& layout,
                             const PersistentLauncher& kernel, Stream stream) {
  const Tensor packed =
      at::empty({layer.D, layout.packed_bytes()}, weights[1].options().dtype(at::kByte));
  for (int64_t d = 0; d < layer.D; ++d) {
    const Tensor& w_hh = weights[d * layer.weights_per_direction() + 1];
    check(kernel.pack({w_hh.const_data_ptr(), layer.H, packed[d].mutable_data_ptr()}, stream));
  }
  return packed;
}

// Tries the kernels of the plan in turn. False: the sequence is to be run step by step, and nothing
// has been written.
template <class Args>
bool run_persistent(const Layer& layer, const Problem& problem, const Tensors& weights,
                    DeviceSteps& steps, Args args, Stream stream) {
  const int directions = static_cast<int>(layer.D);
  for (const Plan& plan : plans(problem)) {
    if (plan.kernel == Kernel::kStep) break;
    const Precision how = *precision(problem);
    const Layout shape = layout(kInstances[plan.instance], problem.gates, how);
    const PersistentLauncher& kernel = persistent_kernel(layer.cell.name, how, plan.instance);
    const Tensor packed = packed_weights(layer, weights, shape, kernel, stream);
    const Tensor exchange =
        at::zeros({shape.exchange_bytes(plan.tiles * directions)}, packed.options());
    args.steps = steps.get(weights[1].options());
    args.w_hh = packed.const_data_ptr(), args.w_hh_bytes = shape.packed_bytes();
    args.exchange = exchange.mutable_data_ptr();
    const Status status = launch(kernel, args, plan.tiles, directions, stream);
    if (status.code == Status::kDoesNotFit) continue;
    check(status);
    return true;
  }
  return false;
}

}  // namespace rnnfast::cuda
