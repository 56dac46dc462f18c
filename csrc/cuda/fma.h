// What forward and backward of the float32 kernels share: the resident weights and the product, the
// sum over the lanes that share K, the rows of a tile in time, the exchange within a cluster.
//
// Lanes: `part` is a lane's share of K; lanes of one part are neighbours and have one unit each, so
// that loads of the vector are broadcast, and stores of neighbours lie side by side.
#pragma once

#include "cuda/args.h"
#include "cuda/device.h"
#include "cuda/fma_shape.h"
#include "cuda/types.h"
#include "unit.h"

namespace rnnfast::cuda {

template <class Cell_, int kIndex>
struct FmaShape {
  using Cell = Cell_;
  using Number = Careful;
  static constexpr FmaLayout kLayout = fma_layout(kFmaInstances[kIndex], Cell::kGates);
  static constexpr bool kBackward = kLayout.backward, kCluster = kLayout.peers > 1;
  static constexpr int kHidden = kLayout.hidden, kPeers = kLayout.peers, kRows = kLayout.rows;
  static constexpr int kShare = kLayout.share, kUnits = kLayout.units, kOwn = kLayout.own();
  static constexpr int kDepth = kLayout.depth(), kOut = kLayout.out();
  static constexpr int kThreads = kLayout.threads(), kColumns = kDepth / kShare;
  static constexpr int kLanes = kWarpSize / kShare;  // neighbours, with a unit each
  // A lane ends with one of kOutputs sums (of kValues numbers), as kCopies lanes do, and goes on
  // with one row of one unit. Backward in a cluster it sends the sums of all rows of one unit, or
  // of kKept units.
  static constexpr bool kSums = kBackward && kCluster;
  static constexpr int kOutputs = kSums ? kUnits : kRows * kUnits;
  static constexpr int kValues = kSums ? kRows : kOut;
  static constexpr int kKept = kOutputs > kShare ? kOutputs / kShare : 1;
  static constexpr int kCopies = kShare * kKept / kOutputs;
  static constexpr int kVectorBytes = kLayout.vector_bytes();
  static constexpr int kReceivedAt = kLayout.received_at();
  static constexpr int kReceivedBytes = kLayout.received_bytes(), kBarsAt = kLayout.bars_at();
  static constexpr int kRingAt = kLayout.ring_at();
  // Each lane numbers its units so that the one it ends with is the first: then the compiler knows
  // which sums to keep.
  static constexpr bool kOwnFirst = kOutputs == kUnits;
  static_assert(kColumns % 4 == 0 && kThreads % kWarpSize == 0 &&
                kCopies * kOutputs == kShare * kKept);
  static_assert((kSums || (kCopies >= 2 && kKept == 1)) && (kRows == 1 || kUnits == 1 || kSums));
  static_assert(!kCluster || (kLanes % 4 == 0 && 4 * kCopies >= kRows));
};

// ---- the product ----

template <class S>
struct FmaProduct {
  // Independent sums, to hide the latency of an addition.
  static constexpr int kSums = S::kRows * S::kUnits * S::kOut;
  static constexpr int kChains = kSums >= 4 ? 1 : kSums >= 2 ? 2 : 4;
  float w[S::kUnits][S::kOut][S::kColumns];

  // Of the columns of a lane come four at a time, `share` times four apart.
  static DEVICE int column(int part, int i) { return (i / 4 * S::kShare + part) * 4 + i % 4; }

  // The weights between unit `unit` and four numbers of the vector, from k on. Forward: of output
  // `out`, k counts the units of the layer; backward: k counts gates, then the units of this CTA.
  DEVICE void load4(float (&to)[4], const float* w_hh, int hidden, int rank, int unit, int out,
                    int k, bool wide) const {
    const int row_bytes = hidden * static_cast<int>(sizeof(float));
    if constexpr (S::kBackward) {
      const int from = rank * S::kOwn + k % S::kOwn;
      const float* first = dev::advance(w_hh + unit, k / S::kOwn * hidden + from, row_bytes);
      UNROLL
      for (int j = 0; j < 4; ++j)
        to[j] = unit < hidden && from + j < hidden ? *dev::advance(first, j, row_bytes) : 0.f;
    } else {
      const float* first = dev::advance(w_hh + k, out * hidden + unit, row_bytes);
      if (wide) {
        uint4 v{};
        if (unit < hidden && k < hidden) v = *reinterpret_cast<const uint4*>(first);
        to[0] = as_float(v.x), to[1] = as_float(v.y), to[2] = as_float(v.z), to[3] = as_float(v.w);
      } else {
        UNROLL
        for (int j = 0; j < 4; ++j) to[j] = unit < hidden && k + j < hidden ? first[j] : 0.f;
      }
    }
  }

