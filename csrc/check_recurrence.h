// The argument checks of the ops rnnfast::recurrence and recurrence_backward, shared by every
// backend's binder, and the forms of what they return. A recurrence is one direction of a layer
// without its input product, and with what a step may do between its own product and the next one:
//
//   p    = W_hh (drop h)             or, of independent units, w_hh drop h
//   h_g  = gain p^ + b_hh            p^: p as it is, or normalised over all gates of its row
//   s'   = the cell of x_gates, h_g and the states; where c is normalised, h' = o tanh(gain c^ + b)
//   s    = keep s_before + (1 - keep) s'
#pragma once

#include "binder.h"

namespace rnnfast {

struct RecurrenceArguments {
  std::string_view cell;
  const std::optional<Tensor>& batch_sizes;
  int64_t B;
  const Tensor& w_hh;
  at::TensorList norm;
  const std::optional<Tensor>&keep, &drop;
  bool reverse;
};

// A checked problem; all that is optional is an undefined tensor where it is not given.
struct Recurrence {
  Layer layer;  // D = 1, I = 0
  bool reverse, independent, normalised, keeps_rows;
  Tensor w_hh;                  // [G*H, H] or, of independent units, [G*H]
  Tensor gain, gain_c, bias_c;  // [G*H], [H], [H]
  Tensor keep;                  // [rows, K*H] or, if not keeps_rows, [K*H]
  Tensor drop;                  // [B, H]

  int64_t gates() const { return layer.cell.gates * layer.H; }
  int64_t kept() const { return layer.cell.states * layer.H; }
  bool normalises_c() const { return normalised && layer.cell.emits; }
  // Whether the states that the cell made must be kept beside those after the step.
  bool keeps_fresh() const { return keep.defined() && layer.cell.reads_after; }
  Walk walk() const {
    return {{layer.T, layer.rows, layer.B, layer.batch.data(), layer.offset.data()}, reverse};
  }
};

inline Tensor or_undefined(const std::optional<Tensor>& t) { return t.value_or(Tensor()); }

// `like` gives the device, `dtype` is that of all operands; `rows` as x_gates or the reserve has.
inline Recurrence check_recurrence(const char* op, const RecurrenceArguments& a, const Tensor& like,
                                   int64_t rows, at::ScalarType dtype) {
  Recurrence r{};
  Layer& layer = r.layer;
  layer.cell = find_cell(op, a.cell);
  layer.D = 1, layer.dtype = dtype, r.reverse = a.reverse;
  layer.packed = a.batch_sizes.has_value() && a.batch_sizes->defined();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, ": x_gates must be of dtype float32, float64, bfloat16 or float16, got ", dtype);
  TORCH_CHECK(like.layout() == at::kStrided, op, ": tensors must be strided, got ", like.layout());
  TORCH_CHECK(a.w_hh.dim() == 1 || a.w_hh.dim() == 2, op, ": w_hh must be [G*H, H] or [G*H], got ",
              a.w_hh.dim(), " dimensions");
  r.independent = a.w_hh.dim() == 1;
  layer.H = r.independent ? a.w_hh.size(0) / layer.cell.gates : a.w_hh.size(1);
  const int64_t H = layer.H, gates = r.gates();
  check_tensor(op, "w_hh", a.w_hh, like, dtype,
               r.independent ? std::vector{gates} : std::vector{gates, H});
  r.w_hh = a.w_hh;
  TORCH_CHECK(a.B >= 0 && (a.B == 0 ? rows == 0 : layer.packed || rows % a.B == 0), op,
              ": x_gates must have T*B rows, got ", rows, " of B = ", a.B);
  check_steps(op, a.batch_sizes, rows, a.B ? rows / a.B : 0, a.B, layer);
  TORCH_CHECK(layer.B == a.B, op, ": batch_sizes must begin with B, ", a.B, ", got ", layer.B);
  const size_t vectors = layer.cell.emits ? 3 : 1;
  TORCH_CHECK(a.norm.empty() || a.norm.size() == vectors, op, ": norm must be empty or hold ",
              vectors, " tensors for cell ", layer.cell.name, ", got ", a.norm.size());
  r.normalised = !a.norm.empty();
  static constexpr const char* kNames[] = {"norm[0]", "norm[1]", "norm[2]"};
  Tensor* const places[] = {&r.gain, &r.gain_c, &r.bias_c};
  for (const auto i : c10::irange(a.norm.size())) {
    check_tensor(op, kNames[i], a.norm[i], like, dtype, {i == 0 ? gates : H});
    *places[i] = a.norm[i];
  }
  r.keep = or_undefined(a.keep), r.drop = or_undefined(a.drop);
  if (r.keep.defined()) {
    r.keeps_rows = r.keep.dim() != 1;
    check_tensor(op, "keep", r.keep, like, dtype,
                 r.keeps_rows ? std::vector{rows, r.kept()} : std::vector{r.kept()});
  }
  if (r.drop.defined()) check_tensor(op, "drop", r.drop, like, dtype, {a.B, H});
  return r;
}

