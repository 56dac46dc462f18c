// Registers the CUDA kernels for the ops of rnnfast that have kernels.
#include "cuda/op.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>

namespace rnnfast::cuda {
namespace {

// The largest clusters that any architecture has are of 16 blocks; more than 8 must be allowed by
// the device, which a launch finds out.
constexpr int kMaxCluster = 16;

// RNNFAST_CUDA_KERNEL: the name of a kernel asks for it where it can run, with /n for its nth entry
// in the plan alone; auto leaves the choice to the plan.
std::optional<Wish> wanted_kernel() {
  const char* name = std::getenv("RNNFAST_CUDA_KERNEL");
  if (!name || std::string_view(name) == "auto") return std::nullopt;
  const auto wish = find_wish(name);
  std::string names = "auto";
  for (const std::string_view known : kKernelNames) names.append(", ").append(known);
  TORCH_CHECK_VALUE(wish, "RNNFAST_CUDA_KERNEL must be one of ", names,
                    ", with /n for the nth entry of its plan; got '", name, "'");
  return wish;
}

Context context() {
  const cudaDeviceProp& device = *at::cuda::getCurrentDeviceProperties();
  // A build for older GPUs runs here as for one of them: its kernels have no clusters.
  const int arch = std::min(10 * device.major + device.minor, compiled_for());
  return {{arch, device.multiProcessorCount, static_cast<int>(device.sharedMemPerBlockOptin),
           arch >= 90 ? kMaxCluster : 1},
          at::cuda::getCurrentCUDAStream(),
          wanted_kernel()};
}

LayerResult layer_cuda(std::string_view cell, const Tensor& x,
                       const std::optional<Tensor>& batch_sizes, at::TensorList states,
                       at::TensorList weights, bool bidirectional, bool train) {
  const c10::OptionalDeviceGuard guard(at::device_of(x));
  return layer(cell, x, batch_sizes, states, weights, bidirectional, train, context);
}

Tensors layer_backward_cuda(std::string_view cell, const std::optional<Tensor>& grad_output,
                            const c10::List<std::optional<Tensor>>& grad_states_n, const Tensor& x,
                            const std::optional<Tensor>& batch_sizes, at::TensorList weights,
                            bool bidirectional, at::TensorList reserve,
                            const c10::List<bool>& needs) {
  const c10::OptionalDeviceGuard guard(at::device_of(x));
  return layer_backward(cell, grad_output, grad_states_n, x, batch_sizes, weights, bidirectional,
                        reserve, needs, context);
}

Stream current_stream() { return at::cuda::getCurrentCUDAStream(); }

LayerResult recurrence_cuda(std::string_view cell, const Tensor& x_gates,
                            const std::optional<Tensor>& batch_sizes, int64_t B,
                            at::TensorList states, const Tensor& w_hh,
                            const std::optional<Tensor>& b_hh, at::TensorList norm,
                            const std::optional<Tensor>& keep, const std::optional<Tensor>& drop,
                            bool reverse, std::optional<double> clip, bool train) {
  const c10::OptionalDeviceGuard guard(at::device_of(x_gates));
  return recurrence(cell, x_gates, batch_sizes, B, states, w_hh, b_hh, norm, keep, drop, reverse,
                    clip, train, rows_forward_on(current_stream));
}

Tensors recurrence_backward_cuda(std::string_view cell, const std::optional<Tensor>& grad_output,
                                 const c10::List<std::optional<Tensor>>& grad_states_n,
                                 const std::optional<Tensor>& batch_sizes, int64_t B,
                                 const Tensor& w_hh, at::TensorList norm,
                                 const std::optional<Tensor>& keep,
                                 const std::optional<Tensor>& drop, bool reverse,
                                 at::TensorList reserve, std::optional<double> clip) {
  const c10::OptionalDeviceGuard guard(at::device_of(w_hh));
  return recurrence_backward(cell, grad_output, grad_states_n, batch_sizes, B, w_hh, norm, keep,
                             drop, reverse, reserve, clip, rows_backward_on(current_stream));
}

}  // namespace
}  // namespace rnnfast::cuda

TORCH_LIBRARY_IMPL(rnnfast, CUDA, m) {
  m.impl("layer", &rnnfast::cuda::layer_cuda);
  m.impl("layer_backward", &rnnfast::cuda::layer_backward_cuda);
  m.impl("recurrence", &rnnfast::cuda::recurrence_cuda);
  m.impl("recurrence_backward", &rnnfast::cuda::recurrence_backward_cuda);
}
