// Which kernel runs a layer on the CPU, and how the threads share it: a pure function of what
// is asked.
#pragma once

#include <cstdint>

#include "problem.h"

namespace rnnfast::cpu {

// Bytes of the caches that a core has for itself; where the system does not say, as if they were
// small.
struct Caches {
  int64_t l1, l2;
};
inline constexpr Caches kSmallCaches{int64_t{32} << 10, int64_t{512} << 10};

// A problem, and what is at hand for it.
struct Request : Problem {
  bool uniform;       // dense, or packed with all lengths equal
  int threads;        // threads at hand
  int vector_width;   // elements per register
  int element_bytes;  // of the compute type
  double hand_over;   // nanoseconds from one thread's store to another's sight of it
  bool tiles;         // there are products by tiles of bfloat16 for it
  Caches caches;
};

enum class Split {
  kBatch,   // each thread has its rows of the batch: no barrier
  kHidden,  // each thread has its hidden units, its slice of w_hh stays in its cache: one barrier a
            // step
};

struct Plan {
  bool packed;  // weights packed once per call; false: so few rows that they are used as they stand
  Split split;  // within one direction
  bool tiles;   // products by tiles
  int threads;  // over all directions
  int group;    // register groups per panel of cells with one gate, and of every backward product;
                // no result depends on it
  int block_rows;            // rows of a product that go through K together, block by block, where
                             // they are more than a register tile's; no result depends on it
  int outer_rows;            // rows that are summed before they are added to a gradient of weights
  int64_t chunk_steps;       // steps whose x_gates are projected at once
  int64_t grad_chunk_steps;  // steps whose gate gradients become gradients of the weights at once
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a core does in a nanosecond: one row at a time, waiting for weights, in full register tiles
// (measured on Zen 4), and in tiles of bfloat16 with what else a step does (on an Emerald Rapids);
// what counts is the order of magnitude.
inline constexpr double kFlopsOfRow = 50, kFlopsOfTile = 100, kFlopsOfBfloat16Tile = 300;
// Waking the threads, waiting for them and handing them data take kWake nanoseconds and so many
// hand-overs a call; a step that all wait for takes some more. Time must shrink to kWorth at least.
inline constexpr double kWake = 2000, kCallHandOvers = 50, kStepHandOvers = 3, kWorth = 0.9;
// No hand-over between cores was seen to take less.
inline constexpr double kLeastHandOver = 40;
// Rows per thread from which register tiles run at full speed, so that splitting the batch costs
// nothing.
inline constexpr int64_t kRowsForFullTiles = 8, kRowsForFullBfloat16Tiles = 32;
// The batch is split where w_hh is near to each core, or for so many rows a thread that reading it
// counts for little; else each thread has its part of it. Near are half of a large L2, whose core
// sees an L3 hardly faster than memory (Emerald Rapids: 2 MB), and else a core's part of an L3 that
// is fast (Zen, with 1 MB of L2 at most; on Zen 3 a w_hh of 12 to 16 MB is 1.1 to 1.3 times faster
// in parts, one of 4 MB the same).
inline constexpr int64_t kLargeL2 = int64_t{3} << 19, kPartOfL3 = int64_t{8} << 20,
                         kRowsForFarWeights = 128;
// With fewer rows, register tiles are as fast as those of bfloat16.
inline constexpr int64_t kLeastTileRows = 8;
// Up to so many rows in the whole call, packing the weights costs more than it saves.
inline constexpr int64_t kFewRows = 20;
// Up to so many, packing is a large part of the call: threads that split the units pack for
// themselves alone, and hand nothing from core to core.
inline constexpr int64_t kShortRows = 64;
// x_gates of a chunk stay in the cache between the projection and the recurrence; but a chunk holds
// rows enough for a product that reads all of w_ih: I / 2 of them are written and read again for as
// many bytes. The rows of a chunk backward: a pass over the gradients of the weights for so many.
inline constexpr int64_t kChunkBytes = int64_t{1} << 20, kChunkRows = 64, kGradChunkRows = 256;

// Longer sums are made of blocks of this depth: their rounding error grows with the square root of
// the block and of the number of blocks, not of the whole.
inline constexpr int64_t kBlockDepth = 128;
// Registers of the widest panel, and rows that go through its blocks together at most.
inline constexpr int kMaxVectors = 4, kMaxBlockRows = 66;

// As many rows as have their sums in L1 beside a block; where these are few, none: each tile then
// reads all of K. With registers of 64 bytes a core asks L2 for more than half of what it gives
// (Emerald Rapids: 1.2 to 1.3 times faster in blocks; Zen 3, of 32: a GRU 1.1, the others the
// same).
inline int block_rows_of(const Request& p) {
  const int64_t width = int64_t{kMaxVectors} * p.vector_width * p.element_bytes,
                rows = (p.caches.l1 - kBlockDepth * width) / width;
  return static_cast<int>(rows < kMaxBlockRows / 2 ? 0
                          : rows < kMaxBlockRows   ? rows
                                                   : kMaxBlockRows);
}

// A gradient of weights may be as large as memory: it is read and written for as many rows as L1
// holds of a tile's columns, three registers at most.
inline int outer_rows_of(const Request& p) {
  const int64_t block = int64_t{3} * p.vector_width * p.element_bytes * kBlockDepth,
                blocks = p.caches.l1 / block, most = kGradChunkRows / kBlockDepth;
  return static_cast<int>(kBlockDepth * (blocks < 1 ? 1 : blocks < most ? blocks : most));
}

// Steps of B rows that come to `rows` at least.
constexpr int64_t steps_of(int64_t rows, int64_t B, int64_t T) {
  const int64_t steps = B > 0 ? ceil_div(rows, B) : T;
  return steps < T ? steps : T;
}

// Whether T steps of B rows are many enough to be packed, and to be multiplied by tiles.
constexpr bool many_rows(int64_t T, int64_t B) { return T * B > kFewRows; }
constexpr bool fill_tiles(int64_t T, int64_t B) { return many_rows(T, B) && B >= kLeastTileRows; }

inline bool by_tiles(const Request& p) { return p.tiles && fill_tiles(p.T, p.B); }

inline Split split_of(const Request& p, int threads) {
  const int64_t rows = ceil_div(p.B, threads);
  const bool even = rows * threads <= p.B + p.B / 8;
  const int64_t groups = ceil_div(p.H, p.vector_width);
  if (p.T * p.B <= kShortRows && groups % threads == 0) return Split::kHidden;
  const bool tiles = by_tiles(p);
  const int64_t full = tiles ? kRowsForFullBfloat16Tiles : kRowsForFullTiles;
  const bool near =
      rows > kRowsForFarWeights || p.gates * p.H * p.H * (tiles ? 2 : p.element_bytes) <=
                                       (p.caches.l2 < kLargeL2 ? kPartOfL3 : p.caches.l2 / 2);
  return p.uniform && even && rows >= full && near ? Split::kBatch : Split::kHidden;
}

// Nanoseconds of one direction on one thread.
inline double time_alone(const Request& p) {
  const double flops = 2.0 * p.T * p.B * p.gates * p.H * (p.H + p.I);
  return flops / (by_tiles(p) ? kFlopsOfBfloat16Tile : p.B < 4 ? kFlopsOfRow : kFlopsOfTile);
}

// Threads that one direction can keep busy.
inline int threads_of(const Request& p, Split split, int threads) {
  const int64_t pieces = split == Split::kBatch ? p.B : ceil_div(p.H, p.vector_width);
  const double waits = split == Split::kBatch || p.T == 1 ? 0 : kStepHandOvers * p.T,
               alone = time_alone(p), price = kWake + (kCallHandOvers + waits) * p.hand_over;
  const auto pays = [&](int n) { return n <= pieces && alone / n + price < kWorth * alone; };
  while (threads > 1 && !pays(threads)) --threads;
  return threads;
}

inline Plan plan(const Request& p) {
  Plan result{};
  result.packed = many_rows(p.T, p.B);
  result.tiles = by_tiles(p);
  const int most = p.threads / p.directions > 1 ? p.threads / p.directions : 1;
  result.split = split_of(p, most);
  const int per_direction = threads_of(p, result.split, most);
  const bool together =
      p.directions == 1 || (p.threads > 1 && time_alone(p) > kWake + kCallHandOvers * p.hand_over);
  result.threads = together ? per_direction * p.directions : 1;

  const int64_t groups = ceil_div(p.H, p.vector_width),
                mine = result.split == Split::kHidden ? groups / per_direction : groups;
  result.block_rows = block_rows_of(p), result.outer_rows = outer_rows_of(p);
  result.group = static_cast<int>(mine < 1 ? 1 : mine > 4 ? 4 : mine);

  const int64_t step_bytes = p.B * p.gates * p.H * p.element_bytes,
                by_bytes = step_bytes > 0 ? kChunkBytes / step_bytes : p.T,
                by_rows = steps_of(p.I / 2 > kChunkRows ? p.I / 2 : kChunkRows, p.B, p.T);
  result.chunk_steps = by_bytes > p.T ? p.T : by_bytes > by_rows ? by_bytes : by_rows;
  result.grad_chunk_steps = steps_of(kGradChunkRows, p.B, p.T);
  return result;
}

}  // namespace rnnfast::cpu
