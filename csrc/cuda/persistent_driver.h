// Runs a whole sequence in one launch where a kernel for that fits the problem and the device.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "cuda/driver.h"
#include "cuda/fma_kernels.h"
#include "cuda/grid_kernels.h"
#include "cuda/persistent_kernels.h"
#include "cuda/small_kernels.h"

namespace rnnfast::cuda {

template <class Cell>
const SequenceLauncher& sequence_kernel(Precision precision, const Plan& plan) {
  const auto how = static_cast<size_t>(precision);
  if (plan.kernel == Kernel::kSmall) return small_tables<Cell>()[how][plan.instance];
  if (plan.kernel == Kernel::kFma) return fma_table<Cell>()[plan.instance];
  // Of float32 without TF32, parts of 8 rows are persistent.h's.
  const bool small_parts = precision == Precision::kFloat && plan.part == kMmaBatch;
  if (plan.kernel == Kernel::kGrid && !small_parts) return grid_tables<Cell>()[how][plan.instance];
  return persistent_tables<Cell>()[how][plan.instance];
}

// Of a cell that has them: a plan names none for another.
inline const SequenceLauncher& sequence_kernel(std::string_view cell, Precision precision,
                                               const Plan& plan) {
  const SequenceLauncher* found = nullptr;
  dispatch_whole_sequence(cell,
                          [&](auto c) { found = &sequence_kernel<decltype(c)>(precision, plan); });
  return *found;
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
  LayerPackArgs args{};
  for (int64_t d = 0; d < layer.D; ++d)
    args.w_hh[d] = weights[d * layer.weights_per_direction() + 1].const_data_ptr();
  args.hidden = layer.H, args.packed = packed.mutable_data_ptr<uint8_t>();
  args.packed_bytes = kernel.packed_bytes, args.directions = static_cast<int>(layer.D);
  check(kernel.pack(args, stream));
  return packed;
}

inline Tensor exchange_memory(const SequenceLauncher& kernel, int64_t tiles, int rows,
                              const at::TensorOptions& options) {
  const int64_t bytes = kernel.exchange_bytes ? kernel.exchange_bytes(tiles, rows) : 0;
  if (bytes == 0) return {};
  return at::full({bytes}, kernel.exchange_fill, options.dtype(at::kByte));
}

// Tries the kernels of the plan in turn. False: the sequence is to be run step by step, and nothing
// has been written.
template <class Args>
bool run_persistent(const Layer& layer, const Request& request, const Tensors& weights,
                    DeviceSteps& steps, Args args, Stream stream) {
  const int directions = static_cast<int>(layer.D);
  const at::TensorOptions options = weights[1].options();
  for (int64_t d = 0; d < layer.D; ++d)
    args.w_hh[d] = weights[d * layer.weights_per_direction() + 1].const_data_ptr();
  const auto plans = cached_plans(request);
  for (const Plan& plan : *plans) {
    if (plan.kernel == Kernel::kStep) break;
    if (plan.kernel == Kernel::kSingle) continue;  // has been tried
    const SequenceLauncher& kernel = sequence_kernel(layer.cell.name, *precision(request), plan);
    const Tensor packed = packed_weights(layer, weights, kernel, stream);
    const Tensor exchange = exchange_memory(kernel, plan.tiles * directions, plan.rows, options);
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
