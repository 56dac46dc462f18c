// How the CTAs that share a tile of the batch exchange a vector each step.
//
// Vectors are double-buffered, which suffices: who sends round r + 2 has received round r + 1 from
// every group of every CTA, and a group sends r + 1 only after all its warps have read round r.
//
// A vector lies in shared memory as the 8 x 16-byte matrices that ldmatrix reads: [K tile][column
// of 8 batch rows][half of the tile][batch row] of 16 bytes. A K tile is 32 bytes of K, 16 units of
// a 16-bit type or 8 floats, so that one layout serves all types. Of a 16-bit type each matrix may
// be transposed, [unit] of 8 batch rows: two accumulators of a thread are then one word of it.
#pragma once

#include "cuda/shape.h"

namespace rnnfast::cuda {

// Makes 16-byte rows, 8 units of one batch row in a 16-bit type, of accumulators by shuffles. The
// eight lanes with equal lane % 4 hold the units; each brings the same kRows elements (numbered as
// in Accumulator) and leaves with one of the rows, which it shares with kSharers lanes.
template <class E, int kRows>
struct RowPack {
  static_assert(kRows == 1 || kRows == 2 || kRows == 4);
  static constexpr int kSharers = 8 / kRows;
  static DEVICE int row(int lane) {
    return kRows == 1 ? 0 : kRows == 2 ? lane >> 2 & 1 : (lane >> 2 & 1) | (lane >> 3 & 1) << 1;
  }
  static DEVICE int sharer(int lane) {
    return kRows == 1 ? lane >> 2 : kRows == 2 ? lane >> 3 : lane >> 4;
  }
  static DEVICE uint32_t low(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
  static DEVICE uint32_t high(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

  static DEVICE uint4 pack(const float (&values)[kRows], int lane) {
    const bool odd = lane & 4, upper_pair = lane & 8, upper_half = lane & 16;
    uint32_t keep, give;  // units 2m and 2m + 1 of one row
    if constexpr (kRows == 1) {
      const uint32_t own = dev::pack2<E>(values[0], 0.f), other = dev::shfl_xor(own, 4);
      keep = give = odd ? low(other, own) : low(own, other);
    } else if constexpr (kRows == 2) {
      const uint32_t own = dev::pack2<E>(values[0], values[1]), other = dev::shfl_xor(own, 4);
      keep = give = odd ? high(other, own) : low(own, other);
    } else {
      const uint32_t first = dev::pack2<E>(values[0], values[1]);
      const uint32_t second = dev::pack2<E>(values[2], values[3]);
      const uint32_t even_rows = low(first, second), odd_rows = high(first, second);
      const uint32_t own = odd ? odd_rows : even_rows,
                     other = dev::shfl_xor(odd ? even_rows : odd_rows, 4);
      const uint32_t left = odd ? other : own, right = odd ? own : other;
      keep = upper_pair ? high(left, right) : low(left, right);
      give = upper_pair ? low(left, right) : high(left, right);
    }
    const uint32_t got = dev::shfl_xor(give, 8);
    const uint32_t x = upper_pair ? got : keep, y = upper_pair ? keep : got;
    const uint32_t far_x = dev::shfl_xor(x, 16), far_y = dev::shfl_xor(y, 16);
    uint4 row;
    row.x = upper_half ? far_x : x, row.y = upper_half ? far_y : y;
    row.z = upper_half ? x : far_x, row.w = upper_half ? y : far_y;
    return row;
  }
};

// Rounds count from 1; round 0 is the initial vector. What each CTA adds to a round is contiguous,
// its source. All functions are called by all threads of the CTA.
template <class S>
struct Exchanger {
  using E = typename S::Element;
  static constexpr int kElements = S::kElements;
  using Pack = RowPack<E, kElements == 1 ? 1 : kElements == 2 ? 2 : 4>;
  static constexpr int kReceivers =  // of a row, per lane that has it
      (S::kPeers + Pack::kSharers - 1) / Pack::kSharers;
  uint8_t* global;  // grid kernels: two vectors of this tile
  uint32_t* flags;  // grid kernels: [kPeers], the last round that each CTA has sent
  int rank, group, split, lane;
  // kWords, kRows: shared memory of the receivers, and where in a vector there this lane sends to.
  dev::Remote receivers[S::kSending == Sending::kWords  ? S::kPeers
                        : S::kSending == Sending::kRows ? kReceivers
                                                        : 1];
  int send_at;

  DEVICE uint8_t* vector(int round) const {
    return dev::smem() + round % S::kVectorBuffers * S::kVectorBytes;
  }
  DEVICE uint64_t* bar(int round) const {
    return reinterpret_cast<uint64_t*>(dev::smem() + S::kBarsAt) + (round & 1);
  }
  // Where this group's part of a round begins in the vector.
  DEVICE int part_at() const { return rank * S::kSourceBytes + group * S::kGroupBytes; }
  DEVICE int thread_in_group() const { return split * kWarpSize + lane; }

  // Also a barrier of the CTA.
  DEVICE void init() const {
    if constexpr (S::kExchange == Exchange::kCluster) {
      if (dev::tid() == 0) {
        for (int i = 0; i < 2; ++i) {
          dev::mbar_init(bar(i), 1);
          dev::mbar_expect(bar(i), S::kVectorBytes);
        }
      }
      dev::cluster_sync();
    } else {
      dev::cta_sync();
    }
  }

  // Where this group collects its part of a round: in place, or on a stage to be sent from.
  DEVICE uint8_t* part(int round) const {
    return S::kExchange == Exchange::kCta
               ? vector(round) + part_at()
               : dev::smem() + S::kStageAt +
                     (S::kStageBuffers == 2 ? (round & 1) * S::kSourceBytes : 0) +
                     group * S::kGroupBytes;
  }

  // Stores vector `in` of unit 0..15 of a group and of a batch row of the tile.
  static DEVICE void store(uint8_t* part, int in, int unit, int batch, float value) {
    constexpr int kHalf = S::kTileUnits / 2;
    const int tile = in * (kMmaUnits / S::kTileUnits) + unit / S::kTileUnits;
    const int row = S::kTransposed ? unit % kHalf : batch % kMmaBatch;
    const int in_row = S::kTransposed ? batch % kMmaBatch : unit % kHalf;
    uint8_t* to = part + (tile * S::kColumns + batch / kMmaBatch) * kTileBytes +
                  unit % S::kTileUnits / kHalf * kCoreBytes + row * kRowBytes +
                  in_row * static_cast<int>(sizeof(E));
    if constexpr (S::kPrecision == Precision::kTf32) {
      *reinterpret_cast<uint32_t*>(to) = dev::to_tf32(value);
    } else {
      *reinterpret_cast<E*>(to) = narrow<E>(value);
    }
  }
  // Where, in a transposed part of a vector, the word of this lane's first two accumulators lies.
  DEVICE int word_at() const {
    return lane / 4 * kRowBytes + lane % 4 * static_cast<int>(sizeof(uint32_t)) +
           Accumulator::core(split * kElements);
  }
  // Collects what this thread has of a round.
  template <class Unit, class Batch>
  DEVICE void put(int round, const float (&values)[S::kIn][kElements], Unit unit,
                  Batch batch) const {
    UNROLL
    for (int in = 0; in < S::kIn; ++in) {
      UNROLL
      for (int e = 0; e < kElements; e += S::kTransposed ? 2 : 1) {
        if constexpr (S::kTransposed)
          *reinterpret_cast<uint32_t*>(part(round) + in * S::kInBytes + word_at() +
                                       Accumulator::core(e)) =
              dev::pack2<E>(values[in][e], values[in][e + 1]);
        else
          store(part(round), in, unit(e), batch(e), values[in][e]);
      }
    }
  }

  // Sends what this thread has of a round; element e is that of unit(e) and batch(e).
  template <class Unit, class Batch>
  DEVICE void send(int round, const float (&values)[S::kIn][kElements], Unit unit,
                   Batch batch) const {
    if constexpr (S::kSending == Sending::kRows || S::kSending == Sending::kWords) {
      UNROLL
      for (int in = 0; in < S::kIn; ++in) {
        if constexpr (S::kSending == Sending::kRows)
          send_rows(round, in, values[in]);
        else
          send_words(round, in, values[in]);
      }
    } else {
      put(round, values, unit, batch);
      if constexpr (S::kSending == Sending::kStage) {
        group_barrier();
        send_to_peers(round);
      } else if constexpr (S::kSending == Sending::kGlobal) {
        group_barrier();
        publish(round);
      } else if constexpr (S::kSums) {
        dev::cta_sync();
      }
    }
  }

  DEVICE void group_barrier() const { dev::group_sync(1 + group, S::kGroupThreads); }

  // Before the first send.
  DEVICE void place() {
    if constexpr (S::kSending == Sending::kRows) {
      send_at = part_at() + lane % 4 * 2 * kRowBytes + Accumulator::bytes(split * kElements) +
                Accumulator::bytes(Pack::row(lane));
      UNROLL
      for (int j = 0; j < kReceivers; ++j)
        receivers[j] =
            dev::remote(dev::smem(), (Pack::sharer(lane) + Pack::kSharers * j) % S::kPeers);
    } else if constexpr (S::kSending == Sending::kWords) {
      send_at = part_at() + word_at();
      UNROLL
      for (int peer = 0; peer < S::kPeers; ++peer) receivers[peer] = dev::remote(dev::smem(), peer);
    }
  }

  // Of a round, in the receivers' shared memory: this lane's place in the vector, and the mbarrier.
  DEVICE int send_at_round(int round, int in) const {
    return round % S::kVectorBuffers * S::kVectorBytes + in * S::kInBytes + send_at;
  }
  DEVICE int signal_at(int round) const {
    return S::kBarsAt + (round & 1) * static_cast<int>(sizeof(uint64_t));
  }

  DEVICE void send_words(int round, int in, const float (&values)[kElements]) const {
    const int to = send_at_round(round, in), signal = signal_at(round);
    UNROLL
    for (int e = 0; e < kElements; e += 2) {
      const uint32_t word = dev::pack2<E>(values[e], values[e + 1]);
      UNROLL
      for (int peer = 0; peer < S::kPeers; ++peer)
        dev::st_async4(receivers[peer] + (to + Accumulator::core(e)), word,
                       receivers[peer] + signal);
    }
  }

  DEVICE void send_rows(int round, int in, const float (&values)[kElements]) const {
    const uint4 row = Pack::pack(values, lane);
    const int to = send_at_round(round, in), signal = signal_at(round);
    UNROLL
    for (int j = 0; j < kReceivers; ++j) {
      if (S::kPeers % Pack::kSharers == 0 || Pack::sharer(lane) + Pack::kSharers * j < S::kPeers)
        dev::st_async16(receivers[j] + to, row, receivers[j] + signal);
    }
  }

  // kSums. Sends the sums of 16 units, of the CTAs' groups one after the other. A message has 16
  // bytes of each lane: its accumulators, in an order in which the receivers, each of whom takes
  // kElements, find no two of theirs in one bank.
  DEVICE void send_sums(int round, int unit_tile, const float (&sums)[4]) const {
    const int order = message_order();
    float v[4];
    UNROLL
    for (int j = 0; j < 4; ++j) {
      v[j] = sums[j];
      if constexpr (kElements < 2) v[j] = order & 1 ? sums[j ^ 1] : sums[j];
    }
    if constexpr (kElements < 4) {
      UNROLL
      for (int j = 0; j < 2; ++j) {
        const float low = v[j], high = v[j + 2];
        v[j] = order & 2 ? high : low, v[j + 2] = order & 2 ? low : high;
      }
    }
    const unsigned to = static_cast<unsigned>(unit_tile), peer = to / S::kGroups;
    const int to_group = static_cast<int>(to % S::kGroups);
    const int message = (rank * S::kGroups + to_group) * kMessageBytes + lane * 16;
    const dev::Remote base = dev::remote(dev::smem(), static_cast<int>(peer));
    uint4 bits;
    bits.x = as_bits(v[0]), bits.y = as_bits(v[1]), bits.z = as_bits(v[2]), bits.w = as_bits(v[3]);
    dev::st_async16(base + ((round & 1) * S::kVectorBytes + message), bits,
                    base + signal_at(round));
  }
  // Accumulator j of a lane is number j ^ message_order() of its message.
  DEVICE int message_order() const {
    return kElements == 4 ? 0 : kElements == 2 ? (lane >> 3 & 1) * 2 : lane >> 3 & 3;
  }
  // Adds up what all CTAs sent of this thread's elements, in the order of their ranks.
  DEVICE void add_sums(int round, float (&sum)[kElements][1]) const {
    struct alignas(4 * kElements) Numbers {
      float number[kElements];
    };
    const uint8_t* from = vector(round) + group * kMessageBytes + lane * 16 +
                          ((split * kElements) ^ message_order()) * static_cast<int>(sizeof(float));
    UNROLL
    for (int peer = 0; peer < S::kPeers; ++peer) {
      const Numbers n = *reinterpret_cast<const Numbers*>(from + peer * S::kGroups * kMessageBytes);
      UNROLL
      for (int e = 0; e < kElements; ++e)
        sum[e][0] = peer == 0 ? n.number[e] : sum[e][0] + n.number[e];
    }
  }

  DEVICE void send_to_peers(int round) const {
    constexpr int kRows = S::kGroupBytes / kRowBytes;
    UNROLL
    for (int i = 0; i < (kRows * S::kPeers + S::kGroupThreads - 1) / S::kGroupThreads; ++i) {
      const int index = i * S::kGroupThreads + thread_in_group();
      const int row = index % kRows * kRowBytes, peer = index / kRows;
      if (peer < S::kPeers)
        dev::st_async16(dev::remote(vector(round) + part_at() + row, peer),
                        *reinterpret_cast<const uint4*>(part(round) + row),
                        dev::remote(bar(round), peer));
    }
  }

  DEVICE void publish(int round) const {
    uint8_t* to = global + (round & 1) * S::kVectorBytes + part_at();
    for (int row = thread_in_group() * kRowBytes; row < S::kGroupBytes;
         row += S::kGroupThreads * kRowBytes)
      dev::store_l2(reinterpret_cast<uint4*>(to + row),
                    *reinterpret_cast<const uint4*>(part(round) + row));
    dev::cta_sync();
    if (dev::tid() == 0) dev::store_release(flags + rank, static_cast<uint32_t>(round));
  }

  // Waits until the whole vector of a round is in shared memory.
  DEVICE void receive(int round) const {
    if constexpr (S::kExchange == Exchange::kCta) {
      dev::cta_sync();
    } else if constexpr (S::kExchange == Exchange::kCluster) {
      dev::mbar_wait(bar(round), (round - 1) >> 1 & 1);
      // The bytes of round + 2 may arrive before this; its phase cannot end before this arrival.
      if (dev::tid() == 0) dev::mbar_expect(bar(round), S::kVectorBytes);
    } else {
      fetch(round);
    }
  }

  DEVICE void fetch(int round) const {
    for (int peer = dev::tid(); peer < S::kPeers; peer += S::kThreads) {
      const auto sent = [&] { return dev::load_acquire(flags + peer); };
      dev::wait_until([&] { return sent() >= static_cast<uint32_t>(round); });
    }
    dev::cta_sync();
    const uint8_t* from = global + (round & 1) * S::kVectorBytes;
    for (int at = dev::tid() * kRowBytes; at < S::kVectorBytes; at += S::kThreads * kRowBytes)
      *reinterpret_cast<uint4*>(vector(round) + at) =
          dev::load_l2(reinterpret_cast<const uint4*>(from + at));
    dev::cta_sync();
  }
};

}  // namespace rnnfast::cuda
