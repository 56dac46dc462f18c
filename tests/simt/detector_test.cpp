// The emulator finds what is wrong with a kernel, says where, and works on afterwards. One broken
// kernel per test. Exits with the number of tests that failed.
#include <cmath>

#include "check.h"

using namespace rnnfast;
using namespace rnnfast::dev;
using namespace rnnfast::emu;

struct Nothing {};

struct Pointer {
  float* p;
};

// ---- barriers ----

KERNEL skips_cta_sync(const Nothing) {
  if (block_x() != 1 || tid() != 37) cta_sync();
}

void deadlock() {
  check_fails(skips_cta_sync, {.grid_x = 2, .threads = 64, .cooperative = true}, {},
              {"kernel ", "skips_cta_sync", "deadlock", "block (1, 0), cta_sync: 63 threads from 0",
               "block (1, 0), ended: 1 threads from 37", "block (0, 0), ended: 64 threads"});
}

KERNEL counts_differ(const Nothing) { group_sync(1, tid() < 64 ? 96 : 128); }

void named_barrier_counts() {
  check_fails(counts_differ, {.threads = 128}, {},
              {"block (0, 0), thread ", "group_sync of ", "at a barrier that others wait at with"});
}

KERNEL half_warps(const Nothing) {
  if (tid() % 32 < 16) group_sync(2, 64);
}

void named_barrier_of_half_warps() {
  check_fails(half_warps, {.threads = 128}, {}, {"group_sync by a part of a warp"});
}

KERNEL wrong_id(const Nothing) { group_sync(16, 32); }
KERNEL wrong_count(const Nothing) { group_sync(1, 48); }

void named_barrier_arguments() {
  check_fails(wrong_id, {}, {}, {"group_sync with a wrong id"});
  check_fails(wrong_count, {.threads = 64}, {}, {"group_sync of 48 threads"});
}

KERNEL diverges(const Nothing) {
  if (tid() < 40)
    shfl_xor(1u, 1);
  else
    warp_sync();
}

KERNEL lane_leaves(const Nothing) {
  if (tid() != 3) shfl_xor(1u, 1);
}

KERNEL masks_differ(const Nothing) { shfl_xor(1u, tid() < 16 ? 1 : 2); }

void divergent_collectives() {
  check_fails(diverges, {.threads = 64}, {}, {"divergent warp", "shfl_xor", "warp_sync"});
  check_fails(lane_leaves, {.threads = 64}, {}, {"deadlock", "shfl_xor: 31 threads"});
  check_fails(masks_differ, {}, {}, {"shfl_xor with different or wrong masks"});
}

// ---- memory ----

struct Place {
  int64_t offset;
  float* out;
};

KERNEL writes_shared(const Place args) {
  if (tid() == 7) smem()[args.offset] = 1;
}
KERNEL reads_shared(const Place args) {
  *args.out = *reinterpret_cast<const volatile float*>(smem() + args.offset);
}

void shared_memory_bounds() {
  float out;
  const Launch l{.threads = 64, .smem_bytes = 1000};
  check_fails(writes_shared, l, {1024, &out},
              {"thread 7", "write to 24 bytes after the end of shared memory (1000 bytes)"});
  check_fails(reads_shared, l, {1024, &out}, {"read of 24 bytes after the end of shared memory"});
  check_fails(writes_shared, l, {1001, &out}, {"wrote beside the shared memory of block (0, 0)"});
  check_fails(writes_shared, l, {-1, &out}, {"wrote beside the shared memory of block (0, 0)"});
  check_fails(writes_shared, l, {-5000, &out}, {"before the start of shared memory"});
}

// Nor does a CTA find what an earlier one has left.
KERNEL reads_then_writes(const Pointer args) {
  auto* x = reinterpret_cast<volatile float*>(smem()) + tid();
  args.p[block_x() * threads() + tid()] = *x;
  *x = 1;
}

