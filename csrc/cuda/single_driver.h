// Runs a sequence of one step in one launch, products included, where the plan says so.
#pragma once

#include "cuda/driver.h"
#include "cuda/single_kernels.h"

namespace rnnfast::cuda {

// The bytes, 16 or 8, that all rows of these matrices are aligned to, or less.
template <class... Pointers>
int row_alignment(int64_t row_bytes, Pointers... matrices) {
  const uintptr_t bits =
      (static_cast<uintptr_t>(row_bytes) | ... | reinterpret_cast<uintptr_t>(matrices));
  return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : 1;
}

inline SingleLauncher single_kernel(std::string_view cell, Type type, int instance) {
  const size_t row = type == Type::kFloat32 ? 0 : type == Type::kBfloat16 ? 1 : 2;
  SingleLauncher found = nullptr;
  dispatch_whole_sequence(cell,
                          [&](auto c) { found = single_tables<decltype(c)>()[row][instance]; });
  return found;
}

// False: it is to be run otherwise, and nothing has been written. `x` is contiguous; `args` has
// all but w_hh and x_gates.
inline bool run_single(const Layer& layer, const Request& request, const Tensor& x,
                       const Tensors& weights, const ForwardArgs<void>& args, Stream stream) {
  SingleArgs<void> single{};
  single.layer = args, single.x = x.const_data_ptr(), single.inputs = static_cast<int>(layer.I);
  for (int64_t d = 0; d < layer.D; ++d) {
    const Tensor* own = &weights[d * layer.weights_per_direction()];
    single.w_ih[d] = own[0].const_data_ptr(), single.layer.w_hh[d] = own[1].const_data_ptr();
  }
  const auto element = static_cast<int64_t>(x.element_size());
  single.input_width = row_alignment(layer.I * element, single.x, single.w_ih[0], single.w_ih[1]);
  single.hidden_width = row_alignment(layer.H * element, args.states_0[0], single.layer.w_hh[0],
                                      single.layer.w_hh[1]);
  single.input_warps = input_warps(layer.I, args.states_0[0] != nullptr ? layer.H : 0);
  const auto plans = cached_plans(request);
  for (const Plan& plan : *plans) {
    if (plan.kernel != Kernel::kSingle) break;
    const SingleLauncher launch = single_kernel(layer.cell.name, request.type, plan.instance);
    const bool dependent = request.device.arch >= 90;
    const Status status = launch(single, plan.tiles, static_cast<int>(layer.D), dependent, stream);
    if (status.code == Status::kDoesNotFit) continue;
    check(status);
    return true;
  }
  return false;
}

}  // namespace rnnfast::cuda
