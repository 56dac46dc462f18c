// The argument checks of the two ops, shared by every backend's binder. The ops are public:
// whatever passes here, a kernel may trust.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/irange.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cells.h"
#include "problem.h"
#include "recurrence.h"

namespace rnnfast {

// A checked problem: sizes, and the steps in host memory.
struct Layer {
  CellFacts cell;
  int64_t T, B, I, H, D, rows;
  bool has_biases, uniform;
  at::ScalarType dtype;
  std::vector<int64_t> batch, offset;  // [T], [T + 1]
  // [T], on the device, where it alone knows how many of the B rows of a step are alive, the first
  // ones: then `batch` and `offset` are those of all rows.
  at::Tensor alive;
  // Bool [T, B], on the device: whether a row begins anew with a step, with zeros for its states.
  // Backward in time it does so between that step and the one before. Of the first step nothing is
  // said.
  at::Tensor begins;

  Problem problem() const { return {cell.gates, T, B, I, H, static_cast<int>(D)}; }
  Walk walk(int64_t direction) const {
    return {{T, rows, B, batch.data(), offset.data()}, direction == 1};
  }
  int64_t weights_per_direction() const { return has_biases ? 4 : 2; }
  int64_t x_dims() const { return packed ? 2 : 3; }
  bool packed;
  // [T, B, columns] or [rows, columns], as x is.
  std::vector<int64_t> shape(int64_t columns) const {
    return packed ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{T, B, columns};
  }
};

inline CellFacts find_cell(const char* op, std::string_view name) {
  for (const CellFacts& cell : kCells)
    if (name == cell.name) return cell;
  std::string names;
  for (const CellFacts& cell : kCells) (names += names.empty() ? "" : ", ") += cell.name;
  TORCH_CHECK_VALUE(false, op, ": cell must be one of ", names, ", got '", name, "'");
}

inline void check_tensor(const char* op, const char* name, const at::Tensor& t,
                         const at::Tensor& like, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK(t.defined(), op, ": ", name, " must be a tensor of sizes ", sizes, ", got None");
  TORCH_CHECK(t.sizes() == sizes, op, ": ", name, " must have sizes ", sizes, ", got ", t.sizes());
  TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " must be of dtype ", dtype, ", got ",
              t.scalar_type());
  TORCH_CHECK(t.device() == like.device(), op, ": ", name, " must be on the device of x, ",
              like.device(), ", got ", t.device());
  TORCH_CHECK(t.layout() == at::kStrided, op, ": ", name, " must be a strided tensor, got ",
              t.layout());
}

// Steps of a tensor whose memory holds them only because they all lie in one place.
inline constexpr int64_t kMostSteps = int64_t{1} << 36;

// Fills T, B, rows, batch and offset: of `rows` rows by batch_sizes, or of T steps of B each.
inline void check_steps(const char* op, const std::optional<at::Tensor>& batch_sizes, int64_t rows,
                        int64_t T, int64_t B, Layer& layer) {
  layer.uniform = true;
  if (!layer.packed) {
    layer.T = T, layer.B = B;
    if (B == 0) return;  // there may be more steps than memory, and nothing to do in them
    TORCH_CHECK(T < kMostSteps, op, ": no memory for ", T, " steps");
    layer.batch.assign(T, B);
  } else {
    const at::Tensor& b = *batch_sizes;
    TORCH_CHECK(b.dim() == 1 && b.scalar_type() == at::kLong && b.device().is_cpu() &&
                    b.layout() == at::kStrided,
                op, ": batch_sizes must be a one-dimensional int64 tensor on the CPU, got ",
                b.dim(), " dimensions of ", b.scalar_type(), " on ", b.device());
    layer.T = b.size(0);
    TORCH_CHECK(layer.T <= rows && layer.T < kMostSteps, op, ": batch_sizes must be positive",
                " and sum up to the ", rows, " rows of x; got ", layer.T, " of them");
    const int64_t* sizes = b.const_data_ptr<int64_t>();
    for (const auto t : c10::irange(layer.T)) layer.batch.push_back(sizes[t * b.stride(0)]);
    layer.B = layer.T ? layer.batch[0] : 0;
  }
  layer.offset.assign(layer.T + 1, 0);
  for (const auto t : c10::irange(layer.T)) {
    const int64_t now = layer.batch[t], limit = t ? layer.batch[t - 1] : layer.packed ? rows : B;
    TORCH_CHECK(!layer.packed || (now > 0 && now <= limit), op,
                ": batch_sizes must be positive, never increase and sum up to the ", rows,
                " rows of x; got ", now, " at step ", t);
    layer.uniform &= now == layer.B;
    layer.offset[t + 1] = layer.offset[t] + now;
  }
  layer.rows = layer.offset[layer.T];
  TORCH_CHECK(!layer.packed || layer.rows == rows, op, ": batch_sizes must sum up to the ", rows,
              " rows of x, got ", layer.rows);
}