void uninitialised_shared_memory() {
  float out[6 * 1024] = {};
  check_runs(reads_then_writes, {.grid_x = 6, .threads = 1024, .smem_bytes = 4096}, {out});
  for (float x : out) check(std::isnan(x), "not NaN");
}

KERNEL writes_global(const Pointer args) {
  if (block_x() == 2 && tid() == 5) *args.p = 1;
}
KERNEL reads_global(const Pointer args) {
  if (tid() == 5) static_cast<void>(*static_cast<const volatile float*>(args.p));
}
KERNEL stores_l2(const Pointer args) { store_l2(reinterpret_cast<uint4*>(args.p), {}); }

void global_memory_bounds() {
  const GuardedBlock block("x", 400, 16);
  auto* x = reinterpret_cast<float*>(block.data());
  const Launch l{.grid_x = 3};
  check_runs(writes_global, l, {x + 99});
  check(x[99] == 1.f && std::isnan(x[0]), "a write inside");
  check_fails(writes_global, l, {x + 100},
              {"writes_global", "block (2, 0), thread 5", "write to 0 bytes after the end of x"});
  check_fails(reads_global, l, {x + 300}, {"read of 800 bytes after the end of x (400 bytes)"});
  check_fails(stores_l2, l, {x + 100}, {"0 bytes after the end of x"});
  check_fails(reads_global, l, {x - 2000}, {"read of 8000 bytes before the start of x"});
  check_fails(writes_global, l, {x - 1}, {"wrote beside x"});
  check_fails(writes_global, l, {nullptr}, {"write to an address that is of no block"});
  check_fails(stores_l2, l, {x + 1}, {"misaligned"});
  const GuardedBlock odd("odd", 4, 16);
  check_fails(writes_global, l, {reinterpret_cast<float*>(odd.data()) + 1}, {"wrote beside odd"});
}

int recurse(int depth) {
  volatile char frame[1024] = {};
  frame[static_cast<size_t>(depth) % sizeof frame] = 1;
  return depth == 0 ? 0 : recurse(depth - 1) + frame[0];
}
KERNEL overflows(const Nothing) { opaque(recurse(1000)); }

void stack_overflow() { check_fails(overflows, {}, {}, {"write to the page behind its stack"}); }

// ---- clusters ----

KERNEL sends_late(const Nothing) {
  auto* bar = reinterpret_cast<uint64_t*>(smem());
  if (tid() == 0) mbar_init(bar, 1);
  cluster_sync();
  if (cluster_rank() == 0 && tid() == 0) st_async16(remote(smem() + 16, 1), {}, remote(bar, 1));
}

void copy_into_an_ended_cta() {
  const Launch l{.grid_x = 2, .threads = 32, .cluster = 2, .smem_bytes = 32};
  check_may_fail(sends_late, l, {}, "lands in the shared memory of block (1, 0), which has ended");
  check_may_fail(sends_late, l, {}, "received 16 bytes that no mbar_expect announced");
}

struct Transfer {
  int expected, sent;  // 16-byte pieces
  bool expects, waits;
};

KERNEL transfers(const Transfer args) {
  auto* bar = reinterpret_cast<uint64_t*>(smem());
  if (tid() == 0) {
    mbar_init(bar, 1);
    if (args.expects) mbar_expect(bar, static_cast<uint32_t>(args.expected * 16));
  }
  cluster_sync();
  if (cluster_rank() == 0 && tid() < args.sent)
    st_async16(remote(smem() + 16, 1) + tid() * 16, {}, remote(bar, 1));
  if (cluster_rank() == 1 && args.waits) mbar_wait(bar, 0);
  cluster_sync();
}

void transactions() {
  const Launch l{.grid_x = 2, .threads = 32, .cluster = 2, .smem_bytes = 528};
  for (int seed = 0; seed < 20; ++seed) check_runs(transfers, l, {32, 32, true, true});
  check_fails(transfers, l, {3, 2, true, true},
              {"deadlock", "block (1, 0), mbar_wait (parity 0; missing 0 arrivals, 16 bytes)"});
  check_fails(transfers, l, {3, 3, false, true},
              {"deadlock", "block (1, 0), mbar_wait (parity 0; missing 1 arrivals, -48 bytes)"});
  check_may_fail(transfers, l, {2, 3, true, false}, "16 bytes that no mbar_expect announced");
}

