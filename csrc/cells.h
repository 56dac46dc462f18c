// The maths of every cell, once: gates of one step forward, and their gradients backward,
// elementwise.
//
//   x: the input-side pre-activations W_ih x_t + b_ih, gate by gate
//   h: the hidden-side pre-activations W_hh h_{t-1} + b_hh, gate by gate
//   s: the states (h, then c); forward takes those of t-1 and leaves those of t
//   q: the reserve of the gates, what backward needs besides the states
//
// backward takes q, the states before (p) and after (s) the step and, in ds, the gradients of the
// states after it. It gives the gradients of x and h in dx and dh, and leaves in ds what reaches
// the states before the step elementwise; what reaches h_{t-1} through W_hh is the driver's to add.
//
// A new cell is a struct here and a word in Cells, and a row in rnnfast/spec.py. On a GPU it then
// runs step by step. For kernels of whole sequences it says kWholeSequence, and gets a file for
// each of their families, such as cuda/grid_gru.cu; their shapes know cells by kGates.
#pragma once

#include <string_view>

#include "math.h"

namespace rnnfast {

struct Tanh {
  static constexpr const char* kCell = "rnn_tanh";
  template <class V>
  static RNNFAST_FN V value(V x) {
    return tanh(x);
  }
  template <class V>
  static RNNFAST_FN V slope(V y) {  // from the value
    return fma(V(0) - y, y, V(1));
  }
};

struct Relu {
  static constexpr const char* kCell = "rnn_relu";
  template <class V>
  static RNNFAST_FN V value(V x) {
    return relu(x);
  }
  template <class V>
  static RNNFAST_FN V slope(V y) {
    return select(y <= V(0), V(0), V(1));
  }
};

// h' = f(x + h)   Elman 1990, torch.nn.RNN
template <class Activation>
struct Elman {
  static constexpr const char* kName = Activation::kCell;
  static constexpr int kGates = 1, kStates = 1, kReserve = 0;
  static constexpr bool kWholeSequence = true;
  static constexpr int kSharedGates = 1;  // dx == dh for so many, the first ones
  // Whether forward reads h, which otherwise reaches it through W_hh alone. Where it does not,
  // backward leaves zero in its ds.
  static constexpr bool kReadsH = false;
  // Whether backward reads the last of the states before the step, and after it; others it does
  // not.
  static constexpr bool kReadsBefore = false, kReadsAfter = true;
  // Whether h follows from the second state alone, by `emit`, so that something may be done to that
  // one in between.
  static constexpr bool kEmits = false;

  template <class V>
  static RNNFAST_FN void forward(const V* x, const V* h, V* s, V*) {
    s[0] = Activation::value(x[0] + h[0]);
  }
  template <class V>
  static RNNFAST_FN void backward(const V*, const V*, const V* s, V* ds, V* dx, V* dh) {
    dx[0] = dh[0] = ds[0] * Activation::slope(s[0]);
    ds[0] = V(0);
  }
};

// r = sigmoid(x_r + h_r)   z = sigmoid(x_z + h_z)   n = tanh(x_n + r h_n)   h' = (1 - z) n + z h
// Cho et al. 2014 v1 (arXiv 1406.1078v1): the reset gate acts after the product ("linear before
// reset"), as in torch and cuDNN.
struct Gru {
  static constexpr const char* kName = "gru";
  static constexpr int kGates = 3, kStates = 1, kReserve = 4;  // gates r z n; reserve r z n h_n
  static constexpr bool kWholeSequence = true;
  static constexpr int kSharedGates = 2;
  static constexpr bool kReadsH = true;
  static constexpr bool kReadsBefore = true, kReadsAfter = false;
  static constexpr bool kEmits = false;

