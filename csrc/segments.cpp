// rnnfast::segments: where the sequences of a batch begin anew and end, as one packed sequence of
// their segments. It counts and orders; whoever calls it moves the rows.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

namespace rnnfast {
namespace {

using at::Tensor;
using Segments = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kOp = "rnnfast::segments";

// Steps [begin, begin + length) of an element of the batch.
struct Segment {
  int64_t element, begin, length;
};

// More rows than that are a mistake.
constexpr int64_t kMostRows = int64_t{1} << 31;

// A checked problem: element b has steps [0, length[b]).
class Batch {
 public:
  std::vector<int64_t> length;

  Batch(const std::optional<Tensor>& resets, const std::optional<Tensor>& lengths,
        const std::optional<Tensor>& batch_sizes, int64_t T, int64_t B, bool batch_first)
      : along_(batch_first ? 1 : B), across_(batch_first ? T : 1) {
    TORCH_CHECK(resets || lengths, kOp, ": resets or lengths must be given");
    TORCH_CHECK(T >= 0 && B >= 0 && (T > 0 || B == 0), kOp,
                ": T and B must not be negative, and T positive but for no rows, got ", T, " and ",
                B);
    TORCH_CHECK(T == 0 || B <= kMostRows / T, kOp, ": no memory for ", T, " steps of ", B, " rows");
    if (batch_sizes) {
      packed(resets, *batch_sizes, T, B, lengths.has_value() || batch_first);
      return;
    }
    rows_ = T * B;
    if (resets) check("resets", *resets, at::kBool, {rows_});
    if (lengths) check("lengths", *lengths, at::kLong, {B});
    length.assign(B, T);
    if (!lengths) return;
    const Tensor given = lengths->contiguous();
    std::copy_n(given.const_data_ptr<int64_t>(), B, length.begin());
    for (const int64_t n : length)
      TORCH_CHECK(n >= 1 && n <= T, kOp, ": lengths must be from 1 to the number of steps, ", T,
                  ", got ", n);
  }

  // Where step t of element b stands.
  int64_t row(int64_t t, int64_t b) const {
    return (first_.empty() ? t * along_ : first_[t]) + b * across_;
  }

  static void check(const char* name, const Tensor& t, at::ScalarType dtype,
                    at::IntArrayRef sizes) {
    TORCH_CHECK(t.device().is_cpu() && t.layout() == at::kStrided && t.scalar_type() == dtype &&
                    t.sizes() == sizes,
                kOp, ": ", name, " must be a ", dtype, " tensor of sizes ", sizes,
                " on the CPU, got ", t.scalar_type(), " of sizes ", t.sizes(), " on ", t.device());
  }

 private:
  void packed(const std::optional<Tensor>& resets, const Tensor& batch_sizes, int64_t T, int64_t B,
              bool other) {
    TORCH_CHECK(!other, kOp, ": a packed sequence has its lengths, and no batch_first");
    check("batch_sizes", batch_sizes, at::kLong, {T});
    const Tensor given = batch_sizes.contiguous();
    const int64_t* sizes = given.const_data_ptr<int64_t>();
    for (const auto t : c10::irange(T)) {
      TORCH_CHECK(sizes[t] > 0 && (t ? sizes[t] <= sizes[t - 1] : sizes[t] == B), kOp,
                  ": batch_sizes must begin with B, be positive and never increase; got ", sizes[t],
                  " at step ", t);
      first_.push_back(rows_), rows_ += sizes[t];
    }
    check("resets", *resets, at::kBool, {rows_});
    length.assign(B, 0);
    for (const auto t : c10::irange(T))
      for (const auto b : c10::irange(sizes[t])) ++length[b];
  }

  std::vector<int64_t> first_;  // row of each step of a packed sequence
  int64_t along_, across_, rows_ = 0;
};

// The segments, longest first; of equal ones those of lower elements, and of one element the
// earlier, first.
std::vector<Segment> cut(const Batch& batch, const bool* begins) {
  std::vector<Segment> segments;
  for (const auto b : c10::irange(static_cast<int64_t>(batch.length.size())))
    for (const auto t : c10::irange(batch.length[b]))
      if (t == 0 || (begins && begins[batch.row(t, b)])) {
        segments.push_back({b, t, 1});
      } else {
        ++segments.back().length;
      }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.length > b.length; });
  return segments;
}

Segments segments(const std::optional<Tensor>& resets, const std::optional<Tensor>& lengths,
                  const std::optional<Tensor>& batch_sizes, int64_t T, int64_t B,
                  bool batch_first) {
  const Batch batch(resets, lengths, batch_sizes, T, B, batch_first);
  Tensor mask;
  if (resets) mask = resets->contiguous();
  const bool* begins = resets ? mask.const_data_ptr<bool>() : nullptr;
  const std::vector<Segment> found = cut(batch, begins);
  const auto count = static_cast<int64_t>(found.size());
  const int64_t longest = found.empty() ? 0 : found[0].length;
  int64_t covered = 0;
  for (const int64_t n : batch.length) covered += n;
  Tensor rows = at::empty({covered}, at::kLong), sizes = at::empty({longest}, at::kLong),
         elements = at::empty({count}, at::kLong), carries = at::zeros({2, count}, at::kBool),
         first = at::empty({B}, at::kLong), last = at::empty({B}, at::kLong);
  int64_t *row = rows.mutable_data_ptr<int64_t>(), *size = sizes.mutable_data_ptr<int64_t>();
  int64_t alive = count;
  for (const auto k : c10::irange(longest)) {
    while (found[alive - 1].length <= k) --alive;
    size[k] = alive;
    for (const auto s : c10::irange(alive))
      *row++ = batch.row(found[s].begin + k, found[s].element);
  }
  for (const auto s : c10::irange(count)) {
    const Segment& segment = found[s];
    const int64_t b = segment.element;
    elements.mutable_data_ptr<int64_t>()[s] = b;
    if (segment.begin == 0) {
      first.mutable_data_ptr<int64_t>()[b] = s;
      carries.mutable_data_ptr<bool>()[s] = !begins || !begins[batch.row(0, b)];
    }
    if (segment.begin + segment.length == batch.length[b]) {
      last.mutable_data_ptr<int64_t>()[b] = s;
      carries.mutable_data_ptr<bool>()[count + s] = true;
    }
  }
  return {rows, sizes, elements, carries, first, last};
}

TORCH_LIBRARY_IMPL(rnnfast, CPU, m) { m.impl("segments", &segments); }

}  // namespace
}  // namespace rnnfast