// Data of the second phase may come before the first one has been waited for, not before it ends.
template <bool kWaits>
KERNEL two_phases(const Pointer args) {
  auto* bar = reinterpret_cast<uint64_t*>(smem());
  auto* data = reinterpret_cast<uint4*>(smem() + 16);
  if (tid() == 0) {
    mbar_init(bar, 1);
    mbar_expect(bar, 16);
  }
  cluster_sync();
  if (cluster_rank() == 0 && tid() == 0) {
    for (int phase = 0; phase < 2; ++phase) {
      st_async16(remote(data + phase, 1), {1, 1, 1, 1}, remote(bar, 1));
      if (kWaits && phase == 0)
        wait_until([&] { return load_acquire(reinterpret_cast<const uint32_t*>(args.p)) != 0; });
    }
  }
  if (cluster_rank() == 1 && tid() == 0) {
    mbar_wait(bar, 0);
    args.p[1] = static_cast<float>(data[0].x);
    store_release(reinterpret_cast<uint32_t*>(args.p), 1);
    mbar_expect(bar, 16);
    mbar_wait(bar, 1);
  }
  cluster_sync();
}

void early_transactions() {
  const auto right = [](auto kernel) {
    float x[2] = {0, 0};
    check_runs(kernel, {.grid_x = 2, .threads = 32, .cluster = 2, .smem_bytes = 48}, {x});
    return x[1] == 1.f;
  };
  for (int seed = 0; seed < 20; ++seed) check(right(two_phases<true>), "wrong data");
  check_breaks([&] { return right(two_phases<false>); });
}

KERNEL arrives_twice(const Nothing) {
  auto* bar = reinterpret_cast<uint64_t*>(smem());
  if (tid() > 0) return;
  mbar_init(bar, 1);
  mbar_expect(bar, 16);
  mbar_expect(bar, 16);
}
KERNEL no_init(const Nothing) { mbar_wait(reinterpret_cast<uint64_t*>(smem()), 0); }
KERNEL two_inits(const Nothing) { mbar_init(reinterpret_cast<uint64_t*>(smem()), 1); }

void mbarrier_uses() {
  const Launch l{.smem_bytes = 16};
  check_fails(arrives_twice, l, {}, {"more arrivals at an mbarrier of block (0, 0)"});
  check_fails(no_init, l, {}, {"mbar_wait without mbar_init"});
  check_fails(two_inits, l, {}, {"mbar_init of the same mbarrier again"});
}

struct Target {
  int offset, rank, bar_rank;
};
KERNEL sends(const Target args) {
  if (tid() > 0) return;
  st_async16(remote(smem(), args.rank) + args.offset, {}, remote(smem(), args.bar_rank));
}

void remote_addresses() {
  const Launch l{.grid_x = 2, .threads = 32, .cluster = 2, .smem_bytes = 64};
  check_fails(sends, l, {64, 1, 1}, {"st_async outside shared memory"});
  check_fails(sends, l, {8, 1, 1}, {"st_async to a misaligned address"});
  check_fails(sends, l, {16, 2, 2}, {"no rank 2 in this cluster"});
  check_fails(sends, l, {16, 1, 0}, {"data and mbarrier in different CTAs"});
}

KERNEL sends_without_init(const Nothing) {
  st_async16(remote(smem() + 16, 1), {}, remote(smem(), 1));
  cluster_sync();
}
KERNEL misaligned_word(const Nothing) { st_async4(remote(smem() + 2, 1), 0, remote(smem(), 1)); }
KERNEL misaligned_row(const Nothing) {
  uint32_t r[4];
  ldm4(r, smem() + 8);
}
KERNEL row_outside(const Pointer args) {
  uint32_t r[4];
  ldm4(r, args.p);
}

