// Which kernel runs a layer on the CPU, and how the threads share it: a pure function of the
// problem.
#pragma once

#include <cstdint>

namespace rnnfast {

struct Problem {
  int gates;           // G of the cell
  int64_t T, B, I, H;  // B = batch_sizes[0] when packed
  int directions;      // 1 or 2
  bool uniform;        // dense, or packed with all lengths equal
  int threads;         // threads at hand
  int vector_width;    // elements per register
  int element_bytes;   // of the compute type
};

enum class Split {
  kBatch,   // each thread has its rows of the batch: no barrier
  kHidden,  // each thread has its hidden units, its slice of w_hh stays in its cache: one barrier a
            // step
};

struct Plan {
  bool packed;  // weights packed once per call; false: so few rows that they are used as they stand
  Split split;  // within one direction
  int threads;  // over all directions
  int group;    // register groups per panel of cells with one gate, and of every backward product
  int64_t chunk_steps;       // steps whose x_gates are projected at once
  int64_t grad_chunk_steps;  // steps whose gate gradients become gradients of the weights at once
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A step must hold this much work per thread before a barrier pays, and a call this much before
// waking a thread does.
inline constexpr double kFlopsWorthABarrier = 1.2e4, kFlopsWorthAThread = 2e5;
// Rows per thread from which register tiles run at full speed, so that splitting the batch costs
// nothing.
inline constexpr int64_t kRowsForFullTiles = 8;
// Up to so many rows in the whole call, packing the weights costs more than it saves.
inline constexpr int64_t kFewRows = 8;
// x_gates of a chunk stay in the cache between the projection and the recurrence; but a chunk holds
// rows enough for a product that reads all of w_ih. The rows of a chunk backward: a pass over the
// gradients of the weights for so many.
inline constexpr int64_t kChunkBytes = int64_t{1} << 20, kChunkRows = 64, kGradChunkRows = 256;

// Steps of B rows that come to `rows` at least.
constexpr int64_t steps_of(int64_t rows, int64_t B, int64_t T) {
  const int64_t steps = B > 0 ? ceil_div(rows, B) : T;
  return steps < T ? steps : T;
}

inline Split split_of(const Problem& p, int threads) {
  const int64_t rows = ceil_div(p.B, threads);
  const bool even = rows * threads <= p.B + p.B / 8;
  return p.uniform && even && rows >= kRowsForFullTiles ? Split::kBatch : Split::kHidden;
}

// Of one direction: of a step's recurrent product, and of the call.
inline double step_flops(const Problem& p) { return 2.0 * p.gates * p.H * p.H * p.B; }
inline double call_flops(const Problem& p) {
  return p.T * (step_flops(p) + 2.0 * p.gates * p.H * p.I * p.B);
}

// Threads that one direction can keep busy.
inline int threads_of(const Problem& p, Split split, int threads) {
  const int64_t pieces = split == Split::kBatch ? p.B : ceil_div(p.H, p.vector_width);
  const double worth = split == Split::kBatch || p.T == 1 ? 0 : kFlopsWorthABarrier;
  const auto pays = [&](int n) {
    return n <= pieces && call_flops(p) / n >= kFlopsWorthAThread && step_flops(p) / n >= worth;
  };
  while (threads > 1 && !pays(threads)) --threads;
  return threads;
}

inline Plan plan(const Problem& p) {
  Plan result{};
  result.packed = p.T * p.B > kFewRows;
  const int most = p.threads / p.directions > 1 ? p.threads / p.directions : 1;
  result.split = split_of(p, most);
  const int per_direction = threads_of(p, result.split, most);
  const bool together = p.directions == 1 || (p.threads > 1 && call_flops(p) >= kFlopsWorthAThread);
  result.threads = together ? per_direction * p.directions : 1;

  const int64_t groups = ceil_div(p.H, p.vector_width),
                mine = result.split == Split::kHidden ? groups / per_direction : groups;
  result.group = static_cast<int>(mine < 1 ? 1 : mine > 4 ? 4 : mine);

  const int64_t step_bytes = p.B * p.gates * p.H * p.element_bytes,
                by_bytes = step_bytes > 0 ? kChunkBytes / step_bytes : p.T,
                by_rows = steps_of(kChunkRows, p.B, p.T);
  result.chunk_steps = by_bytes > p.T ? p.T : by_bytes > by_rows ? by_bytes : by_rows;
  result.grad_chunk_steps = steps_of(kGradChunkRows, p.B, p.T);
  return result;
}

}  // namespace rnnfast
