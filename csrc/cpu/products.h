// The products around the recurrence: small ones in registers and tiles of our own, large ones by
// the fastest library at hand: oneDNN for large float32 ones (MKL, which at::mm calls, runs at 40 %
// of peak on Zen 5, where oneDNN is near it; on Zen 4 the two differ by 5 %, but for projections of
// few rows, where oneDNN is 1.3 to 1.5 times as fast), at::mm for the rest.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/buffers.h"

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

// a [M, K] times w [N, K] transposed, plus bias [N] if defined, by oneDNN: fast where w is the
// transposed view of a contiguous tensor. oneDNN adds up one chain over all of K, so that K goes in
// blocks of at most `block`, which bounds the rounding error.
inline at::Tensor onednn_blocks(const at::Tensor& a, const at::Tensor& w, const at::Tensor& bias,
                                int64_t block) {
  const int64_t depth = a.size(1), blocks = ceil_div(depth, block);
  at::Tensor sum;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t k = depth * i / blocks, count = depth * (i + 1) / blocks - k;
    const at::Tensor product =
        onednn_product(part(a, 1, k, count), part(w, 1, k, count), i ? at::Tensor() : bias);
    sum = sum.defined() ? sum.add_(product) : product;
  }
  return sum;
}

// a [M, K] times w [N, K] transposed, plus bias [N] if defined, by a library.
inline at::Tensor library_product(const at::Tensor& a, const at::Tensor& w,
                                  const at::Tensor& bias) {
  if (use_onednn(a.scalar_type(), a.size(0), a.size(1), w.size(0)))
    return onednn_blocks(a, w, bias, 512);
  return bias.defined() ? at::addmm(bias, a, w.t()) : at::mm(a, w.t());
}

// A library takes longer to begin (4 to 5 us) than these products take in our own tiles, packing
// included; for a few rows, w as it stands takes less than packing, and than a library up to sizes
// at which that may use several threads.
inline constexpr int64_t kSmallWeights = int64_t{1} << 13, kSmallWork = int64_t{1} << 18;
inline constexpr int64_t kFewRows = 4, kFewRowsWeights = int64_t{1} << 18;

enum class ProductBy { kRows, kTiles, kLibrary };

template <class T>
ProductBy product_by(int64_t rows, int64_t columns, int64_t depth) {
  constexpr int64_t kWidth = Vec<T>::kWidth;
  const int64_t weights = columns * depth;
  if (rows <= kFewRows && weights <= kFewRowsWeights && columns >= kWidth &&
      depth <= kBlockDepth * kWidth)
    return ProductBy::kRows;
  return weights <= kSmallWeights && rows * weights <= kSmallWork ? ProductBy::kTiles
                                                                  : ProductBy::kLibrary;
}

// Blocks of rows times w [N, K] transposed, plus bias [N] if defined; keeps the last result.
template <class T>
class Projection {
 public:
  Projection() = default;
  // For blocks of at most `rows` rows.
  Projection(const at::Tensor& w, const at::Tensor& bias, int64_t rows, int threads)
      : by_(product_by<T>(rows, w.size(0), w.size(1))),
        w_(w),
        bias_(bias),
        panels_{w.size(0), w.size(1), 1, kMaxVectors} {
    if (by_ != ProductBy::kLibrary) {
      result_ = Scratch<T>(rows * panels_.hidden);
    } else if (use_onednn(w.scalar_type(), rows, w.size(1), w.size(0))) {
      w_ = transposed<T>(w, threads).t();  // as oneDNN likes it
    }
    if (by_ != ProductBy::kTiles) return;
    packed_ = Scratch<T>(panels_.size());
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      pack_forward(w.const_data_ptr<T>(), panels_, panel, packed_.data() + panels_.offset(panel));
  }

  // Of the rows of a [.., K], contiguous, those of a range.
  const T* operator()(const at::Tensor& a, Range rows) {
    const int64_t count = rows.end - rows.begin;
    if (by_ == ProductBy::kLibrary) {
      const at::Tensor all = a.dim() == 2 ? a : a.flatten(0, -2);
      product_ = library_product(part(all, 0, rows.begin, count), w_, bias_);
      return product_.const_data_ptr<T>();
    }
    multiply_here(a.const_data_ptr<T>() + rows.begin * panels_.depth, count);
    return result_.data();
  }

 private:
  void multiply_here(const T* a, int64_t rows) {
    const int64_t columns = panels_.hidden, depth = panels_.depth;
    const T* bias = bias_.defined() ? bias_.const_data_ptr<T>() : nullptr;
    const auto finish = [&](int64_t row, int64_t column, int64_t count, Vec<T> sum) {
      if (bias) sum = sum + Vec<T>::load(bias + column, count);
      sum.store(result_.data() + row * columns + column, count);
    };
    if (by_ == ProductBy::kTiles) {
      multiply(panels_, packed_.data(), a, depth, depth, {0, rows}, {0, panels_.count()},
               [&](int64_t row, int64_t column, int64_t count, const T* sums, int64_t) {
                 finish(row, column, count, Vec<T>::load(sums));
               });
    } else {
      for (int64_t row = 0; row < rows; ++row)
        multiply_row(
            a + row * depth, w_.const_data_ptr<T>(), columns, depth,
            [&](int64_t column, Vec<T> sums) { finish(row, column, Vec<T>::kWidth, sums); });
    }
  }

  ProductBy by_;
  at::Tensor w_, bias_, product_;
  Panels<T> panels_;
  Scratch<T> packed_, result_;
};

// g [rows, N] times w [N, K]: the gradient that flows on to x.
inline at::Tensor times(const at::Tensor& g, const at::Tensor& w) {
  if (!use_onednn(g.scalar_type(), g.size(0), g.size(1), w.size(1))) return at::mm(g, w);
  constexpr int64_t kRows = 1024;  // of so many, the sums stay in the cache from block to block
  std::vector<at::Tensor> parts;
  for (int64_t row = 0; row < g.size(0); row += kRows)
    parts.push_back(
        onednn_blocks(part(g, 0, row, std::min(kRows, g.size(0) - row)), w.t(), {}, 256));
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

// Rows to add up in one chain of a sum over all rows of a sequence. One chain over n rows errs as
// n, blocks of b rows as sqrt(n (b + n / b)). Torch adds up each step's B rows and then the T steps
// of its RNN and GRU: B + T; these blocks, a compromise with speed, come to at most 1.25 times
// that.
inline int64_t sum_block(int64_t B, int64_t T) {
  const double root = std::sqrt(static_cast<double>(B)) + std::sqrt(static_cast<double>(T));
  return static_cast<int64_t>(root * root / 2) + 1;
}

// g [rows, N] transposed times x [rows, K], as a sum over blocks of rows.
template <class T>
at::Tensor transposed_times(const at::Tensor& g, const at::Tensor& x, int64_t block, int threads) {
  const int64_t rows = x.size(0);
  // Here oneDNN needs x transposed and a pass to add up: smaller blocks are not worth that.
  const bool onednn =
      use_onednn(g.scalar_type(), std::min(rows, block), g.size(1), x.size(1), 16 * kWorthOneDnn);
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