  // unit_of(u): the computed units of this lane.
  template <class UnitOf>
  DEVICE void load(const float* w_hh, int hidden, int rank, int part, UnitOf unit_of) {
    const bool wide = hidden % 4 == 0 && dev::aligned16(w_hh);
    UNROLL
    for (int i = 0; i < S::kColumns; i += 4) {
      UNROLL
      for (int u = 0; u < S::kUnits; ++u) {
        UNROLL
        for (int out = 0; out < S::kOut; ++out) {
          float four[4];
          load4(four, w_hh, hidden, rank, dev::opaque(unit_of(u)), out, column(part, i), wide);
          UNROLL
          for (int j = 0; j < 4; ++j) w[u][out][i + j] = four[j];
        }
      }
    }
  }

  // The sums of this lane's part of K, from `vector` [rows, K] in shared memory. between() runs
  // while the first loads are on their way.
  template <class Between>
  DEVICE void run(const float* vector, int part, const float (&start)[S::kUnits][S::kOut],
                  float (&sum)[S::kOutputs][S::kValues], Between between) const {
    constexpr int kFirst = S::kColumns / 4 < 4 ? S::kColumns / 4 : 4;
    const float* from = vector + part * 4;
    uint4 first[kFirst];
    UNROLL
    for (int i = 0; i < kFirst; ++i) first[i] = load(from, 0, i);
    between();
    float acc[kChains][S::kRows][S::kUnits][S::kOut] = {};
    UNROLL
    for (int r = 0; r < S::kRows; ++r) {
      UNROLL
      for (int u = 0; u < S::kUnits; ++u) {
        UNROLL
        for (int out = 0; out < S::kOut; ++out) acc[0][r][u][out] = start[u][out];
      }
    }
    UNROLL
    for (int i = 0; i < S::kColumns / 4; ++i) {
      UNROLL
      for (int r = 0; r < S::kRows; ++r) {
        const uint4 bits = r == 0 && i < kFirst ? first[i % kFirst] : load(from, r, i);
        const float v[4] = {as_float(bits.x), as_float(bits.y), as_float(bits.z), as_float(bits.w)};
        UNROLL
        for (int j = 0; j < 4; ++j) {
          UNROLL
          for (int u = 0; u < S::kUnits; ++u) {
            UNROLL
            for (int out = 0; out < S::kOut; ++out) {
              float& to = acc[j % kChains][r][u][out];
              to = fma(w[u][out][i * 4 + j], v[j], to);
            }
          }
        }
      }
    }
    UNROLL
    for (int r = 0; r < S::kRows; ++r) {
      UNROLL
      for (int u = 0; u < S::kUnits; ++u) {
        UNROLL
        for (int out = 0; out < S::kOut; ++out) {
          float& to = S::kSums ? sum[u][r] : sum[r * S::kUnits + u][out];
          to = acc[0][r][u][out];
          if constexpr (kChains == 2) to += acc[1][r][u][out];
          if constexpr (kChains == 4)
            to = (to + acc[1][r][u][out]) + (acc[2][r][u][out] + acc[3][r][u][out]);
        }
      }
    }
  }

 private:
  static DEVICE uint4 load(const float* from, int row, int i) {
    return *reinterpret_cast<const uint4*>(from + row * S::kDepth + i * 4 * S::kShare);
  }
};

// Adds up the sums of the lanes that share K. A lane ends, in the first kKept sums, with those from
// part / kCopies * kKept on, which are its first ones if kOwnFirst.
template <class S>
DEVICE void add_parts(float (&sum)[S::kOutputs][S::kValues], int part) {
  UNROLL
  for (int mask = S::kShare / 2; mask >= S::kCopies; mask /= 2) {
    const int half =
        mask / S::kCopies * S::kKept;  // of the outputs left: a lane hands on the other half
    [[maybe_unused]] const bool upper = part & mask;
    UNROLL
    for (int o = 0; o < half; ++o) {
      UNROLL
      for (int v = 0; v < S::kValues; ++v) {
        float keep = sum[o][v], give = sum[o + half][v];
        if constexpr (!S::kOwnFirst) {
          const float low = keep, high = give;
          keep = upper ? high : low, give = upper ? low : high;
        }
        sum[o][v] = keep + dev::shfl_xor(give, mask * S::kLanes);
      }
    }
  }
  UNROLL
  for (int mask = S::kCopies / 2; mask > 0; mask /= 2) {
    UNROLL
    for (int v = 0; v < S::kValues; ++v) sum[0][v] += dev::shfl_xor(sum[0][v], mask * S::kLanes);
  }
}

// ---- a thread's place ----

template <class S, bool kPacked>
struct FmaWorker {
  static constexpr int kLaneUnits = S::kUnits * S::kLanes;  // computed by a warp
  const Steps& steps;                                       // of the kernel's arguments
  // The plan keeps T * B and H small enough for 32 bits. Where the compiler would compute numbers
  // again at every step, it is told not to know them.
  const int hidden, direction, lane, warp, part, neighbour, rank, first_row;
  const int count;      // steps at which the tile has living rows: the first `count` in time
  int first_time, way;  // time n is first_time + n * way
  int64_t gate_bytes;   // from a gate of a unit to the next one
  // The one unit and batch row whose maths this thread does, as `copies` threads do; backward in a
  // cluster not every thread has one.
  int unit, row, tile_row, copy;
  bool exists;
  int last;  // steps at which the row is alive; none where it does not exist
  uint8_t* const smem;
  FmaProduct<S> product;

