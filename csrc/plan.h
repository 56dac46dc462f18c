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
  bool packed;  // w_hh packed once per call; false (T = 1): one product like a projection
  Split split;  // within one direction
  int threads;  // over all directions
  int group;    // register groups per panel of cells with one gate, and of every backward product
  int64_t chunk_steps;  // steps whose x_gates are projected at once
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A step must hold this much work per thread before a barrier, or waking a thread, pays.
inline constexpr double kFlopsWorthAThread = 2e4;
// Rows per thread from which register tiles run at full speed, so that splitting the batch costs
// nothing.
inline constexpr int64_t kRowsForFullTiles = 8;
// x_gates of a chunk stay in the cache between the projection and the recurrence, and in memory
// that the allocator hands out again without asking the system for fresh pages; but a chunk holds
// rows enough for a product that reads all of w_ih. 1 MB against 4 MB: 10 % at (128, 32, 256, 256);
// no least number of rows: 5 to 10 % lost at (256, 16, 1024, 1024).
inline constexpr int64_t kChunkBytes = int64_t{1} << 20, kChunkRows = 256;

inline Plan plan(const Problem& p) {
  Plan result{};
  result.packed = p.T > 1;
  const int64_t groups = ceil_div(p.H, p.vector_width);
  const double step_flops =
      2.0 * p.gates * p.H * (result.packed ? p.H : 8) * p.B;  // T = 1: gate maths only
  int per_direction = p.threads / p.directions;
  if (per_direction < 1) per_direction = 1;

  const int64_t rows = ceil_div(p.B, per_direction);
  const bool even_rows = rows * per_direction <= p.B + p.B / 8;
  result.split =
      p.uniform && even_rows && rows >= kRowsForFullTiles ? Split::kBatch : Split::kHidden;
  const int64_t pieces = result.split == Split::kBatch ? p.B : groups;
  if (per_direction > pieces) per_direction = static_cast<int>(pieces < 1 ? 1 : pieces);
  while (per_direction > 1 && step_flops / per_direction < kFlopsWorthAThread) --per_direction;

  const int64_t fair_group = result.split == Split::kHidden ? groups / per_direction : groups;
  result.group = static_cast<int>(fair_group < 1 ? 1 : fair_group > 4 ? 4 : fair_group);
  result.threads = p.threads < p.directions ? 1 : per_direction * p.directions;
  if (p.directions * step_flops * (result.packed ? p.T : 1) < 4 * kFlopsWorthAThread)
    result.threads = 1;

  const int64_t step_bytes = p.B * p.gates * p.H * p.element_bytes;
  const int64_t by_bytes = step_bytes > 0 ? kChunkBytes / step_bytes : p.T;
  const int64_t by_rows = p.B > 0 ? ceil_div(kChunkRows, p.B) : p.T;
  const int64_t steps = by_bytes > by_rows ? by_bytes : by_rows;
  result.chunk_steps = steps < p.T ? steps : p.T;
  return result;
}

}  // namespace rnnfast
