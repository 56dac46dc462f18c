// Products by cuBLAS, on the current stream.
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <ATen/ops/empty.h>
#include <cublasLt.h>

#include <map>
#include <optional>
#include <utility>

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

cublasOperation_t op(const Matrices& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

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

namespace {

// cuBLAS speaks of columns: what is row-major here is transposed there, so that it is given
// out^T = b^T a^T, and an operand that is transposed here is one that it must transpose.
void multiply_with(cublasHandle_t handle, const Product& p) {
  const WideSums wide_sums(handle, p.type);
  const Factors factors(p);
  const int64_t lda = p.a_row(), ldb = p.b_row();
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

// On the current stream. Whether TF32 is used is said per product; the handle's own mode follows
// another switch.
cublasHandle_t current_handle() {
  const at::NoTF32Guard no_tf32;
  return at::cuda::getCurrentCUDABlasHandle();
}

}  // namespace

void multiply(const Product& p) { multiply_with(current_handle(), p); }

// ---- prepared ----
namespace {

void set(cublasLtMatmulDesc_t to, cublasLtMatmulDescAttributes_t name, const auto& value) {
  TORCH_CUDABLAS_CHECK(cublasLtMatmulDescSetAttribute(to, name, &value, sizeof value));
}
void set(cublasLtMatrixLayout_t to, cublasLtMatrixLayoutAttribute_t name, const auto& value) {
  TORCH_CUDABLAS_CHECK(cublasLtMatrixLayoutSetAttribute(to, name, &value, sizeof value));
}
void set(cublasLtMatmulPreference_t to, cublasLtMatmulPreferenceAttributes_t name,
         const auto& value) {
  TORCH_CUDABLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(to, name, &value, sizeof value));
}

// Matrices of one size, as cuBLAS sees them: `rows` and `columns` of what is stored in rows.
class Layout {
 public:
  Layout(at::ScalarType type, int64_t rows, int64_t columns, int64_t count) {
    TORCH_CUDABLAS_CHECK(
        cublasLtMatrixLayoutInit(&layout_, data_type(type), columns, rows, columns));
    set(&layout_, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(count));
  }
  void set_stride(int64_t stride) {
    set(&layout_, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
  }
  cublasLtMatrixLayout_t get() { return &layout_; }

 private:
  cublasLtMatrixLayoutOpaque_t layout_;
};

// Products of one size, added up in float32, and how cublasLt does them. Its operands stand in
// cuBLAS's order: b, a.
class LtProduct {
 public:
  LtProduct(cublasLtHandle_t handle, const Product& p)
      : b_(p.type, p.b.transposed ? p.columns : p.depth, p.b_row(), p.count),
        a_(p.type, p.a.transposed ? p.depth : p.rows, p.a_row(), p.count),
        out_(p.out_type, p.rows, p.columns, p.count) {
    TORCH_CUDABLAS_CHECK(cublasLtMatmulDescInit(&operation_, compute(p), CUDA_R_32F));
    set(&operation_, CUBLASLT_MATMUL_DESC_TRANSA, op(p.b));
    set(&operation_, CUBLASLT_MATMUL_DESC_TRANSB, op(p.a));
    set_strides(p);
    choose(handle, p);
  }

  // Whether cublasLt has a way to do it.
  bool exists() const { return algorithm_.has_value(); }
  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(cublasLtHandle_t handle, const Product& p, void* workspace, cudaStream_t stream) {
    const Factors factors(p);
    if (p.count > 1) set_strides(p);
    TORCH_CUDABLAS_CHECK(cublasLtMatmul(handle, &operation_, factors.alpha_pointer(), p.b.data,
                                        b_.get(), p.a.data, a_.get(), factors.beta_pointer(), p.out,
                                        out_.get(), p.out, out_.get(), &*algorithm_, workspace,
                                        workspace_bytes_, stream));
  }

 private:
  cublasLtMatmulDescOpaque_t operation_;
  Layout b_, a_, out_;
  std::optional<cublasLtMatmulAlgo_t> algorithm_;
  size_t workspace_bytes_ = 0;

  void set_strides(const Product& p) {
    b_.set_stride(p.b.stride), a_.set_stride(p.a.stride), out_.set_stride(p.out_stride);
  }

  void choose(cublasLtHandle_t handle, const Product& p) {
    cublasLtMatmulPreferenceOpaque_t wanted;
    TORCH_CUDABLAS_CHECK(cublasLtMatmulPreferenceInit(&wanted));
    set(&wanted, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        static_cast<uint64_t>(at::cuda::getCUDABlasLtWorkspaceSize()));
    // Parts of a product of 16-bit types are added up in float32, as with WideSums.
    if (c10::elementSize(p.out_type) == 2)
      set(&wanted, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
          static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(&wanted, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        alignment(p.b.data, p.b_row(), p.b.stride, p.type));
    set(&wanted, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        alignment(p.a.data, p.a_row(), p.a.stride, p.type));
    const uint32_t of_out = alignment(p.out, p.columns, p.out_stride, p.out_type);
    set(&wanted, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out);
    set(&wanted, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_out);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, &operation_, b_.get(), a_.get(), out_.get(),
                                       out_.get(), &wanted, 1, &found, &count);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0 || found.state != CUBLAS_STATUS_SUCCESS)
      return;
    algorithm_ = found.algo, workspace_bytes_ = found.workspaceSize;
  }
};

}  // namespace

struct PreparedProducts::Library {
  const cublasHandle_t blas = current_handle();
  const cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  std::map<std::pair<int64_t, int64_t>, LtProduct> products;  // by count and rows
  // One after the other uses it. torch's allocator keeps it to this stream, or to a graph.
  Tensor workspace;

  LtProduct& find(const Product& p) {
    const std::pair size{p.count, p.rows};
    const auto known = products.find(size);
    if (known != products.end()) return known->second;
    LtProduct& made = products.try_emplace(size, handle, p).first->second;
    const auto bytes = static_cast<int64_t>(made.workspace_bytes());
    if (bytes > (workspace.defined() ? workspace.numel() : 0))
      workspace = at::empty({bytes}, at::TensorOptions(at::kCUDA).dtype(at::kByte));
    return made;
  }
};

PreparedProducts::PreparedProducts() = default;
PreparedProducts::~PreparedProducts() = default;

void PreparedProducts::run(const Product& p) {
  // Not before: autograd's thread has no CUDA context until its first launch, and torch warns of
  // it.
  if (!library_) library_ = std::make_unique<Library>();
  // Without tensor cores cublasLt's first choice is up to 1.5 times slower than cuBLAS's own (an
  // H200, B = 32, H = 1024), and less exact.
  const bool tensor_cores = c10::elementSize(p.type) == 2 || (p.type == at::kFloat && p.tf32);
  LtProduct* product = tensor_cores ? &library_->find(p) : nullptr;
  if (!product || !product->exists()) return multiply_with(library_->blas, p);
  product->run(library_->handle, p,
               product->workspace_bytes() > 0 ? library_->workspace.mutable_data_ptr() : nullptr,
               library_->stream);
}

}  // namespace rnnfast::cuda
