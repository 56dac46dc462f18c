// rnnfast._C: the ops' schemas, the calls of eager.h, and facts that are not tensors: the build,
// the cells, the plans.
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "cells.h"
#include "cpu/caches.h"
#include "cpu/plan.h"
#include "cuda/plan.h"
#include "eager.h"
#include "ops.h"

namespace py = pybind11;

TORCH_LIBRARY(rnnfast, m) {
  m.set_python_module("rnnfast.ops");  // where the fake kernels are
  m.def(
      "layer(str cell, Tensor x, Tensor? batch_sizes, Tensor[] states, Tensor[] weights, bool "
      "bidirectional, bool train)"
      " -> (Tensor output, Tensor[] states_n, Tensor[] reserve)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "layer_backward(str cell, Tensor? grad_output, Tensor?[] grad_states_n, Tensor x, Tensor? "
      "batch_sizes, Tensor[] weights,"
      " bool bidirectional, Tensor[] reserve, bool[] needs) -> Tensor[]",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "segments(Tensor? resets, Tensor? lengths, Tensor? batch_sizes, SymInt T, SymInt B, bool "
      "batch_first)"
      " -> (Tensor rows, Tensor batch_sizes, Tensor elements, Tensor carries, Tensor first, Tensor "
      "last)",
      {at::Tag::pt2_compliant_tag});
  m.def("set_frozen(Tensor weight, bool frozen) -> ()");
  m.def("is_frozen(Tensor weight) -> bool");
  m.set_python_module("rnnfast.recurrence");
  m.def(
      "recurrence(str cell, Tensor x_gates, Tensor? batch_sizes, SymInt B, Tensor[] states, Tensor "
      "w_hh, Tensor? b_hh, Tensor[] norm, Tensor? keep, Tensor? drop, bool reverse, float? clip, "
      "bool "
      "train)"
      " -> (Tensor output, Tensor[] states_n, Tensor[] reserve)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "recurrence_backward(str cell, Tensor? grad_output, Tensor?[] grad_states_n, Tensor? "
      "batch_sizes, SymInt B, Tensor w_hh, Tensor[] norm, Tensor? keep, Tensor? drop, bool reverse,"
      " Tensor[] reserve, float? clip) -> Tensor[]",
      {at::Tag::pt2_compliant_tag});
}

namespace rnnfast {
namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
#if defined(__VERSION__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

// What torch's capability AVX512 leaves open.
bool has_bfloat16_products() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Asks the system for the tiles, which it gives to a process, and to those that it forks, for good.
bool has_bfloat16_tiles() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         has_bfloat16_products() && at::cpu::init_amx();
#else
  return false;
#endif
}

py::dict caches() {
  py::dict result;
  result["l1"] = cpu::kCaches.l1, result["l2"] = cpu::kCaches.l2;
  return result;
}

py::list cells() {
  py::list result;
  for (const CellFacts& cell : kCells) {
    py::dict facts;
    facts["name"] = cell.name, facts["gates"] = cell.gates, facts["states"] = cell.states,
    facts["reserve"] = cell.reserve, facts["shared_gates"] = cell.shared_gates;
    facts["reads_h"] = cell.reads_h, facts["reads_after"] = cell.reads_after;
    facts["emits"] = cell.emits;
    result.append(facts);
  }
  return result;
}

int vector_bytes(const std::string& capability) {
  return capability == "AVX512" ? 64 : capability == "AVX2" ? 32 : 16;
}

CellFacts find_cell(const std::string& name) {
  for (const CellFacts& cell : kCells)
    if (name == cell.name) return cell;
  throw py::value_error("plan: unknown cell '" + name + "'");
}

py::dict cpu_plan(const std::string& cell, const std::string& dtype, int64_t T, int64_t B,
                  int64_t I, int64_t H, int directions, int threads, bool uniform, double hand_over,
                  bool tiles, int64_t l1, int64_t l2) {
  const CellFacts facts = find_cell(cell);
  if (T < 0 || B < 0 || I < 0 || H < 0 || directions < 1 || directions > 2 || threads < 1)
    throw py::value_error(
        "plan: sizes must not be negative, directions 1 or 2, threads at least 1");
  const int element = dtype == "float64" ? 8 : 4,
            width = vector_bytes(at::get_cpu_capability()) / element;
  const cpu::Plan p = cpu::plan({{facts.gates, T, B, I, H, directions},
                                 uniform,
                                 threads,
                                 width,
                                 element,
                                 hand_over,
                                 tiles && dtype == "bfloat16",
                                 {l1, l2}});
  py::dict result;
  result["kernel"] = p.tiles ? "tiles" : p.packed ? "packed" : "rows";
  result["split"] = p.threads == 1                  ? "none"
                    : p.threads == directions       ? "direction"
                    : p.split == cpu::Split::kBatch ? "batch"
                                                    : "hidden";
  result["threads"] = p.threads, result["chunk_steps"] = p.chunk_steps,
  result["grad_chunk_steps"] = p.grad_chunk_steps, result["panel_groups"] = p.group;
  result["block_rows"] = p.block_rows, result["outer_rows"] = p.outer_rows,
  result["vector_width"] = width;
  return result;
}

cuda::Type cuda_type(const std::string& dtype) {
  if (dtype == "float64") return cuda::Type::kFloat64;
  if (dtype == "float32") return cuda::Type::kFloat32;
  if (dtype == "bfloat16") return cuda::Type::kBfloat16;
  if (dtype == "float16") return cuda::Type::kFloat16;
  throw py::value_error("cuda_plan: no kernels for dtype '" + dtype + "'");
}

std::vector<std::string> cuda_kernels() {
  return {std::begin(cuda::kKernelNames), std::end(cuda::kKernelNames)};
}

// The kernels that would be tried on a GPU, the best first.
py::list cuda_plan(const std::string& cell, const std::string& dtype, int64_t T, int64_t B,
                   int64_t H, int directions, bool backward, bool tf32, int arch, int processors,
                   int shared_bytes, int max_cluster, const std::string& kernel,
                   std::optional<int64_t> I, bool resets) {
  if (T < 1 || B < 1 || H < 1 || I.value_or(0) < 0 || directions < 1 || directions > 2)
    throw py::value_error("cuda_plan: sizes must be positive, directions 1 or 2");
  const auto wanted = cuda::find_wish(kernel);
  if (!wanted && kernel != "auto")
    throw py::value_error("cuda_plan: unknown kernel '" + kernel + "'");
  const CellFacts found = find_cell(cell);
  const cuda::Request request{{found.gates, T, B, I.value_or(H), H, directions},
                              found.whole_sequence,
                              cuda_type(dtype),
                              backward,
                              tf32,
                              {arch, processors, shared_bytes, max_cluster},
                              wanted,
                              resets};
  py::list result;
  for (const cuda::Plan& plan : cuda::plans(request)) {
    py::dict facts;
    facts["kernel"] = std::string(cuda::kKernelNames[static_cast<int>(plan.kernel)]);
    if (plan.instance >= 0) {
      facts["hidden"] = plan.hidden, facts["peers"] = plan.peers;
      facts["rows"] = plan.rows, facts["part"] = plan.part, facts["tiles"] = plan.tiles;
    }
    facts["microseconds"] = plan.microseconds;
    result.append(facts);
  }
  return result;
}

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &rnnfast::build_info, "Facts about this build.");
  m.def("has_bfloat16_products", &rnnfast::has_bfloat16_products,
        "Whether this CPU has the dot products of AVX512-BF16.");
  m.def("has_bfloat16_tiles", &rnnfast::has_bfloat16_tiles,
        "Whether this CPU has products of tiles (AMX), and the system gives them to this process.");
  m.def("caches", &rnnfast::caches, "Bytes of the caches that a core has for itself.");
  m.def("cells", &rnnfast::cells, "The table of cells.");
  m.def("plan", &rnnfast::cpu_plan, py::arg("cell"), py::arg("dtype"), py::arg("T"), py::arg("B"),
        py::arg("I"), py::arg("H"), py::arg("directions"), py::arg("threads"),
        py::arg("uniform") = true, py::arg("hand_over") = 100.0, py::arg("tiles") = false,
        py::arg("l1") = rnnfast::cpu::kSmallCaches.l1,
        py::arg("l2") = rnnfast::cpu::kSmallCaches.l2, "How the CPU kernels would run a layer.");
  m.def("cuda_kernels", &rnnfast::cuda_kernels,
        "The names that RNNFAST_CUDA_KERNEL knows, beside auto.");
  m.def("cuda_plan", &rnnfast::cuda_plan, py::arg("cell"), py::arg("dtype"), py::arg("T"),
        py::arg("B"), py::arg("H"), py::arg("directions"), py::arg("backward"), py::arg("tf32"),
        py::arg("arch"), py::arg("processors"), py::arg("shared_bytes"), py::arg("max_cluster"),
        py::arg("kernel") = "auto", py::arg("I") = py::none(), py::arg("resets") = false,
        "The CUDA kernels to try for a layer, the best first. I is H unless it is given; resets: "
        "rows begin anew where a mask on the device says so.");
  if (PyModule_AddFunctions(m.ptr(), rnnfast::kEagerMethods) != 0) throw py::error_already_set();
  // Looked up here and not in the first call: a fork in the middle of that would leave the child
  // waiting for it.
  rnnfast::layer_op(), rnnfast::layer_backward_op();
}
