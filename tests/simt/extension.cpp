// The CUDA driver and its kernels on the emulator: ops rnnfast_simt::layer, layer_backward,
// recurrence and recurrence_backward, as those of rnnfast on CPU tensors, plus the seed of the
// emulator's schedules; of layers the kernel to run, too ("auto": what the plan says).
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <map>
#include <utility>

#include "cuda/op.h"
#include "simt/guard.h"

namespace rnnfast::cuda {
namespace {

// [count, rows, columns] of an operand, in the type that products are added up in.
Tensor matrices(const Product& p, const Matrices& operand, int64_t rows, int64_t columns) {
  const std::array<int64_t, 3> strides = operand.transposed
                                             ? std::array<int64_t, 3>{operand.stride, 1, rows}
                                             : std::array<int64_t, 3>{operand.stride, columns, 1};
  return at::from_blob(const_cast<void*>(operand.data), {p.count, rows, columns}, strides, p.type)
      .to(compute_type(p.type));
}

}  // namespace

int64_t products = 0;  // since somebody asked

void multiply(const Product& p) {
  ++products;
  RECORD_FUNCTION("emulated product", {});
  const Tensor out =
      at::from_blob(p.out, {p.count, p.rows, p.columns}, {p.out_stride, p.columns, 1}, p.out_type);
  const Tensor product =
      at::bmm(matrices(p, p.a, p.rows, p.depth), matrices(p, p.b, p.depth, p.columns));
  out.copy_(p.beta == 0 ? product : product.add(out, p.beta));
}

// Nothing to prepare: it sees to it that products are what they said they would be.
struct PreparedProducts::Library {
  std::map<std::pair<int64_t, int64_t>, Product> first;  // of its size
};
PreparedProducts::PreparedProducts() : library_(std::make_unique<Library>()) {}
PreparedProducts::~PreparedProducts() = default;

void PreparedProducts::run(const Product& p) {
  const Product& q = library_->first.try_emplace({p.count, p.rows}, p).first->second;
  const auto facts = [](const Product& x) {
    return std::tuple(x.columns, x.depth, x.type, x.a.transposed, x.b.transposed, x.out_type,
                      x.beta, x.tf32);
  };
  const auto alignments = [](const Product& x) {
    return std::array{alignment(x.a.data, x.a_row(), x.a.stride, x.type),
                      alignment(x.b.data, x.b_row(), x.b.stride, x.type),
                      alignment(x.out, x.columns, x.out_stride, x.out_type)};
  };
  TORCH_CHECK(facts(p) == facts(q), "not the kind of product that was prepared");
  for (size_t i = 0; i < 3; ++i)
    TORCH_CHECK(alignments(p)[i] >= alignments(q)[i], "not as aligned as the first of its size");
  multiply(p);
}

namespace {

// The arguments where an access beside them is an error, as well or badly aligned as they are; what
// is not contiguous, the driver copies.
Tensor guarded(const Tensor& t) {
  if (!t.is_contiguous()) return t;
  RECORD_FUNCTION("guarded memory", {});
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const auto off = static_cast<int64_t>(address % 16 / t.element_size());
  const Tensor memory = at::empty({off + t.numel()}, t.options());
  return memory.narrow(0, off, t.numel()).view(t.sizes()).copy_(t);
}
Tensors guarded(at::TensorList tensors) {
  Tensors result;
  for (const Tensor& t : tensors) result.push_back(guarded(t));
  return result;
}

std::optional<Tensor> guarded(const std::optional<Tensor>& t) {
  return t ? std::optional(guarded(*t)) : std::nullopt;
}

// A Hopper GPU as the emulator's settings make it.
Context context(std::string_view kernel, int64_t seed) {
  TORCH_CHECK(kernel == "auto" || find_wish(kernel), "unknown kernel ", kernel);
  emu::settings.seed = static_cast<uint64_t>(seed);
  return {{90, emu::settings.processors, static_cast<int>(emu::settings.max_smem_bytes),
           emu::settings.max_cluster},
          {},
          find_wish(kernel)};
}

LayerResult layer_simt(std::string_view cell, const Tensor& x,
                       const std::optional<Tensor>& batch_sizes, at::TensorList states,
                       at::TensorList weights, bool bidirectional, bool train,
                       std::string_view kernel, int64_t seed) {
  const emu::GuardedTensors guard;
  return layer(cell, guarded(x), guarded(batch_sizes), guarded(states), guarded(weights),
               bidirectional, train, [&] { return context(kernel, seed); });
}

Tensors layer_backward_simt(std::string_view cell, const std::optional<Tensor>& grad_output,
                            const c10::List<std::optional<Tensor>>& grad_states_n, const Tensor& x,
                            const std::optional<Tensor>& batch_sizes, at::TensorList weights,
                            bool bidirectional, at::TensorList reserve,
                            const c10::List<bool>& needs, std::string_view kernel, int64_t seed) {
  const emu::GuardedTensors guard;
  return layer_backward(cell, grad_output, grad_states_n, guarded(x), guarded(batch_sizes),
                        guarded(weights), bidirectional, guarded(reserve), needs,
                        [&] { return context(kernel, seed); });
}

LayerResult recurrence_simt(std::string_view cell, const Tensor& x_gates,
                            const std::optional<Tensor>& batch_sizes, int64_t B,
                            at::TensorList states, const Tensor& w_hh,
                            const std::optional<Tensor>& b_hh, at::TensorList norm,
                            const std::optional<Tensor>& keep, const std::optional<Tensor>& drop,
                            bool reverse, std::optional<double> clip, bool train, int64_t seed) {
  const emu::GuardedTensors guard;
  return recurrence(cell, guarded(x_gates), batch_sizes, B, guarded(states), guarded(w_hh),
                    guarded(b_hh), guarded(norm), guarded(keep), guarded(drop), reverse, clip,
                    train, rows_forward_on([seed] { return context("auto", seed).stream; }));
}

Tensors recurrence_backward_simt(std::string_view cell, const std::optional<Tensor>& grad_output,
                                 const c10::List<std::optional<Tensor>>& grad_states_n,
                                 const std::optional<Tensor>& batch_sizes, int64_t B,
                                 const Tensor& w_hh, at::TensorList norm,
                                 const std::optional<Tensor>& keep,
                                 const std::optional<Tensor>& drop, bool reverse,
                                 at::TensorList reserve, std::optional<double> clip, int64_t seed) {
  const emu::GuardedTensors guard;
  c10::List<std::optional<Tensor>> grads;
  for (const std::optional<Tensor> grad : grad_states_n) grads.push_back(guarded(grad));
  return recurrence_backward(cell, guarded(grad_output), grads, batch_sizes, B, guarded(w_hh),
                             guarded(norm), guarded(keep), guarded(drop), reverse, guarded(reserve),
                             clip,
                             rows_backward_on([seed] { return context("auto", seed).stream; }));
}

}  // namespace
}  // namespace rnnfast::cuda

