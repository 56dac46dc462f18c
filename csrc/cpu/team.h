// Threads that work on one direction of a layer together.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/plan.h"
#include "cpu/tiles.h"

namespace rnnfast::cpu {

// All threads of a team wait for each other: each raises a flag in a cache line of its own and
// looks at those of the others. Spins, then yields: with more threads than free cores it is slow,
// never stuck.
class Barrier {
 public:
  explicit Barrier(int threads) : flags_(threads > 1 ? new Flag[threads] : nullptr) {}

  // Returns whether the others came while it span.
  bool wait(int rank, int size, int64_t generation) {
    bool prompt = true;
    flags_[rank].reached.store(generation, std::memory_order_release);
    for (int other = 0; other < size; ++other)
      for (int spins = 0; flags_[other].reached.load(std::memory_order_acquire) < generation;
           ++spins) {
        if (spins < kSpins) {
          pause();
        } else {
          prompt = false;
          std::this_thread::yield();
        }
      }
    return prompt;
  }

 private:
  static constexpr int kSpins = 4000;
  struct alignas(64) Flag {
    std::atomic<int64_t> reached{0};
  };
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  std::unique_ptr<Flag[]> flags_;
};

// One thread's place in the team of a direction.
struct Member {
  int rank, size;
  Split split;
  Barrier* barrier;
  Tiles* tiles;                // null: the plan multiplies without
  int block_rows, outer_rows;  // see Plan
  int64_t generation = 0;

  bool splits_batch() const { return split == Split::kBatch && size > 1; }
  Range share(int64_t n) const { return {n * rank / size, n * (rank + 1) / size}; }
  // The same in whole blocks of `block`, but for the last.
  Range share(int64_t n, int64_t block) const {
    const Range blocks = share(ceil_div(n, block));
    return {blocks.begin * block, blocks.end * block < n ? blocks.end * block : n};
  }
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
    if (size > 1) barrier->wait(rank, size, ++generation);
  }
  // After every step: with a split of the batch no thread needs what another wrote.
  void wait_for_step() {
    if (split == Split::kHidden) wait();
  }
};

// Runs work(direction, member) on all threads of the plan, directions side by side.
template <class Work>
void run_teams(const Plan& plan, int directions, const Work& work) {
  Barrier barriers[2]{Barrier(plan.threads), Barrier(plan.threads)};
  const auto run_thread = [&](int threads, int thread) {
    Tiles of_thread;
    Tiles* const tiles = plan.tiles ? &of_thread : nullptr;
    if (threads < directions) {
      for (int d = thread; d < directions; d += threads)
        work(d, Member{0, 1, plan.split, &barriers[d], tiles, plan.block_rows, plan.outer_rows});
    } else {
      const int d = thread % directions;
      work(d, Member{thread / directions, (threads - d + directions - 1) / directions, plan.split,
                     &barriers[d], tiles, plan.block_rows, plan.outer_rows});
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

// Nanoseconds from one thread's store to another's sight of it, here and now: virtual cores move,
// and another program may hold the second one. The best of a few tries of a few round trips; after
// a try in which a thread had to yield there is no other: each could take as long again.
inline double measure_hand_over() {
  using Clock = std::chrono::steady_clock;
  constexpr int kTries = 4, kTrips = 8;
  double best = 1e6;
#if defined(_OPENMP)
  Barrier barrier(2);
  bool go_on = true;
#pragma omp parallel num_threads(2)
  if (omp_get_num_threads() == 2) {
    const int rank = omp_get_thread_num();
    int64_t generation = 0;
    barrier.wait(rank, 2, ++generation);
    for (int i = 0; i < kTries && go_on; ++i) {
      const int trips = i == 0 ? 1 : kTrips;
      bool prompt = true;
      const auto begin = Clock::now();
      for (int trip = 0; trip < trips; ++trip) prompt &= barrier.wait(rank, 2, ++generation);
      const double each =
          std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / trips;
      if (rank == 0) {
        if (each < best) best = each;
        go_on = prompt;
      }
      barrier.wait(rank, 2, ++generation);  // both have seen whether to go on
    }
  }
#endif
  return best;
}

// What the machine grants this process.
struct Grant {
  int processors;    // that may run it: a team of more would wait at its barriers for cores
  double hand_over;  // as measured
};

// Asked for at most ten times a second: processors are taken away, too, and where there is one
// there is nothing to measure. No lock, not even a local static variable's: one that another thread
// holds while this process forks would stay locked in the child.
inline Grant granted() {
  using Clock = std::chrono::steady_clock;
  static std::atomic<int64_t> asked_at{-1};
  static std::atomic<int> processors{1};
  static std::atomic<double> hand_over{0};
#if defined(_OPENMP)
  const int64_t now =
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
          .count();
  int64_t then = asked_at.load();
  if ((then < 0 || now - then >= 100) && asked_at.compare_exchange_strong(then, now)) {
    const int count = omp_get_num_procs();
    if (count > 1) hand_over.store(measure_hand_over());
    processors.store(count);
  }
#endif
  return {processors.load(), hand_over.load()};
}

}  // namespace rnnfast::cpu