void shared_addresses() {
  check_fails(sends_without_init, {.grid_x = 2, .threads = 32, .cluster = 2, .smem_bytes = 64}, {},
              {"an mbarrier of block (1, 0) without mbar_init"});
  check_fails(misaligned_word, {.grid_x = 2, .threads = 32, .cluster = 2, .smem_bytes = 64}, {},
              {"st_async to a misaligned address"});
  alignas(16) float x[4];
  check_fails(misaligned_row, {.smem_bytes = 64}, {}, {"row not aligned"});
  check_fails(row_outside, {.smem_bytes = 64}, {x}, {"ldm4: row outside shared memory"});
}

// ---- grids ----

KERNEL waits_for_last(const Pointer args) {
  auto* flag = reinterpret_cast<uint32_t*>(args.p);
  if (tid() == 0 && block_x() == grid_x() - 1) store_release(flag, 1);
  wait_until([&] { return load_acquire(flag) == 1; });
}

void plain_grids_do_not_run_together() {
  check_breaks([] {
    float flag = 0;
    const std::string error = error_of(waits_for_last, {.grid_x = 2, .threads = 1024}, {&flag});
    if (!error.empty()) check_holds(error, {"deadlock", "a loop around pause()"});
    return error.empty();
  });
  for (int seed = 0; seed < 20; ++seed) {
    float flag = 0;
    check_runs(waits_for_last, {.grid_x = 4, .threads = 64, .cooperative = true}, {&flag});
  }
}

// ---- errors in general ----

KERNEL traps(const Nothing) {
  if (block_y() == 1 && tid() == 31) trap("no way");
}
KERNEL throws(const Nothing) { throw std::out_of_range("vector::at"); }

void traps_and_exceptions() {
  check_fails(traps, {.grid_x = 1, .grid_y = 2}, {}, {"block (0, 1), thread 31: trap: no way"});
  check_fails(throws, {}, {}, {"exception: vector::at"});
}

void shapes() {
  check_fails(traps, {.threads = 48}, {}, {"48 threads"});
  check_fails(traps, {.threads = 2048}, {}, {"2048 threads"});
  check_fails(traps, {.grid_x = 3, .cluster = 2}, {}, {"not of whole clusters"});
  check_fails(traps,
              {.grid_x = static_cast<int>(emu::kMaxFibers / 1024) + 1,
               .threads = 1024,
               .cooperative = true},
              {}, {"more threads at a time"});
}

void signal_handler_is_put_back() {
  struct sigaction before{}, after{};
  stack_t stack_before{}, stack_after{};
  sigaction(SIGSEGV, nullptr, &before);
  sigaltstack(nullptr, &stack_before);
  check_fails(writes_global, {.grid_x = 3}, {nullptr}, {"write"});
  sigaction(SIGSEGV, nullptr, &after);
  sigaltstack(nullptr, &stack_after);
  check(before.sa_handler == after.sa_handler, "handler");
  check(stack_before.ss_sp == stack_after.ss_sp, "stack");
}

int main() {
  return run_tests({
      {"the signal handler is put back", signal_handler_is_put_back},  // before any other launch
      {"deadlock", deadlock},
      {"named barrier: counts", named_barrier_counts},
      {"named barrier: half warps", named_barrier_of_half_warps},
      {"named barrier: arguments", named_barrier_arguments},
      {"divergent collectives", divergent_collectives},
      {"shared memory bounds", shared_memory_bounds},
      {"uninitialised shared memory", uninitialised_shared_memory},
      {"global memory bounds", global_memory_bounds},
      {"stack overflow", stack_overflow},
      {"copy into an ended CTA", copy_into_an_ended_cta},
      {"transactions", transactions},
      {"early transactions", early_transactions},
      {"uses of mbarriers", mbarrier_uses},
      {"remote addresses", remote_addresses},
      {"shared addresses", shared_addresses},
      {"plain grids do not run together", plain_grids_do_not_run_together},
      {"trap, exception", traps_and_exceptions},
      {"shapes of launches", shapes},
  });
}
