// The large products around the recurrence, by the fastest library at hand: oneDNN for large
// float32 ones (MKL, which at::mm calls, runs at 40 % of peak on some AMD cores where oneDNN is
// near it), at::mm for the rest.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "cpu/driver.h"

namespace rnnfast {

// From here on oneDNN's cost per call no longer shows.
inline constexpr int64_t kWorthOneDnn = int64_t{1} << 22;

inline const std::optional<c10::OperatorHandle>& onednn_linear() {
  static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return op;
}

inline bool use_onednn(at::ScalarType type, int64_t rows, int64_t depth, int64_t columns,
                       int64_t worth = kWorthOneDnn) {
  return type == at::kFloat && rows * depth * columns >= worth &&
         at::globalContext().userEnabledMkldnn() && onednn_linear().has_value();
}

// t[begin : begin + count] along dim, without the call where that is all of t.
inline at::Tensor part(const at::Tensor& t, int64_t dim, int64_t begin, int64_t count) {
  return count == t.size(dim) ? t : t.narrow(dim, begin, count);
}

// A contiguous copy of t [rows, columns] as [columns, rows].
template <class T>
at::Tensor transposed(const at::Tensor& t, int threads) {
  const at::Tensor source = t.contiguous();
  const int64_t rows = t.size(0), columns = t.size(1);
  at::Tensor result = at::empty({columns, rows}, t.options());
  constexpr int64_t kBand = 64;
  const T* src = source.const_data_ptr<T>();
  T* dst = result.mutable_data_ptr<T>();
  parallel_for(rows * columns < 32768 ? 1 : threads, ceil_div(columns, kBand), [&](int64_t band) {
    const int64_t first = band * kBand, count = columns - first < kBand ? columns - first : kBand;
    transpose(src + first, columns, rows, count, dst + first * rows, rows);
  });
  return result;
}

inline at::Tensor onednn_product(const at::Tensor& a, const at::Tensor& w, const at::Tensor& bias) {
  torch::jit::Stack stack{a,
                          w,
                          bias.defined() ? c10::IValue(bias) : c10::IValue(),
                          "none",
                          c10::List<std::optional<at::Scalar>>(),
                          ""};
  onednn_linear()->callBoxed(stack);
  return stack[0].toTensor();
}

// a [M, K] times w [N, K] transposed, plus bias [N] if defined. oneDNN is fast where w is the
// transposed view of a contiguous tensor; it adds up one chain over all of K, so that a long K goes
// in blocks to keep the rounding error at MKL's.
inline at::Tensor times_transposed(const at::Tensor& a, const at::Tensor& w,
                                   const at::Tensor& bias = {}) {
  if (!use_onednn(a.scalar_type(), a.size(0), a.size(1), w.size(0)))
    return bias.defined() ? at::addmm(bias, a, w.t()) : at::mm(a, w.t());
  constexpr int64_t kBlock = 512;
  const int64_t depth = a.size(1);
  at::Tensor sum;
  for (int64_t k = 0; k < depth; k += kBlock) {
    const int64_t count = depth - k < kBlock + kBlock / 2 ? depth - k : kBlock;
    const at::Tensor product =
        onednn_product(part(a, 1, k, count), part(w, 1, k, count), k ? at::Tensor() : bias);
    sum = sum.defined() ? sum.add_(product) : product;
    if (k + count == depth) break;
  }
  return sum;
}

// Rows to add up in one chain of a sum over all rows of a sequence. Torch adds up each step's B
// rows and then the T steps, an error that grows as sqrt(B) + sqrt(T); one chain over all rows
// would err as sqrt(B T), blocks of these rows err as torch does.
inline int64_t sum_block(int64_t B, int64_t T) {
  const double root = std::sqrt(static_cast<double>(B)) + std::sqrt(static_cast<double>(T));
  return static_cast<int64_t>(root * root);
}

// g [rows, N] transposed times x [rows, K], as a sum over blocks of rows.
template <class T>
at::Tensor transposed_times(const at::Tensor& g, const at::Tensor& x, int64_t block, int threads) {
  const int64_t rows = x.size(0);
  // Here oneDNN needs x transposed and a pass to add up: smaller blocks are not worth that.
  const bool onednn =
      use_onednn(g.scalar_type(), std::min(rows, block), g.size(1), x.size(1), 4 * kWorthOneDnn);
  at::Tensor sum;
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t count = std::min(block, rows - row);
    const at::Tensor g_block = part(g, 0, row, count), x_block = part(x, 0, row, count);
    if (onednn) {
      const at::Tensor product = onednn_product(transposed<T>(x_block, threads), g_block.t(), {});
      sum = sum.defined() ? sum.add_(product) : product;
    } else {
      sum = sum.defined() ? sum.addmm_(g_block.t(), x_block) : at::mm(g_block.t(), x_block);
    }
  }
  return onednn ? transposed<T>(sum, threads) : sum;
}

}  // namespace rnnfast