TORCH_LIBRARY(rnnfast_simt, m) {
  m.def(
      "layer(str cell, Tensor x, Tensor? batch_sizes, Tensor[] states, Tensor[] weights, bool "
      "bidirectional, bool train, str kernel, int seed)"
      " -> (Tensor output, Tensor[] states_n, Tensor[] reserve)");
  m.def(
      "layer_backward(str cell, Tensor? grad_output, Tensor?[] grad_states_n, Tensor x, Tensor? "
      "batch_sizes, Tensor[] weights, bool bidirectional, Tensor[] reserve, bool[] needs, str "
      "kernel, int seed) -> Tensor[]");
  m.def(
      "recurrence(str cell, Tensor x_gates, Tensor? batch_sizes, int B, Tensor[] states, Tensor "
      "w_hh, Tensor? b_hh, Tensor[] norm, Tensor? keep, Tensor? drop, bool reverse, float? clip, "
      "bool train, int seed)"
      " -> (Tensor output, Tensor[] states_n, Tensor[] reserve)");
  m.def(
      "recurrence_backward(str cell, Tensor? grad_output, Tensor?[] grad_states_n, Tensor? "
      "batch_sizes, int B, Tensor w_hh, Tensor[] norm, Tensor? keep, Tensor? drop, bool reverse, "
      "Tensor[] reserve, float? clip, int seed) -> Tensor[]");
  // The kernels launched since the last call that share w_hh, by their kind. Those around them have
  // no dynamic shared memory.
  m.def("launched() -> str[]", [] {
    std::vector<std::string> kinds;
    for (const rnnfast::emu::Shape& shape : std::exchange(rnnfast::emu::launches, {}))
      if (shape.smem_bytes > 0)
        kinds.push_back(shape.cooperative   ? "grid"
                        : shape.cluster > 1 ? "cluster"
                        : shape.dependent   ? "single"
                                            : "cta");
    return kinds;
  });
  // All kernels and library products since the last call.
  m.def("count_launches() -> int", [] {
    const size_t kernels = std::exchange(rnnfast::emu::launches, {}).size();
    return static_cast<int64_t>(kernels) + std::exchange(rnnfast::cuda::products, 0);
  });
  // Cooperative grids of more blocks are refused at their launch.
  m.def("set_cooperative_blocks(int count) -> ()", [](int64_t count) {
    rnnfast::emu::settings.max_cooperative_blocks = static_cast<int>(count);
  });
  // Streaming multiprocessors of the emulated device, by which the plan chooses.
  m.def("set_processors(int count) -> ()",
        [](int64_t count) { rnnfast::emu::settings.processors = static_cast<int>(count); });
}

TORCH_LIBRARY_IMPL(rnnfast_simt, CPU, m) {
  m.impl("layer", &rnnfast::cuda::layer_simt);
  m.impl("layer_backward", &rnnfast::cuda::layer_backward_simt);
  m.impl("recurrence", &rnnfast::cuda::recurrence_simt);
  m.impl("recurrence_backward", &rnnfast::cuda::recurrence_backward_simt);
}
