// Runs a whole sequence in one launch where a kernel for that fits the problem and the device.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "cuda/driver.h"
#include "cuda/persistent_kernels.h"

namespace rnnfast::cuda {

inline const SequenceLauncher& sequence_kernel(std::string_view cell, Precision precision,
                                               const Plan& plan) {
  return persistent_kernel(cell, precision, plan.instance);
}

inline Status launch(const SequenceLauncher& kernel, const ForwardArgs<void>& args, int64_t tiles,
                     int directions, Stream stream) {
  return kernel.forward(args, tiles, directions, stream);
}
inline Status launch(const SequenceLauncher& kernel, const BackwardArgs<void>& args, int64_t tiles,
                     int directions, Stream stream) {
  return kernel.backward(args, tiles, directions, stream);
}

// The w_hh of all directions, each packed for the kernel; undefined where it packs nothing.
inline Tensor packed_weights(const Layer& layer, const Tensors& weights,
                             const SequenceLauncher& kernel, Stream stream) {
  if (kernel.pack == nullptr) return {};
  const Tensor packed =
      at::empty({layer.D, kernel.packed_bytes}, weights[1].options().dtype(at::kByte));
  for (int64_t d = 0; d < layer.D; ++d) {
    const Tensor& w_hh = weights[d * layer.weights_per_direction() + 1];
    check(kernel.pack({w_hh.const_data_ptr(), layer.H, address(packed, d * kernel.packed_bytes)},
                      stream));
  }
  return packed;
}

inline Tensor exchange_memory(const SequenceLauncher& kernel, int64_t tiles,
                              const at::TensorOptions& options) {
  const int64_t bytes = kernel.exchange_bytes ? kernel.exchange_bytes(tiles) : 0;
  if (bytes == 0) return {};
  return at::full({bytes}, kernel.exchange_fill, options.dtype(at::kByte));
}

// Tries the kernels of the plan in turn. False: the sequence is to be run step by step, and nothing
// has been written.
template <class Args>
bool run_persistent(const Layer& layer, const Problem& problem, const Tensors& weights,
                    DeviceSteps& steps, Args args, Stream stream) {
  const int directions = static_cast<int>(layer.D);
  const at::TensorOptions options = weights[1].options();
  for (int64_t d = 0; d < layer.D; ++d)
    args.w_hh[d] = weights[d * layer.weights_per_direction() + 1].const_data_ptr();
  for (const Plan& plan : plans(problem)) {
    if (plan.kernel == Kernel::kStep) break;
    const SequenceLauncher& kernel = sequence_kernel(layer.cell.name, *precision(problem), plan);
    const Tensor packed = packed_weights(layer, weights, kernel, stream);
    const Tensor exchange = exchange_memory(kernel, plan.tiles * directions, options);
    args.steps = steps.get(options);
    args.packed = packed.defined() ? packed.const_data_ptr() : nullptr;
    args.packed_bytes = kernel.packed_bytes;
    args.exchange = exchange.defined() ? exchange.mutable_data_ptr() : nullptr;
    const Status status = launch(kernel, args, plan.tiles, directions, stream);
    if (status.code == Status::kDoesNotFit) continue;
    check(status);
    return true;
  }
  return false;
}

}  // namespace rnnfast::cuda