  DEVICE FmaWorker(const Steps& all, int64_t H)
      : steps(all),
        hidden(dev::opaque(static_cast<int>(H))),
        direction(dev::opaque(dev::block_y())),
        lane(dev::tid() % kWarpSize),
        warp(dev::tid() / kWarpSize),
        part(lane / S::kLanes),
        neighbour(lane % S::kLanes),
        rank(dev::block_x() % S::kPeers),
        first_row(dev::block_x() / S::kPeers * S::kRows),
        count(dev::opaque(steps.living(first_row))),
        smem(dev::opaque_shared(dev::smem())) {
    gate_bytes = dev::opaque(hidden * int64_t{sizeof(float)});
    const bool from_end = (direction == 1) != S::kBackward;
    first_time = dev::opaque(from_end ? count - 1 : 0), way = dev::opaque(from_end ? -1 : 1);
    if constexpr (S::kSums) {
      unit = rank * S::kOwn + dev::tid() % S::kOwn;
      tile_row = dev::tid() / S::kOwn % S::kRows;
      copy = dev::tid() / (S::kRows * S::kOwn);
    } else {
      unit = first_unit() + computed(0);
      tile_row = S::kRows == 1 ? 0 : part / S::kCopies;
      copy = part % S::kCopies;
    }
    row = first_row + tile_row;
    exists = unit < hidden && row < all.largest;
    last = dev::opaque(!exists ? 0 : S::kRows == 1 ? count : steps.living(row));
  }

  // After all else, which would need registers beside the weights.
  DEVICE void load_weights(const float* const (&w_hh)[2]) {
    product.load(w_hh[direction], hidden, rank, part,
                 [this](int u) { return first_unit() + computed(u); });
  }

  // Of the units that a CTA computes: the one in the layer, and those of this lane.
  DEVICE int first_unit() const { return S::kSums ? 0 : rank * S::kOwn; }
  DEVICE int computed(int u) const {
    const int own = S::kOwnFirst ? part / S::kCopies * S::kKept : 0;
    return warp * kLaneUnits + (u ^ own) * S::kLanes + neighbour;
  }

  // Steps of the kernel count from 0: forward from the first one of the direction, backward from
  // its last one.
  DEVICE int time(int n) const { return first_time + n * way; }
  // Whether the thread's row is alive in step n.
  DEVICE bool alive(int n) const {
    if constexpr (!kPacked || S::kRows == 1) return n < last;
    return n < count && time(n) < last;
  }
  // The row of the sequence with which a step begins, of one that the tile has.
  DEVICE int offset(int n) const {
    const int t = time(n < count ? n : count - 1);
    if constexpr (kPacked) return static_cast<int>(steps.offset[t]);
    return t * static_cast<int>(steps.largest);
  }

  DEVICE int64_t rows_before() const { return direction * steps.rows; }
  // In a tensor [D, B, H].
  DEVICE int64_t in_state() const { return (direction * steps.largest + row) * hidden + unit; }
  // In a timeline [D, rows + B, H] of this direction: its first row; from a row of the sequence to
  // the state after it; the row of the state before all of batch row 0.
  DEVICE int64_t timeline() const {
    return direction * (steps.rows + steps.largest) * hidden + unit;
  }
  DEVICE int after() const { return direction == 1 ? 0 : static_cast<int>(steps.largest); }
  DEVICE int initial() const { return direction == 1 ? static_cast<int>(steps.rows) : 0; }
  DEVICE int64_t in_output() const { return direction * hidden + unit; }

  DEVICE float* vector(int round) const {
    return reinterpret_cast<float*>(smem + (round & 1) * S::kVectorBytes);
  }

  // ---- the exchange within a cluster ----

