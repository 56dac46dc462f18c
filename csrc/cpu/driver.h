// What the drivers of layers and of recurrences share: the compute type, the plan of a layer,
// buffers.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "binder.h"
#include "cpu/caches.h"
#include "cpu/memory.h"
#include "cpu/steps_forward.h"

namespace rnnfast::cpu {

// S: what is multiplied.
template <class S>
Plan plan_for(const Layer& layer) {
  Request request{layer.problem(),
                  layer.uniform,
                  at::in_parallel_region() ? 1 : at::get_num_threads(),
                  Vec<S>::kWidth,
                  static_cast<int>(sizeof(Compute<S>)),
                  kLeastHandOver,
                  kByTiles<S>,
                  kCaches};
  const Plan best = plan(request);
  // To ask how far apart the threads are wakes one of them: never for a call that stays on one
  // thread however close they are.
  if (best.threads == 1) return best;
  const Grant grant = granted();
  request.threads = std::min(request.threads, grant.processors);
  request.hand_over = grant.hand_over;
  return plan(request);
}

// Rows padded to whole registers of memory, and off the power of two at which all rows of a tile
// would fall into one set of the L1 cache.
template <class S>
int64_t padded(int64_t columns) {
  constexpr int64_t kNumbers = kVectorBytes / sizeof(S);
  return (ceil_div(columns, kNumbers) + 1) * kNumbers;
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

// t in this type, contiguous: as it is where it can be, for every call of an op has its price.
inline Tensor in_dtype(const Tensor& t, at::ScalarType dtype) {
  return t.scalar_type() == dtype && t.is_contiguous() ? t : empty(t.sizes(), dtype).copy_(t);
}

template <class S>
Tensor operand(const Tensor& t) {
  return in_dtype(t, kScalarType<S>);
}

// at::zeros goes through a second op to fill; for the small buffers of a short call that shows.
template <class T>
Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype) {
  Tensor result = empty(sizes, dtype);
  std::memset(result.mutable_data_ptr<T>(), 0, result.nbytes());
  return result;
}

template <class From, class To>
void copy_rows(const From* src, int64_t src_stride, To* dst, int64_t dst_stride, int64_t rows,
               int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(src + r * src_stride, columns, dst + r * dst_stride);
}

}  // namespace rnnfast::cpu
