// The time loop of a layer on the CPU, forward and backward: a team of threads per direction walks
// over the steps, each step one product with packed weights whose sums go straight into the cell's
// gate maths.
#pragma once

#include <atomic>
#include <thread>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cells.h"
#include "cpu/gemm.h"
#include "plan.h"
#include "recurrence.h"

namespace rnnfast {

// All threads of a team wait for each other. Spins, then yields: with more threads than free cores
// it is slow, never stuck.
class Barrier {
 public:
  void wait(int size, int64_t& generation) {
    if (size == 1) return;
    const int64_t target = ++generation * size;
    arrived_.fetch_add(1, std::memory_order_acq_rel);
    for (int spins = 0; arrived_.load(std::memory_order_acquire) < target; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 4000;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  alignas(64) std::atomic<int64_t> arrived_{0};
};

// One thread's place in the team of a direction.
struct Member {
  int rank, size;
  Split split;
  Barrier* barrier;
  int64_t generation = 0;

  Range share(int64_t n) const { return {n * rank / size, n * (rank + 1) / size}; }
  // The part of [first, last) of the batch, and of the panels, that is this thread's. Batch shares
  // are of the whole batch, so that a row stays with its thread while the batch shrinks.
  Range rows(int64_t batch_size, int64_t first, int64_t last) const {
    if (split == Split::kHidden) return {first, last};
    const Range mine = share(batch_size);
    const Range result{mine.begin > first ? mine.begin : first, mine.end < last ? mine.end : last};
    return result.begin < result.end ? result : Range{0, 0};
  }
  Range panels(int64_t count) const {
    return split == Split::kHidden ? share(count) : Range{0, count};
  }
  void wait() {
    if (split == Split::kHidden) barrier->wait(size, generation);
  }
};

// Runs work(direction, member) on all threads of the plan, directions side by side.
template <class Work>
void run_teams(const Plan& plan, int directions, const Work& work) {
  Barrier barriers[2];
  const auto run_thread = [&](int threads, int thread) {
    if (threads < directions) {
      for (int d = thread; d < directions; d += threads)
        work(d, Member{0, 1, plan.split, &barriers[d]});
    } else {
      const int d = thread % directions;
      work(d, Member{thread / directions, (threads - d + directions - 1) / directions, plan.split,
                     &barriers[d]});
    }
  };
#if defined(_OPENMP)
  if (plan.threads > 1) {
#pragma omp parallel num_threads(plan.threads)
    run_thread(omp_get_num_threads(), omp_get_thread_num());  // may be fewer than asked for
    return;
  }
#endif
  run_thread(1, 0);
}

// Threads that can run at once: a team of more would wait at its barriers for cores.
inline int free_processors() {
#if defined(_OPENMP)
  static const int count = omp_get_num_procs();
  return count;
#else
  return 1;
#endif
}

// Runs body(i) for i in [0, n) over so many threads. Even a parallel region of one thread has its
// price.
template <class Body>
void parallel_for(int threads, int64_t n, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

template <class Cell>
inline constexpr int kReserveSlots = Cell::kReserve > 0 ? Cell::kReserve : 1;

// One step of the cell for `units` units of one row: sums are W_hh h, gate by gate `gate_stride`
// apart.
template <class Cell, class T>
RNNFAST_FN void forward_units(const ForwardDirection<T>& d, int64_t t, bool last, const T* h_in,
                              T* h_out, int64_t row, int64_t unit, int64_t units, const T* sums,
                              int64_t gate_stride) {
  using V = Vec<T>;
  const int64_t H = d.hidden, at = d.walk.steps.offset[t] + row,
                state = row * d.state_stride + unit;
  V x[Cell::kGates], h[Cell::kGates], s[Cell::kStates], q[kReserveSlots<Cell>];
  const T* x_gates = d.x_gates + (at - d.x_gates_row) * Cell::kGates * H + unit;
  for (int g = 0; g < Cell::kGates; ++g) {
    x[g] = V::load(x_gates + g * H, units);
    h[g] = V::load(sums + g * gate_stride, units);
    if (d.b_hh) h[g] = h[g] + V::load(d.b_hh + g * H + unit, units);
  }
  s[0] = V::load(h_in + state);
  if constexpr (Cell::kStates > 1) s[1] = V::load(d.c + state);
  Cell::forward(x, h, s, q);
  s[0].store(h_out + state);
  if constexpr (Cell::kStates > 1) s[1].store(d.c + state);
  s[0].store(d.output + at * d.output_stride + unit, units);
  for (int k = 0; k < Cell::kStates; ++k) {
    if (last) s[k].store(d.states_n[k] + row * H + unit, units);
    if (d.timelines[k]) s[k].store(d.timelines[k] + d.walk.after(t, row) * H + unit, units);
  }
  if (d.gates)
    for (int k = 0; k < Cell::kReserve; ++k)
      q[k].store(d.gates + (at * Cell::kReserve + k) * H + unit, units);
}

// Steps [steps.begin, steps.end) of one direction.
template <class Cell, class T>
void forward_steps(const ForwardDirection<T>& d, const Panels<T>& panels, Range steps,
                   Member& member) {
  const Range my_panels = member.panels(panels.count());
  for (int64_t i = steps.begin; i < steps.end; ++i) {
    const int64_t t = d.walk.time(i), staying = d.walk.staying(i);
    const Range rows = member.rows(d.walk.batch_size(), 0, d.walk.steps.batch[t]);
    const T* h_in = d.h[i & 1];
    T* h_out = d.h[1 - (i & 1)];
    const auto consume = [&](int64_t row, int64_t unit, int64_t units, const T* sums,
                             int64_t gate_stride) {
      forward_units<Cell>(d, t, row >= staying, h_in, h_out, row, unit, units, sums, gate_stride);
    };
    if (d.w_hh) {
      multiply(panels, d.w_hh, h_in, d.state_stride, panels.depth, rows, my_panels, consume);
    } else {
      for (int64_t row = rows.begin; row < rows.end; ++row)
        for (int64_t panel = my_panels.begin; panel < my_panels.end; ++panel)
          for (int g = 0; g < panels.groups_in(panel); ++g) {
            const int64_t unit = panels.first_unit(panel, g);
            consume(row, unit, panels.units_from(unit), d.h_gates + row * d.h_gates_stride + unit,
                    d.hidden);
          }
    }
    member.wait();
  }
}

// The gate gradients of one step for `units` units of one row: sums are what the step after sent
// back through W_hh.
template <class Cell, class T>
RNNFAST_FN void backward_units(const BackwardDirection<T>& d, int64_t t, T* carry, int64_t row,
                               int64_t unit, int64_t units, const T* sums) {
  using V = Vec<T>;
  const int64_t H = d.hidden, at = d.walk.steps.offset[t] + row,
                state = row * d.state_stride + unit;
  const int64_t after = d.walk.after(t, row) * H + unit, before = d.walk.before(t, row) * H + unit;
  V q[kReserveSlots<Cell>], s[Cell::kStates], p[Cell::kStates], ds[Cell::kStates], dx[Cell::kGates],
      dh[Cell::kGates];
  for (int k = 0; k < Cell::kReserve; ++k)
    q[k] = V::load(d.gates + (at * Cell::kReserve + k) * H + unit, units);
  for (int k = 0; k < Cell::kStates; ++k) {
    s[k] = V::load(d.timelines[k] + after, units);
    p[k] = V::load(d.timelines[k] + before, units);
    ds[k] = V::load(d.grad_states[k] + state);
  }
  ds[0] = ds[0] + V::load(sums);
  if (d.grad_output)
    ds[0] = ds[0] + V::load(d.grad_output + at * d.grad_output_stride + unit, units);
  Cell::backward(q, p, s, ds, dx, dh);
  for (int k = 0; k < Cell::kStates; ++k) ds[k].store(d.grad_states[k] + state);
  for (int g = 0; g < Cell::kGates; ++g) {
    dx[g].store(d.grad_x_gates + (at * Cell::kGates + g) * H + unit, units);
    dh[g].store(carry + row * d.carry_stride + g * H + unit, units);
    if (!Cell::kSameGradients && d.grad_h_gates)
      dh[g].store(d.grad_h_gates + (at * Cell::kGates + g) * H + unit, units);
  }
}

// All steps of one direction, from the last the forward pass made to its first.
template <class Cell, class T>
void backward_steps(const BackwardDirection<T>& d, const Panels<T>& panels, Member& member) {
  const Walk back{d.walk.steps, !d.walk.reverse};
  const Range my_panels = member.panels(panels.count());
  for (int64_t i = 0; i < back.steps.count; ++i) {
    const int64_t t = back.time(i), batch = back.steps.batch[t], staying = back.staying(i);
    T* carry = d.carry[1 - (i & 1)];
    const int64_t depth = i == 0 ? 0 : panels.depth;
    multiply(panels, d.w_hh, d.carry[i & 1], d.carry_stride, depth,
             member.rows(back.batch_size(), 0, batch), my_panels,
             [&](int64_t row, int64_t unit, int64_t units, const T* sums, int64_t) {
               backward_units<Cell>(d, t, carry, row, unit, units, sums);
             });
    member.wait();
    if (!d.want_h_0 || staying == batch) continue;
    // Rows that began here: what reaches their h_0. The next step reads this carry too and writes
    // the other one.
    multiply(panels, d.w_hh, carry, d.carry_stride, panels.depth,
             member.rows(back.batch_size(), staying, batch), my_panels,
             [&](int64_t row, int64_t unit, int64_t, const T* sums, int64_t) {
               T* grad = d.grad_states[0] + row * d.state_stride + unit;
               (Vec<T>::load(grad) + Vec<T>::load(sums)).store(grad);
             });
  }
}

}  // namespace rnnfast