inline bool is_empty(const Recurrence& r) { return is_empty(r.layer); }

// Of the reserve: a timeline for each state [rows + B, H]; the gates [rows, Q*H] if the cell keeps
// any; if normalised, p^ [rows, G*H] and the row's statistics, see kStatistics; where it
// `keeps_fresh`, s' [rows, K*H].
inline std::vector<std::vector<int64_t>> reserve_sizes(const Recurrence& r) {
  const Layer& layer = r.layer;
  std::vector<std::vector<int64_t>> sizes(layer.cell.states, {layer.rows + layer.B, layer.H});
  if (layer.cell.reserve) sizes.push_back({layer.rows, layer.cell.reserve * layer.H});
  if (r.normalised) {
    sizes.push_back({layer.rows, r.gates()});
    sizes.push_back({layer.rows, layer.cell.emits ? 3 : 1});
  }
  if (r.keeps_fresh()) sizes.push_back({layer.rows, r.kept()});
  return sizes;
}

// The reserve by name; of the backward pass, too, what it returns.
struct RecurrenceReserve {
  Tensor timelines[kMaxStates], gates, normalised, statistics, fresh;

  RecurrenceReserve(const Recurrence& r, at::TensorList list) {
    if (list.empty()) return;
    size_t next = 0;
    for (int k = 0; k < r.layer.cell.states; ++k) timelines[k] = list[next++];
    if (r.layer.cell.reserve) gates = list[next++];
    if (r.normalised) normalised = list[next++], statistics = list[next++];
    if (r.keeps_fresh()) fresh = list[next++];
  }
};

inline void check_reserve(const char* op, const Recurrence& r, at::TensorList reserve,
                          at::ScalarType compute) {
  const auto sizes = reserve_sizes(r);
  TORCH_CHECK(reserve.size() == sizes.size(), op, ": reserve must be the ", sizes.size(),
              " tensors that rnnfast::recurrence gave with train=True, got ", reserve.size());
  for (const auto k : c10::irange(sizes.size())) {
    check_tensor(op, "reserve", reserve[k], r.w_hh, compute, sizes[k]);
    TORCH_CHECK(reserve[k].is_contiguous(), op, ": reserve must be contiguous");
  }
}

// Sizes of what recurrence_backward returns, all in the type that kernels calculate in: the
// gradients of x_gates [rows, G*H]; where they are others, of h_g; if normalised, of p, too; where
// c is normalised, of gain c^ + b [rows, H]; then of each initial state [B, H].
inline std::vector<std::vector<int64_t>> gradient_sizes(const Recurrence& r) {
  const Layer& layer = r.layer;
  const bool own_h = r.normalised || layer.cell.shared_gates < layer.cell.gates;
  std::vector<std::vector<int64_t>> sizes(1 + own_h + r.normalised, {layer.rows, r.gates()});
  if (r.normalises_c()) sizes.push_back({layer.rows, layer.H});
  sizes.insert(sizes.end(), layer.cell.states, {layer.B, layer.H});
  return sizes;
}

}  // namespace rnnfast
