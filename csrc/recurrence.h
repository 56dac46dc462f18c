// What the drivers of every backend are given: plain structs, no torch. Rows are the rows of a
// packed sequence: time t holds batch[t] of them from row offset[t] on. A dense [T, B, *] sequence
// is the packed one with batch[t] = B. All counts are in elements, 64 bits.
#pragma once

#include <cstdint>

#include "math.h"

namespace rnnfast {

struct Steps {
  int64_t count;          // T
  int64_t rows;           // sum of batch
  int64_t largest;        // B, the batch of the first step
  const int64_t* batch;   // [T], never increasing; or null, and offset too: dense
  const int64_t* offset;  // [T]

  RNNFAST_FN int64_t batch_at(int64_t t) const { return batch ? batch[t] : largest; }
  RNNFAST_FN int64_t offset_at(int64_t t) const { return batch ? offset[t] : t * largest; }
  // So many steps, the first ones in time, have this row of the batch.
  RNNFAST_FN int living(int row) const {
    int low = 0, high = static_cast<int>(count);
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (batch_at(middle) > row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// One direction in time over the steps: the order of the steps, and where the states of a row stand
// in its timeline [rows + B, H]: forward in time the initial states come first, backward in time
// last, so that in a dense sequence the state before row r and the state after it always lie B rows
// apart.
struct Walk {
  Steps steps;
  bool reverse;

  RNNFAST_FN int64_t batch_size() const { return steps.largest; }
  RNNFAST_FN int64_t time(int64_t i) const { return reverse ? steps.count - 1 - i : i; }
  RNNFAST_FN int64_t after(int64_t t, int64_t b) const {
    return steps.offset_at(t) + b + (reverse ? 0 : batch_size());
  }
  RNNFAST_FN int64_t initial(int64_t b) const { return b + (reverse ? steps.rows : 0); }
  // Of the border between step i and the step before it: that of both which comes later in time.
  RNNFAST_FN int64_t border(int64_t i) const { return time(i) + (reverse ? 1 : 0); }
  // Rows of time t that were alive in the step before; the others begin.
  RNNFAST_FN int64_t continued(int64_t t) const {
    const int64_t previous = reverse ? t + 1 : t - 1;
    if (previous < 0 || previous >= steps.count) return 0;
    const int64_t then = steps.batch_at(previous), now = steps.batch_at(t);
    return then < now ? then : now;
  }
  RNNFAST_FN int64_t before(int64_t t, int64_t b) const {
    return b < continued(t) ? after(reverse ? t + 1 : t - 1, b) : initial(b);
  }
  // Rows that step i of this walk leaves for good are those from here up to the batch of time(i).
  RNNFAST_FN int64_t staying(int64_t i) const {
    if (i + 1 == steps.count) return 0;
    const int64_t next = steps.batch_at(time(i + 1)), now = steps.batch_at(time(i));
    return next < now ? next : now;
  }
};

// Where the rows of one step stand, for one direction. The states before the step lie in the
// timeline from row `before` on for the first `continued` of its rows; the others begin with their
// initial states, which lie from row `initial` on. For the first `staying` rows there is a step
// after this one.
struct StepRows {
  int64_t count;      // rows of the step
  int64_t row;        // the first of them in the sequence
  int64_t after;      // and in the timeline, after the step
  int64_t before;     // and before it
  int64_t continued;  // see above
  int64_t initial;
  int64_t staying;

  static RNNFAST_FN StepRows of(const Walk& walk, int64_t t) {
    return {walk.steps.batch_at(t),
            walk.steps.offset_at(t),
            walk.after(t, 0),
            walk.before(t, 0),
            walk.continued(t),
            walk.initial(0),
            walk.staying(walk.reverse ? walk.steps.count - 1 - t : t)};
  }
};

// The most rows that a direction has in a step.
inline int64_t most_rows(const StepRows (&rows)[2], int64_t directions) {
  return directions == 2 && rows[1].count > rows[0].count ? rows[1].count : rows[0].count;
}

// keep a + (1 - keep) b: either of them, to the bit, where keep is 1 or 0 and both are numbers.
template <class V>
RNNFAST_FN V kept(V keep, V a, V b) {
  return fma(keep, a, (V(1) - keep) * b);
}

inline constexpr int kMaxStates = 2;
inline constexpr double kNormEpsilon = 1e-5;  // of variances, torch.nn.LayerNorm's

}  // namespace rnnfast
