// Products by cuBLAS, on the current stream.
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>

#include "cuda/products.h"

namespace rnnfast::cuda {
namespace {

cudaDataType_t data_type(at::ScalarType type) {
  return type == at::kDouble     ? CUDA_R_64F
         : type == at::kFloat    ? CUDA_R_32F
         : type == at::kBFloat16 ? CUDA_R_16BF
                                 : CUDA_R_16F;
}

cublasComputeType_t compute(const Product& p) {
  if (p.type == at::kDouble) return CUBLAS_COMPUTE_64F;
  return p.type == at::kFloat && p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

// 1 and beta in the type of the sums.
struct Factors {
  float one = 1, beta;
  double wide_one = 1, wide_beta;
  bool wide;

  explicit Factors(const Product& p)
      : beta(static_cast<float>(p.beta)), wide_beta(p.beta), wide(p.type == at::kDouble) {}
  const void* alpha_pointer() const {
    return wide ? static_cast<const void*>(&wide_one) : static_cast<const void*>(&one);
  }
  const void* beta_pointer() const {
    return wide ? static_cast<const void*>(&wide_beta) : static_cast<const void*>(&beta);
  }
};

}  // namespace

// cuBLAS may add up the parts of a product of 16-bit types in 16 bits unless it is told not to.
class WideSums {
 public:
  WideSums(cublasHandle_t handle, at::ScalarType type)
      : handle_(type == at::kBFloat16 || type == at::kHalf ? handle : nullptr) {
    set(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  }
  WideSums(const WideSums&) = delete;
  ~WideSums() { set(CUBLAS_DEFAULT_MATH); }

 private:
  cublasHandle_t handle_;  // null: nothing to set

  void set(cublasMath_t mode) const {
    if (handle_) cublasSetMathMode(handle_, mode);
  }
};

// cuBLAS speaks of columns: what is row-major here is transposed there, so that it is given
// out^T = b^T a^T, and an operand that is transposed here is one that it must transpose.
void multiply(const Product& p) {
  // Whether TF32 is used is said per product; the handle's own mode follows another switch.
  const at::NoTF32Guard no_tf32;
  cublasHandle_t handle = at::cuda::getCurrentCUDABlasHandle();
  const WideSums wide_sums(handle, p.type);
  const Factors factors(p);
  const auto op = [](const Operand& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const int64_t lda = p.a.transposed ? p.rows : p.depth, ldb = p.b.transposed ? p.depth : p.columns;
  const cudaDataType_t type = data_type(p.type), out_type = data_type(p.out_type);
  if (p.count == 1) {
    TORCH_CUDABLAS_CHECK(cublasGemmEx_64(handle, op(p.b), op(p.a), p.columns, p.rows, p.depth,
                                         factors.alpha_pointer(), p.b.data, type, ldb, p.a.data,
                                         type, lda, factors.beta_pointer(), p.out, out_type,
                                         p.columns, compute(p), CUBLAS_GEMM_DEFAULT));
  } else {
    TORCH_CUDABLAS_CHECK(cublasGemmStridedBatchedEx_64(
        handle, op(p.b), op(p.a), p.columns, p.rows, p.depth, factors.alpha_pointer(), p.b.data,
        type, ldb, p.b.stride, p.a.data, type, lda, p.a.stride, factors.beta_pointer(), p.out,
        out_type, p.columns, p.out_stride, p.count, compute(p), CUBLAS_GEMM_DEFAULT));
  }
}

}  // namespace rnnfast::cuda