inline void check_steps(const char* op, const at::Tensor& x,
                        const std::optional<at::Tensor>& batch_sizes, Layer& layer) {
  layer.packed = batch_sizes.has_value() && batch_sizes->defined();
  TORCH_CHECK(x.dim() == layer.x_dims(), op,
              ": x must be [T, B, I], or [rows, I] with batch_sizes; got ", x.dim(), " dimensions ",
              layer.packed ? "with" : "without", " batch_sizes");
  layer.I = x.size(-1);
  check_steps(op, batch_sizes, x.size(0), x.size(0), x.size(1), layer);
}

inline void check_weights(const char* op, const at::Tensor& x, at::TensorList weights,
                          Layer& layer) {
  const int64_t per_direction = static_cast<int64_t>(weights.size()) / layer.D;
  TORCH_CHECK((per_direction == 2 || per_direction == 4) &&
                  per_direction * layer.D == static_cast<int64_t>(weights.size()),
              op, ": weights must hold w_ih, w_hh and either no biases or b_ih, b_hh for each of ",
              layer.D, " directions; got ", weights.size(), " tensors");
  layer.has_biases = per_direction == 4;
  TORCH_CHECK(weights[1].dim() == 2, op, ": w_hh must have 2 dimensions, got ", weights[1].dim());
  layer.H = weights[1].size(1);
  const int64_t rows = layer.cell.gates * layer.H;
  static constexpr const char* kNames[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
  const std::vector<int64_t> sizes[] = {{rows, layer.I}, {rows, layer.H}, {rows}, {rows}};
  for (const auto i : c10::irange(weights.size()))
    check_tensor(op, kNames[i % per_direction], weights[i], x, layer.dtype,
                 sizes[i % per_direction]);
}

inline Layer check_layer(const char* op, std::string_view cell, const at::Tensor& x,
                         const std::optional<at::Tensor>& batch_sizes, at::TensorList weights,
                         bool bidirectional) {
  Layer layer{};
  layer.cell = find_cell(op, cell);
  layer.D = bidirectional ? 2 : 1;
  layer.dtype = x.scalar_type();
  TORCH_CHECK(layer.dtype == at::kFloat || layer.dtype == at::kDouble ||
                  layer.dtype == at::kBFloat16 || layer.dtype == at::kHalf,
              op, ": x must be of dtype float32, float64, bfloat16 or float16, got ", layer.dtype);
  TORCH_CHECK(x.layout() == at::kStrided, op, ": x must be a strided tensor, got ", x.layout());
  check_steps(op, x, batch_sizes, layer);
  check_weights(op, x, weights, layer);
  return layer;
}

inline void check_states(const char* op, const at::Tensor& x, at::TensorList states,
                         const Layer& layer) {
  static constexpr const char* kNames[] = {"h_0", "c_0"};
  const int64_t count = layer.cell.states;
  TORCH_CHECK(states.empty() || static_cast<int64_t>(states.size()) == count, op,
              ": states must be empty or hold ", count, " tensors for cell ", layer.cell.name,
              ", got ", states.size());
  for (const auto k : c10::irange(states.size()))
    check_tensor(op, kNames[k], states[k], x, layer.dtype, {layer.D, layer.B, layer.H});
}

// Sizes of the reserve: a timeline per state, then the gates if the cell keeps any.
inline std::vector<std::vector<int64_t>> reserve_sizes(const Layer& layer) {
  std::vector<std::vector<int64_t>> sizes(layer.cell.states,
                                          {layer.D, layer.rows + layer.B, layer.H});
  if (layer.cell.reserve) sizes.push_back({layer.D, layer.rows, layer.cell.reserve * layer.H});
  return sizes;
}

inline void check_reserve(const char* op, const at::Tensor& x, at::TensorList reserve,
                          const Layer& layer, at::ScalarType compute) {
  const auto sizes = reserve_sizes(layer);
  TORCH_CHECK(reserve.size() == sizes.size(), op, ": reserve must be the ", sizes.size(),
              " tensors that rnnfast::layer gave with train=True, got ", reserve.size());
  for (const auto k : c10::irange(sizes.size())) {
    check_tensor(op, "reserve", reserve[k], x, compute, sizes[k]);
    TORCH_CHECK(reserve[k].is_contiguous(), op, ": reserve must be contiguous");
  }
}

}  // namespace rnnfast
