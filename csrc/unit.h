// One step of a cell for one unit of one row, on every backend: whatever the numbers lie in, memory
// or the registers of a kernel, the step is loaded, made and stored here; a `unit` says where they
// lie. Forward it has x(g), h(g) and state(k), which the step takes, and put_state(k, s) and
// put_gate(i, q) for its results; backward gate(i), before(k), after(k) and grad(k), and
// put_grad(k, ds), put_x(g, dx), put_h(g, dh). It is a class that has them, or they are given one
// by one, in this order.
#pragma once

#include "cells.h"

// GCC would keep the arrays in memory, copied by 16 bytes and read by 32 or 64, for which the
// processor waits.
#if defined(__CUDACC__)
#define RNNFAST_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define RNNFAST_UNROLL _Pragma("GCC unroll 4")
#else
#define RNNFAST_UNROLL
#endif

namespace rnnfast {

template <class Cell>
inline constexpr int kReserveSlots = Cell::kReserve > 0 ? Cell::kReserve : 1;

template <class Cell, class V, class Unit>
RNNFAST_FN void forward_unit(const Unit& unit) {
  V x[Cell::kGates], h[Cell::kGates], s[Cell::kStates], q[kReserveSlots<Cell>];
  RNNFAST_UNROLL
  for (int g = 0; g < Cell::kGates; ++g) x[g] = unit.x(g), h[g] = unit.h(g);
  RNNFAST_UNROLL
  for (int k = 0; k < Cell::kStates; ++k) s[k] = unit.state(k);
  Cell::forward(x, h, s, q);
  RNNFAST_UNROLL
  for (int k = 0; k < Cell::kStates; ++k) unit.put_state(k, s[k]);
  RNNFAST_UNROLL
  for (int i = 0; i < Cell::kReserve; ++i) unit.put_gate(i, q[i]);
}

template <class Cell, class V, class X, class H, class State, class PutState, class PutGate>
RNNFAST_FN void forward_unit(const X& x, const H& h, const State& state, const PutState& put_state,
                             const PutGate& put_gate) {
  struct Unit {
    const X& x;
    const H& h;
    const State& state;
    const PutState& put_state;
    const PutGate& put_gate;
  };
  forward_unit<Cell, V>(Unit{x, h, state, put_state, put_gate});
}

// Of a cell that emits the first part: put_gate(i, q), put_c(c').
template <class Cell, class V, class Unit, class PutGate, class PutC>
RNNFAST_FN void advance_unit(const Unit& unit, const PutGate& put_gate, const PutC& put_c) {
  V x[Cell::kGates], h[Cell::kGates], s[Cell::kStates], q[kReserveSlots<Cell>];
  RNNFAST_UNROLL
  for (int g = 0; g < Cell::kGates; ++g) x[g] = unit.x(g), h[g] = unit.h(g);
  RNNFAST_UNROLL
  for (int k = 0; k < Cell::kStates; ++k) s[k] = unit.state(k);
  Cell::advance(x, h, s, q);
  RNNFAST_UNROLL
  for (int i = 0; i < Cell::kReserve; ++i) put_gate(i, q[i]);
  put_c(s[1]);
}

template <class Cell, class V, class Unit>
RNNFAST_FN void backward_unit(const Unit& unit) {
  V q[kReserveSlots<Cell>], p[Cell::kStates], s[Cell::kStates], ds[Cell::kStates], dx[Cell::kGates],
      dh[Cell::kGates];
  RNNFAST_UNROLL
  for (int i = 0; i < Cell::kReserve; ++i) q[i] = unit.gate(i);
  RNNFAST_UNROLL
  for (int k = 0; k < Cell::kStates; ++k)
    p[k] = unit.before(k), s[k] = unit.after(k), ds[k] = unit.grad(k);
  Cell::backward(q, p, s, ds, dx, dh);
  RNNFAST_UNROLL
  for (int k = 0; k < Cell::kStates; ++k) unit.put_grad(k, ds[k]);
  RNNFAST_UNROLL
  for (int g = 0; g < Cell::kGates; ++g) unit.put_x(g, dx[g]), unit.put_h(g, dh[g]);
}

template <class Cell, class V, class Gate, class Before, class After, class Grad, class PutGrad,
          class PutX, class PutH>
RNNFAST_FN void backward_unit(const Gate& gate, const Before& before, const After& after,
                              const Grad& grad, const PutGrad& put_grad, const PutX& put_x,
                              const PutH& put_h) {
  struct Unit {
    const Gate& gate;
    const Before& before;
    const After& after;
    const Grad& grad;
    const PutGrad& put_grad;
    const PutX& put_x;
    const PutH& put_h;
  };
  backward_unit<Cell, V>(Unit{gate, before, after, grad, put_grad, put_x, put_h});
}

}  // namespace rnnfast