  DEVICE uint64_t* bar(int round) const {
    return reinterpret_cast<uint64_t*>(smem + S::kBarsAt) + (round & 1);
  }
  // Also a barrier of the CTA.
  DEVICE void start() const {
    if constexpr (S::kCluster) {
      if (dev::tid() == 0) {
        for (int i = 0; i < 2; ++i) {
          dev::mbar_init(bar(i), 1);
          dev::mbar_expect(bar(i), S::kReceivedBytes);
        }
      }
      dev::cluster_sync();
    } else {
      dev::cta_sync();
    }
  }
  // Waits for what all peers sent in a round. The bytes of round + 2 may arrive before this phase
  // is armed for them, but it cannot end before that.
  DEVICE void receive(int round) const {
    dev::mbar_wait(bar(round), (round - 1) >> 1 & 1);
    if (dev::tid() == 0) dev::mbar_expect(bar(round), S::kReceivedBytes);
  }
  // The numbers of four neighbours, whose units are consecutive.
  DEVICE uint4 gather(float value) const {
    const int first = lane & ~3;
    uint4 v;
    v.x = as_bits(dev::shfl(value, first)), v.y = as_bits(dev::shfl(value, first + 1));
    v.z = as_bits(dev::shfl(value, first + 2)), v.w = as_bits(dev::shfl(value, first + 3));
    return v;
  }
  // Which of the lanes that gather the same numbers this one is.
  static constexpr int kSenders = 4 * S::kCopies;
  DEVICE int sender() const { return lane % 4 + part % S::kCopies * 4; }
  // Bytes from `at` on in what CTA `peer` receives in a round.
  DEVICE void send(int round, int peer, int at, uint4 v) const {
    const dev::Remote base = dev::remote(smem, peer);
    dev::st_async16(base + (S::kReceivedAt + (round & 1) * S::kReceivedBytes + at), v,
                    base + (S::kBarsAt + (round & 1) * static_cast<int>(sizeof(uint64_t))));
  }
};

// ---- tensors whose rows are those of the sequence ----

// The thread's number of one step after the other. A dense sequence has its rows at equal
// distances; of a packed one, each step says where it begins.
template <class T, bool kPacked>
class FmaCursor {
 public:
  DEVICE FmaCursor() {}
  // `row_0`: the number in the first row of the sequence; `steps_before`: of the one to begin with.
  template <class S>
  DEVICE FmaCursor(const FmaWorker<S, kPacked>& self, T* row_0, int row_size, int steps_before) {
    const int64_t batch = self.steps.largest, row_bytes = row_size * int64_t{sizeof(T)};
    const int64_t first = self.row + (kPacked ? 0 : batch * self.time(-steps_before));
    at_ = dev::opaque_global(row_0 + first * row_size);
    bytes_ = dev::opaque(kPacked ? row_bytes : self.way * batch * row_bytes);
  }

  // `offset`: where the step begins.
  DEVICE T* at(int offset) const {
    return kPacked ? dev::advance(at_, offset, static_cast<int>(bytes_)) : dev::opaque_global(at_);
  }
  DEVICE void go_on() {
    if constexpr (!kPacked) at_ = dev::advance(at_, bytes_);
  }

 private:
  T* at_ = nullptr;
  int64_t bytes_ = 0;
};

// Where this thread's inputs lie on their way: copied kAhead steps before the one that reads them,
// into a ring in shared memory that no other thread looks at. What is kept of the gates takes the
// places of the first inputs, together.
template <class S>
struct FmaRing {
  static constexpr int kAhead = FmaLayout::kAhead, kInputs = S::kLayout.inputs();
  static constexpr int kInputBytes = S::kLayout.ring_threads() * static_cast<int>(sizeof(float));
  static constexpr int kKeptBytes = sizeof(KeptOf<typename S::Cell, float>);
  uint8_t* const first =
      dev::opaque_shared(dev::smem() + S::kRingAt + dev::tid() * static_cast<int>(sizeof(float)));
  uint8_t* const first_kept = dev::smem() + S::kRingAt + dev::tid() * kKeptBytes;

  DEVICE float* place(int n, int input) const {
    const int slot = n % FmaLayout::kSlots * kInputs + input;
    return reinterpret_cast<float*>(first + slot * kInputBytes);
  }
  // Nothing where it is not there: then the input is zero.
  DEVICE void copy(int n, int input, const float* from, bool there) const {
    dev::cp_async<4>(place(n, input), from, there ? 4 : 0);
  }
  template <class Kept>
  DEVICE Kept* kept(int n) const {
    return reinterpret_cast<Kept*>(first_kept + n % FmaLayout::kSlots * kInputs * kInputBytes);
  }
  template <class Kept>
  DEVICE void copy_kept(int n, const Kept* from, bool there) const {
    dev::cp_async<sizeof(Kept)>(kept<Kept>(n), from, there ? sizeof(Kept) : 0);
  }
};

}  // namespace rnnfast::cuda
