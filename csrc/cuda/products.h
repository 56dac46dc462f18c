// Matrix products of the driver. `multiply` is the library's: cublas.cpp on a GPU.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include "binder.h"

namespace rnnfast::cuda {

// One operand of a product: row-major matrices, `stride` elements apart.
struct Operand {
  const void* data;
  int64_t stride;
  bool transposed;  // stored with rows and columns exchanged
};

// out [rows, columns] = a [rows, depth] b [depth, columns] + beta out, `count` times. Half types
// are added up in float32.
struct Product {
  int64_t count, rows, columns, depth;
  at::ScalarType type;  // of a and b
  Operand a, b;
  void* out;
  int64_t out_stride;
  at::ScalarType out_type;
  double beta;
  bool tf32;  // float32 operands may be rounded to TF32

  // The i-th product alone.
  Product nth(int64_t i) const {
    const auto moved = [i](const void* p, int64_t stride, at::ScalarType t) {
      return static_cast<const char*>(p) + i * stride * static_cast<int64_t>(c10::elementSize(t));
    };
    Product result = *this;
    result.count = 1;
    result.a.data = moved(a.data, a.stride, type);
    result.b.data = moved(b.data, b.stride, type);
    result.out = const_cast<char*>(moved(out, out_stride, out_type));
    return result;
  }
};
void multiply(const Product& product);

// Whether float32 products may use TF32: torch.nn's layers go by cuDNN's switch for RNNs.
inline bool tf32_allowed() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

// out = a b + beta out, for contiguous matrices.
inline void multiply(const Tensor& out, const Tensor& a, bool a_transposed, const Tensor& b,
                     bool b_transposed, double beta, bool tf32) {
  const int64_t depth = a.size(a_transposed ? 0 : 1);
  if (out.numel() == 0) return;
  if (depth == 0) {  // an empty sum
    if (beta == 0) out.zero_();
    return;
  }
  multiply({1,
            out.size(0),
            out.size(1),
            depth,
            a.scalar_type(),
            {a.const_data_ptr(), 0, a_transposed},
            {b.const_data_ptr(), 0, b_transposed},
            out.mutable_data_ptr(),
            0,
            out.scalar_type(),
            beta,
            tf32});
}

// out [rows, G*H] = x [rows, I] times w_ih [G*H, I] transposed.
inline void project(const Tensor& out, const Tensor& x, const Tensor& w_ih, bool tf32) {
  multiply(out, x, false, w_ih, true, 0, tf32);
}

}  // namespace rnnfast::cuda
