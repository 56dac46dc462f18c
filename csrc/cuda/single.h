// A sequence of one step in one launch: both products, the gates, the new states. A CTA owns some
// hidden units, with all their gates, of one tile of the batch. Its warps divide both products
// among them, some of them x w_ih, the others h w_hh, and each takes a part of K; their sums meet
// in shared memory, where each thread then finishes an element or two.
//
// The launch is dependent: its CTAs are in place, and its weights in the L2 cache, when the kernel
// before it in the stream ends.
#pragma once

#include "cuda/device.h"
#include "cuda/single_product.h"
#include "unit.h"

namespace rnnfast::cuda {

template <class S>
struct SingleWorker {
  using Cell = typename S::Cell;
  using E = typename S::Element;
  using V = Value<E>;
  using Product = std::conditional_t<S::kHalf, MmaProduct<S>, FmaProduct<S>>;
  static constexpr int kElements = S::kElements, kGates = Cell::kGates;
  const SingleArgs<E>& a;
  const int direction, warp, lane;
  int first_unit, first_row, units, living;  // that exist of the CTA
  float x[kElements][kGates], h[kElements][kGates], states[kElements][Cell::kStates];

  explicit DEVICE SingleWorker(const SingleArgs<E>& args)
      : a(args),
        direction(dev::block_y() < args.tiles ? 0 : 1),
        warp(dev::tid() / kWarpSize),
        lane(dev::tid() % kWarpSize) {
    first_unit = dev::block_x() * S::kUnits;
    first_row = (dev::block_y() - direction * a.tiles) * S::kBatch;
    units = smaller(static_cast<int>(a.layer.hidden) - first_unit, S::kUnits);
    living = smaller(static_cast<int>(batch()) - first_row, S::kBatch);
  }

  DEVICE int64_t batch() const { return a.layer.steps.largest; }

  // The unit and the batch row of the thread's e-th element, counted from the CTA's first.
  DEVICE int unit(int e) const { return (dev::tid() + e * kSingleThreads) % S::kUnits; }
  DEVICE int row(int e) const { return (dev::tid() + e * kSingleThreads) / S::kUnits; }
  DEVICE bool exists(int e) const { return unit(e) < units && row(e) < living; }
  // Position in a tensor [D, B, H].
  DEVICE int64_t in_state(int e) const {
    return (direction * batch() + first_row + row(e)) * a.layer.hidden + first_unit + unit(e);
  }

  // What the elements are made of beside the products.
  DEVICE void load_elements() {
    const E *b_ih = a.layer.b_ih[direction], *b_hh = a.layer.b_hh[direction];
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      UNROLL
      for (int g = 0; g < kGates; ++g) x[e][g] = h[e][g] = 0.f;
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k) states[e][k] = 0.f;
      if (!exists(e)) continue;
      UNROLL
      for (int g = 0; g < kGates; ++g) {
        const int at = g * static_cast<int>(a.layer.hidden) + first_unit + unit(e);
        if (b_ih != nullptr) x[e][g] = load_number(b_ih + at);
        if (b_hh != nullptr) h[e][g] = load_number(b_hh + at);
      }
      UNROLL
      for (int k = 0; k < Cell::kStates; ++k)
        if (a.layer.states_0[k] != nullptr)
          states[e][k] = load_number(a.layer.states_0[k] + in_state(e));
    }
  }

  // The part of x w_ih or of h w_hh that is the warp's.
  DEVICE Side<S> side(bool input) const {
    const int H = static_cast<int>(a.layer.hidden), depth = input ? a.inputs : H;
    const int begin = input ? warp * a.input_part : (warp - a.input_warps) * a.hidden_part;
    const int end = begin + (input ? a.input_part : a.hidden_part);
    const E* w = input ? a.w_ih[direction] : a.layer.w_hh[direction];
    const E* v = input ? a.x : a.layer.states_0[0] + direction * batch() * H;
    return {w + first_unit * depth, v + first_row * depth, H * depth, units, living, depth,
            smaller(begin, depth),  smaller(end, depth)};
  }

  DEVICE void multiply(Product& product) {
    const bool input = warp < a.input_warps;
    const Side<S> mine = side(input);
    const Opening opening{a.settled};
    const auto begun = [&] { load_elements(); };
    const int width = input ? a.input_width : a.hidden_width;
    if (width == 16) {
      product.template run<16>(mine, opening, begun);
    } else if (width == 8) {
      product.template run<8>(mine, opening, begun);
    } else {
      product.template run<static_cast<int>(sizeof(E))>(mine, opening, begun);
    }
  }

  DEVICE void add_products() {
    const float* sums = reinterpret_cast<const float*>(dev::smem());
    UNROLL
    for (int e = 0; e < kElements; ++e) {
      if (!exists(e)) continue;
      UNROLL
      for (int g = 0; g < kGates; ++g) {
        const float* from = sums + (g * S::kUnits + unit(e)) * S::kStride + row(e);
        UNROLL
        for (int w = 0; w < kSingleWarps; ++w) {
          const float part = from[w * S::kRows * S::kStride];
          x[e][g] += w < a.input_warps ? part : 0.f;
          h[e][g] += w < a.input_warps ? 0.f : part;
        }
      }
    }
  }

  DEVICE void update(int e) {
    const ForwardArgs<E>& layer = a.layer;
    const int64_t H = layer.hidden, b = first_row + row(e), j = first_unit + unit(e);
    const Walk walk{layer.steps, direction == 1};
    using Kept = KeptOf<Cell, E>;
    float gates[kReserveSlots<Cell>] = {};
    const auto put_state = [&](int k, V s) {
      const E after = narrow<E>(plain(s));
      if (k == 0) layer.output[(b * a.directions + direction) * H + j] = after;
      layer.states_n[k][in_state(e)] = after;
      if (layer.timelines[k] == nullptr) return;
      E* timeline = layer.timelines[k] + direction * (layer.steps.rows + batch()) * H + j;
      timeline[walk.initial(b) * H] = narrow<E>(states[e][k]);
      timeline[walk.after(0, b) * H] = after;
    };
    forward_unit<Cell, V>([&](int g) { return V(x[e][g]); }, [&](int g) { return V(h[e][g]); },
                          [&](int k) { return V(states[e][k]); }, put_state,
                          [&](int i, V q) { gates[i] = plain(q); });
    if (Cell::kReserve > 0 && layer.gates != nullptr)
      reinterpret_cast<Kept*>(layer.gates)[(direction * layer.steps.rows + b) * H + j] =
          Kept::of(gates);
  }

  DEVICE void run() {
    Product product(lane);
    multiply(product);
    float* sums = reinterpret_cast<float*>(dev::smem());
    product.store(sums + warp * S::kRows * S::kStride, living);
    dev::cta_sync();
    add_products();
    UNROLL
    for (int e = 0; e < kElements; ++e)
      if (exists(e)) update(e);
  }
};

template <class S>
KERNEL LAUNCH_BOUNDS_FOR(kSingleThreads, S::kResident)
    single_step(const SingleArgs<typename S::Element> args) {
  SingleWorker<S>(args).run();
}

}  // namespace rnnfast::cuda
