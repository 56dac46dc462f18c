// The whole-sequence kernels for small layers of 16-bit numbers: their instances, what follows from
// each, what a step costs. Pure; shared by the plan, the launchers and the kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "cuda/request.h"

namespace rnnfast::cuda {

struct SmallInstance {
  bool backward;
  int hidden;  // H at most; a multiple of 32
};

// Forward and backward in turn.
inline constexpr SmallInstance kSmallInstances[] = {
    {false, 32}, {true, 32}, {false, 64},  {true, 64},
    {false, 96}, {true, 96}, {false, 128}, {true, 128},
};
inline constexpr int kSmallCount = std::size(kSmallInstances);

inline constexpr int kSmallRows = 4;        // of the batch that a CTA has
inline constexpr int kSmallAhead = 4;       // steps that inputs are asked for ahead
inline constexpr int kSmallPart = 32;       // numbers of K that one lane has of a row of w_hh
inline constexpr int kSmallMostChains = 4;  // accumulators of one output
inline constexpr int kSmallMmaClocks = 33;  // until an mma may add to the result of another
inline constexpr int kSmallMmaPeriod = 6;   // between two mma of a tensor core

struct SmallLayout {
  int hidden, in, out;  // numbers per unit: exchanged, and computed by the products

  constexpr int warps() const { return hidden / kMmaUnits; }
  constexpr int threads() const { return warps() * kWarpSize; }
  constexpr int parts() const { return in * hidden / kSmallPart; }
  // Of the vector: two parts in four matrices, what one ldmatrix brings.
  constexpr int blocks() const { return (parts() + 1) / 2; }
  constexpr int vector_bytes() const { return blocks() * 4 * kCoreBytes; }
  constexpr int word_bytes() const { return threads() * 4; }  // of all threads at one step
  constexpr int ring_at() const { return 2 * vector_bytes(); }
  constexpr int shared_bytes(int words) const {
    return ring_at() + words * kSmallAhead * word_bytes();
  }
  // The accumulators of the two parts of a block differ; more of them, so that the tensor cores
  // rather than the latency of an mma are the limit.
  constexpr int chains() const {
    const int tiles = 2 * parts();
    const int busy = tiles * out * std::max(1, warps() / 4) * kSmallMmaPeriod;
    int chains = std::min(2, parts());
    while (chains < kSmallMostChains && chains < tiles && tiles / chains * kSmallMmaClocks > busy)
      chains *= 2;
    return chains;
  }
};

constexpr SmallLayout small_layout(const SmallInstance& instance, int gates) {
  return {instance.hidden, instance.backward ? gates : 1, instance.backward ? 1 : gates};
}

// Microseconds a step of one CTA, as an H200 measured it at T = 100 (forward: the mean of inference
// and training; what was not measured lies between its neighbours), by H / 32 of the instance.
inline double small_step(const SmallInstance& instance, int gates) {
  constexpr double kForward[3][4] = {
      {0.13, 0.14, 0.20, 0.27}, {0.22, 0.26, 0.38, 0.52}, {0.25, 0.33, 0.50, 0.69}};
  constexpr double kBackward[3][4] = {
      {0.13, 0.14, 0.19, 0.24}, {0.23, 0.30, 0.48, 0.69}, {0.30, 0.40, 0.60, 0.83}};
  const auto& table = instance.backward ? kBackward : kForward;
  return table[gates == 1 ? 0 : gates - 2][instance.hidden / 32 - 1];
}

// CTAs that a multiprocessor holds.
inline int small_resident(const SmallLayout& l) {
  constexpr int kRegisters = 65536, kBesideWeights = 64;  // of a multiprocessor; of a thread
  return std::clamp(kRegisters / (l.threads() * (8 * l.parts() * l.out + kBesideWeights)), 1, 16);
}

// CTAs of one multiprocessor wait at the same time and work one after the other.
inline double small_cost(const SmallInstance& instance, const Request& p, int64_t tiles) {
  constexpr double kWork = 0.3;  // of a step: an estimate
  const int64_t each = (tiles * p.directions - 1) / p.device.processors + 1;
  const int64_t resident = small_resident(small_layout(instance, p.gates));
  const int64_t waves = (each - 1) / resident + 1;
  const auto together = static_cast<double>(std::min(each, resident));
  return small_step(instance, p.gates) * static_cast<double>(waves) * (1 + kWork * (together - 1));
}

inline bool small_serves(const SmallInstance& instance, const Request& p) {
  constexpr int64_t kMost = 1 << 30;  // steps and rows are counted in 32 bits
  const bool half = p.type == Type::kBfloat16 || p.type == Type::kFloat16;
  return half && instance.backward == p.backward && p.H <= instance.hidden && p.T <= kMost &&
         p.B <= kMost && p.device.arch >= 80;
}

inline void add_small_plans(const Request& p, Plans& plans) {
  for (int i = 0; i < kSmallCount; ++i) {
    const SmallInstance& instance = kSmallInstances[i];
    if (!small_serves(instance, p)) continue;
    const int64_t tiles = (p.B - 1) / kSmallRows + 1;
    plans.push_back(
        {Kernel::kSmall, i, instance.hidden, 1, kSmallRows, tiles, small_cost(instance, p, tiles)});
  }
}

}  // namespace rnnfast::cuda