  template <class V>
  static RNNFAST_FN void forward(const V* x, const V* h, V* s, V* q) {
    const V r = sigmoid(x[0] + h[0]), z = sigmoid(x[1] + h[1]);
    const V n = tanh(fma(r, h[2], x[2]));
    s[0] = fma(z, s[0] - n, n);
    q[0] = r, q[1] = z, q[2] = n, q[3] = h[2];
  }
  template <class V>
  static RNNFAST_FN void backward(const V* q, const V* p, const V*, V* ds, V* dx, V* dh) {
    const V r = q[0], z = q[1], n = q[2], h_n = q[3];
    dx[2] = ds[0] * (V(1) - z) * fma(V(0) - n, n, V(1));
    dx[1] = dh[1] = ds[0] * (p[0] - n) * (z * (V(1) - z));
    dx[0] = dh[0] = dx[2] * h_n * (r * (V(1) - r));
    dh[2] = dx[2] * r;
    ds[0] = ds[0] * z;
  }
};

// i, f, o = sigmoid(x + h)   g = tanh(x_g + h_g)   c' = f c + i g   h' = o tanh(c')
// Hochreiter and Schmidhuber 1997 with Gers' forget gate
struct Lstm {
  static constexpr const char* kName = "lstm";
  static constexpr int kGates = 4, kStates = 2, kReserve = 4;  // gates and reserve i f g o
  static constexpr bool kWholeSequence = true;
  static constexpr int kSharedGates = 4;
  static constexpr bool kReadsH = false;
  static constexpr bool kReadsBefore = true, kReadsAfter = true;
  static constexpr bool kEmits = true;

  template <class V>
  static RNNFAST_FN void forward(const V* x, const V* h, V* s, V* q) {
    advance(x, h, s, q);
    s[0] = emit(q, s[1]);
  }
  // The gates and c'.
  template <class V>
  static RNNFAST_FN void advance(const V* x, const V* h, V* s, V* q) {
    q[0] = sigmoid(x[0] + h[0]), q[1] = sigmoid(x[1] + h[1]);
    q[2] = tanh(x[2] + h[2]), q[3] = sigmoid(x[3] + h[3]);
    s[1] = fma(q[1], s[1], q[0] * q[2]);
  }
  template <class V>
  static RNNFAST_FN V emit(const V* q, V c) {
    return q[3] * tanh(c);
  }
  template <class V>
  static RNNFAST_FN void backward(const V* q, const V* p, const V* s, V* ds, V* dx, V* dh) {
    const V dc = emit_backward(q, s[1], ds[0], ds[1], dx, dh);
    advance_backward(q, p, dc, ds, dx, dh);
  }
  // The gradient of c, of which `dc` has come otherwise, and that of the gate.
  template <class V>
  static RNNFAST_FN V emit_backward(const V* q, V c, V d_h, V dc, V* dx, V* dh) {
    const V o = q[3], tanh_c = tanh(c);
    dx[3] = dh[3] = d_h * tanh_c * (o * (V(1) - o));
    return fma(d_h * o, fma(V(0) - tanh_c, tanh_c, V(1)), dc);
  }
  template <class V>
  static RNNFAST_FN void advance_backward(const V* q, const V* p, V dc, V* ds, V* dx, V* dh) {
    const V i = q[0], f = q[1], g = q[2];
    dx[0] = dh[0] = dc * g * (i * (V(1) - i));
    dx[1] = dh[1] = dc * p[1] * (f * (V(1) - f));
    dx[2] = dh[2] = dc * i * fma(V(0) - g, g, V(1));
    ds[0] = V(0), ds[1] = dc * f;
  }
};

// Numbers of a row that a normalised recurrence keeps: 1 / the deviation of its product and, of a
// cell that emits, the mean of c' and 1 / its deviation.
template <class Cell>
inline constexpr int kStatistics = Cell::kEmits ? 3 : 1;

struct CellFacts {
  const char* name;
  int gates, states, reserve, shared_gates;
  bool reads_h, reads_after, emits, whole_sequence;
};

template <class Cell>
constexpr CellFacts facts_of() {
  return {Cell::kName,   Cell::kGates,      Cell::kStates, Cell::kReserve,      Cell::kSharedGates,
          Cell::kReadsH, Cell::kReadsAfter, Cell::kEmits,  Cell::kWholeSequence};
}

template <class... Cell>
struct CellList {
  static constexpr CellFacts kFacts[] = {facts_of<Cell>()...};

  template <class F>
  static bool dispatch(std::string_view name, F&& f) {
    return ((name == Cell::kName && (f(Cell{}), true)) || ...);
  }
};
using Cells = CellList<Elman<Tanh>, Elman<Relu>, Gru, Lstm>;

inline constexpr auto& kCells = Cells::kFacts;

// Calls f with the cell of that name; false if there is none.
template <class F>
bool dispatch_cell(std::string_view name, F&& f) {
  return Cells::dispatch(name, f);
}

// The same for those with kernels of whole sequences.
template <class F>
void dispatch_whole_sequence(std::string_view name, F&& f) {
  dispatch_cell(name, [&](auto cell) {
    if constexpr (decltype(cell)::kWholeSequence) f(cell);
  });
}

}  // namespace rnnfast
