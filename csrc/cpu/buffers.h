// What the two halves of the binder share: the compute type, the plan of a layer, buffers.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "binder.h"
#include "cpu/driver.h"

namespace rnnfast {

template <class T>
Plan plan_for(const Layer& layer) {
  const int threads =
      at::in_parallel_region() ? 1 : std::min(at::get_num_threads(), free_processors());
  return plan({layer.cell.gates, layer.T, layer.B, layer.I, layer.H, static_cast<int>(layer.D),
               layer.uniform, threads, Vec<T>::kWidth, static_cast<int>(sizeof(T)),
               threads > 1 ? hand_over() : 0});
}

// Rows padded to whole registers, and off the power of two at which all rows of a tile would fall
// into one set of the L1 cache.
template <class T>
int64_t padded(int64_t columns) {
  return whole_registers<T>(columns) + Vec<T>::kWidth;
}

// torch's name of S.
template <class S>
inline constexpr at::ScalarType kScalarType = c10::CppTypeToScalarType<S>::value;
template <>
inline constexpr at::ScalarType kScalarType<Bfloat16> = at::kBFloat16;

template <class S>
const S* const_data(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
S* mutable_data(const Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

// t stored as S, contiguous: as it is where it can be, for every call of an op has its price.
template <class S>
Tensor operand(const Tensor& t) {
  constexpr at::ScalarType kType = kScalarType<S>;
  return t.scalar_type() == kType && t.is_contiguous() ? t : t.to(kType).contiguous();
}

inline Tensor in_dtype(const Tensor& t, at::ScalarType dtype) {
  return t.scalar_type() == dtype ? t : t.to(dtype);
}

// Memory so large comes fresh from the system with every call, and to touch it first costs a
// microsecond a page: large pages make that a fraction. A wish only; numpy has it from this size
// on.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kLarge = size_t{4} << 20, kPage = 4096;
  if (bytes < kLarge) return;
  char* first = static_cast<char*>(data);
  first += (kPage - reinterpret_cast<uintptr_t>(first) % kPage) % kPage;
  madvise(first, (static_cast<char*>(data) + bytes - first) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

inline Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor result = at::empty(sizes, options);
  prefer_huge_pages(result.mutable_data_ptr(), result.nbytes());
  return result;
}

// Memory for one call, without what a tensor costs beside it.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t size)
      : memory_(c10::GetCPUAllocator()->allocate(size * static_cast<int64_t>(sizeof(T)))) {
    prefer_huge_pages(memory_.get(), size * sizeof(T));
  }
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  c10::DataPtr memory_;
};

template <class T>
Scratch<T> zero_scratch(int64_t size) {
  Scratch<T> result(size);
  std::fill_n(result.data(), size, T{});
  return result;
}

// at::zeros goes through a second op to fill; for the small buffers of a short call that shows.
template <class T>
Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor result = at::empty(sizes, options);
  std::memset(result.mutable_data_ptr<T>(), 0, result.nbytes());
  return result;
}

template <class From, class To>
void copy_rows(const From* src, int64_t src_stride, To* dst, int64_t dst_stride, int64_t rows,
               int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(src + r * src_stride, columns, dst + r * dst_stride);
}

}  // namespace rnnfast
