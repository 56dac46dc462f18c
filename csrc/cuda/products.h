// Matrix products of the driver. `multiply` is the library's: cublas.cpp on a GPU.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include <memory>

#include "binder.h"

namespace rnnfast::cuda {

// The address of an element of a contiguous tensor.
inline char* address(const Tensor& t, int64_t element) {
  return static_cast<char*>(t.mutable_data_ptr()) +
         element * static_cast<int64_t>(t.element_size());
}
inline const char* const_address(const Tensor& t, int64_t element) {
  return static_cast<const char*>(t.const_data_ptr()) +
         element * static_cast<int64_t>(t.element_size());
}

// An operand of a product: row-major matrices, `stride` elements apart.
struct Matrices {
  const void* data;
  int64_t stride;
  bool transposed;  // stored with rows and columns exchanged
};

// out [rows, columns] = a [rows, depth] b [depth, columns] + beta out, `count` times. Half types
// are added up in float32.
struct Product {
  int64_t count, rows, columns, depth;
  at::ScalarType type;  // of a and b
  Matrices a, b;
  void* out;
  int64_t out_stride;
  at::ScalarType out_type;
  double beta;
  bool tf32;  // float32 operands may be rounded to TF32

  // Elements from one row of an operand, as it is stored, to the next.
  int64_t a_row() const { return a.transposed ? rows : depth; }
  int64_t b_row() const { return b.transposed ? depth : columns; }

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

// The power of two, 16 bytes at most, that the addresses of all rows of an operand are multiples
// of.
inline uint32_t alignment(const void* data, int64_t row, int64_t stride, at::ScalarType type) {
  const auto sizes = static_cast<uint64_t>((row | stride) * int64_t(c10::elementSize(type)));
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | sizes | 16;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// Products of one kind, run again and again: whatever the library has to find out, it finds out
// once for each count and number of rows. They may differ in these, in addresses and in strides, as
// long as the first of each size is no better aligned than others of this size. On the stream that
// is current when the first one runs.
class PreparedProducts {
 public:
  PreparedProducts();
  PreparedProducts(const PreparedProducts&) = delete;
  ~PreparedProducts();
  void run(const Product& product);

 private:
  struct Library;
  std::unique_ptr<Library> library_;
};

// Whether float32 products may use TF32: torch.nn's layers go by cuDNN's switch for RNNs.
inline bool tf32_allowed() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

// A contiguous matrix; of a tensor [D, rows, columns] that of one direction.
struct Matrix {
  const void* data;
  int64_t rows, columns;
  at::ScalarType type;

  static Matrix of(const Tensor& t) {
    return {t.const_data_ptr(), t.size(0), t.size(1), t.scalar_type()};
  }
  static Matrix of(const Tensor& t, int64_t direction) {
    const int64_t rows = t.size(1), columns = t.size(2);
    return {const_address(t, direction * rows * columns), rows, columns, t.scalar_type()};
  }
};

// out = a b + beta out, in the type of a and b; each or none of them transposed. Neither is empty.
inline void multiply(void* out, const Matrix& a, bool a_transposed, const Matrix& b,
                     bool b_transposed, double beta, bool tf32) {
  Product p{};
  p.count = 1, p.rows = a_transposed ? a.columns : a.rows;
  p.depth = a_transposed ? a.rows : a.columns, p.columns = b_transposed ? b.rows : b.columns;
  p.type = p.out_type = a.type, p.out = out, p.beta = beta, p.tf32 = tf32;
  p.a = {a.data, 0, a_transposed}, p.b = {b.data, 0, b_transposed};
  multiply(p);
}

}  // namespace rnnfast::cuda
