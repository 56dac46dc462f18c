// Each device primitive on the emulator does what it should, whatever the schedule.
// Exits with the number of tests that failed.
#include <chrono>

#include "check.h"

using namespace rnnfast;
using namespace rnnfast::dev;
using namespace rnnfast::emu;

namespace {

constexpr int kSeeds = 30;

struct Floats {
  float* out;
};

// ---- where a thread is ----

struct Places {
  int* visits;  // [grid_y][grid_x][threads]
  int* ranks;   // [grid_y][grid_x]
};

KERNEL visit(const Places args) {
  const int block = block_y() * grid_x() + block_x();
  ++args.visits[block * threads() + tid()];
  args.ranks[block] = cluster_rank();
  if (grid_y() != 3) trap("grid_y");
}

void every_thread_runs_once() {
  for (bool cooperative : {false, true}) {
    std::vector<int> visits(4 * 3 * 64), ranks(4 * 3);
    check_runs(visit,
               {.grid_x = 4, .grid_y = 3, .threads = 64, .cluster = 2, .cooperative = cooperative},
               {visits.data(), ranks.data()});
    for (int n : visits) check(n == 1, "a thread ran " + std::to_string(n) + " times");
    for (size_t i = 0; i < ranks.size(); ++i)
      check(ranks[i] == static_cast<int>(i % 2), "rank in the cluster");
  }
}

// ---- the scheduler ----

enum class Slow { kWarp, kCta, kCopy, kWord, kOwnCopy };

// Reads what is surely there by then, if all go at about the same pace.
template <Slow kSlow>
KERNEL hopes(const Floats args) {
  auto* bar = reinterpret_cast<uint64_t*>(smem());
  auto* x = reinterpret_cast<volatile float*>(smem() + 16);
  if (tid() == 0) {
    mbar_init(bar, 1);
    *x = 1;
    if (cluster_rank() == 1) mbar_expect(bar, 16);
  }
  cluster_sync();
  const bool sends = cluster_rank() == 0 && tid() < 32;
  if (sends && kSlow == Slow::kWarp) *x = 2;
  if (sends && kSlow == Slow::kCta) *args.out = 2;
  if (sends && tid() == 0 && kSlow == Slow::kCopy) {
    const auto two = bit_cast<uint32_t>(2.f);
    st_async16(remote(smem() + 16, 1), {two, two, two, two}, remote(bar, 1));
  }
  if (sends && tid() == 0 && kSlow == Slow::kWord)
    for (int i = 0; i < 4; ++i)
      st_async4(remote(smem() + 16, 1) + i * 4, bit_cast<uint32_t>(2.f), remote(bar, 1));
  if (tid() == 32 && kSlow == Slow::kOwnCopy) {
    alignas(16) static const float twos[4] = {2, 2, 2, 2};
    cp_async<16>(smem() + 16, twos);
    cp_commit();
  }
  const bool async = kSlow == Slow::kCopy || kSlow == Slow::kWord;
  if (async) cluster_sync();  // only the copy itself may be late
  if (!sends) {
    for (int i = 0; i < 60; ++i) warp_sync();
    if (kSlow == Slow::kWarp && cluster_rank() == 0) *args.out = *x;
    if (kSlow == Slow::kCta && cluster_rank() == 1) args.out[1] = *args.out;
    if ((async || kSlow == Slow::kOwnCopy) && cluster_rank() == 1) *args.out = *x;
  }
  if (async && cluster_rank() == 1) mbar_wait(bar, 0);
  cluster_sync();
}

template <Slow kSlow>
void anything_may_be_slow() {
  check_breaks([] {
    float out[2] = {0, 2};
    check_runs(hopes<kSlow>, {.grid_x = 2, .threads = 64, .cluster = 2, .smem_bytes = 64}, {out});
    return out[0] == 2.f && out[1] == 2.f;
  });
}

struct Order {
  int* next;
  int* order;
};

KERNEL take_number(const Order args) {
  if (tid() == 0) args.order[block_x()] = (*args.next)++;
}

void order_of_blocks_varies() {
  check_breaks([] {
    int next = 0, order[4];
    check_runs(take_number, {.grid_x = 4, .threads = 1024, .cluster = 2}, {&next, order});
    return order[0] < order[2];
  });
}

// ---- barriers of a CTA ----

// Every thread adds up what the others have stored, `rounds` times over the same memory.
template <bool kFirst, bool kSecond>
KERNEL add_up(const Floats args) {
  auto* x = reinterpret_cast<float*>(smem());
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    x[tid()] = static_cast<float>(tid() + round);
    if (kFirst) cta_sync();
    for (int i = 0; i < threads(); ++i) sum += x[i];
    if (kSecond) cta_sync();
  }
  args.out[tid()] = sum;
}

template <bool kFirst, bool kSecond>
bool adds_up() {
  float out[96];
  check_runs(add_up<kFirst, kSecond>, {.threads = 96, .smem_bytes = sizeof out}, {out});
  for (float sum : out)
    if (sum != 3 * (95 * 96 / 2 + 96)) return false;
  return true;
}

void cta_sync_orders() {
  for (int seed = 0; seed < kSeeds; ++seed) check(adds_up<true, true>(), "wrong sum");
  check_breaks(adds_up<true, false>);
  check_breaks(adds_up<false, true>);
}

// Two groups of warps, each with a barrier of its own, a different number of times.
KERNEL groups(const Floats args) {
  auto* x = reinterpret_cast<float*>(smem());
  const int group = tid() / 64, first = group * 64;
  for (int round = 0; round < 2 + group; ++round) {
    x[tid()] = static_cast<float>(round);
    group_sync(1 + group, 64);
    args.out[tid()] = x[first + (tid() - first + 33) % 64];
    group_sync(1 + group, 64);
  }
}

void group_sync_orders() {
  for (int seed = 0; seed < kSeeds; ++seed) {
    float out[128];
    check_runs(groups, {.threads = 128, .smem_bytes = sizeof out}, {out});
    for (int i = 0; i < 128; ++i) check(out[i] == static_cast<float>(1 + i / 64), "wrong round");
  }
}

template <bool kSync>
KERNEL rotate(const Floats args) {
  auto* x = reinterpret_cast<float*>(smem());
  x[tid()] = static_cast<float>(tid());
  if (kSync) warp_sync();
  args.out[tid()] = x[tid() ^ 5];
}

template <bool kSync>
bool rotates() {
  float out[64];
  check_runs(rotate<kSync>, {.threads = 64, .smem_bytes = sizeof out}, {out});
  for (int i = 0; i < 64; ++i)
    if (out[i] != static_cast<float>(i ^ 5)) return false;
  return true;
}

void warp_sync_orders() {
  for (int seed = 0; seed < kSeeds; ++seed) check(rotates<true>(), "wrong lane");
  check_breaks(rotates<false>);
}

// ---- clusters ----

struct Ring {
  float* out;  // [cluster][threads]
  int rounds;
};

// In every round each CTA sends all its values to all CTAs of the cluster and adds up what arrives.
// Two buffers: the mbarrier of one is armed for round r + 2 when round r has arrived.
template <int kBuffers>
KERNEL all_to_all(const Ring args) {
  const int ranks = grid_x(), bytes = ranks * threads() * 16;
  auto* bars = reinterpret_cast<uint64_t*>(smem());
  uint8_t* data = smem() + 16;
  if (tid() == 0)
    for (int i = 0; i < kBuffers; ++i) {
      mbar_init(bars + i, 1);
      mbar_expect(bars + i, static_cast<uint32_t>(bytes));
    }
  cluster_sync();
  uint32_t value = static_cast<uint32_t>(cluster_rank() * threads() + tid());
  for (int round = 0; round < args.rounds; ++round) {
    const int buffer = round % kBuffers, at = buffer * bytes;
    for (int to = 0; to < ranks; ++to)
      st_async16(remote(data + at, to) + (cluster_rank() * threads() + tid()) * 16,
                 {value, 0, 0, value}, remote(bars + buffer, to));
    mbar_wait(bars + buffer, static_cast<uint32_t>(round / kBuffers % 2));
    if (tid() == 0) mbar_expect(bars + buffer, static_cast<uint32_t>(bytes));
    value = 0;
    for (int i = 0; i < ranks * threads(); i += 7)
      value += reinterpret_cast<const uint4*>(data + at)[i].w + static_cast<uint32_t>(i);
    value %= 65536;
  }
  args.out[cluster_rank() * threads() + tid()] = static_cast<float>(value);
  cluster_sync();
}

template <int kBuffers>
bool exchanges(int ranks, int threads, int rounds) {
  const int n = ranks * threads;
  std::vector<float> out(static_cast<size_t>(n));
  const std::string error =
      error_of(all_to_all<kBuffers>,
               {.grid_x = ranks,
                .threads = threads,
                .cluster = ranks,
                .smem_bytes = 16 + static_cast<size_t>(kBuffers) * static_cast<size_t>(n) * 16},
               {out.data(), rounds});
  if (!error.empty() && kBuffers == 2) throw std::logic_error(error);
  std::vector<uint32_t> value(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) value[static_cast<size_t>(i)] = static_cast<uint32_t>(i);
  for (int round = 0; round < rounds; ++round) {
    uint32_t sum = 0;
    for (int i = 0; i < n; i += 7) sum += value[static_cast<size_t>(i)] + static_cast<uint32_t>(i);
    value.assign(value.size(), sum % 65536);
  }
  for (int i = 0; i < n; ++i)
    if (out[static_cast<size_t>(i)] != static_cast<float>(value[static_cast<size_t>(i)]))
      return false;
  return true;
}

void clusters_exchange() {
  for (int seed = 0; seed < kSeeds; ++seed) {
    check(exchanges<2>(2, 32, 9), "wrong sum");
    check(exchanges<2>(4, 64, 6), "wrong sum");
  }
  check_breaks([] { return exchanges<1>(4, 64, 6); });  // overwritten while it is read
}

void large_clusters_are_fast() {
  const auto start = std::chrono::steady_clock::now();
  check(exchanges<2>(16, 256, 3), "wrong sum");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  check(seconds.count() < 10, std::to_string(seconds.count()) + " s");
}

KERNEL count_in_cluster(const Floats args) {
  args.out[block_x()] = 0;
  cluster_sync();
  args.out[block_x()] += args.out[block_x() ^ 1] + 1;
  cluster_sync();
}

// ---- grids ----

struct GridArgs {
  uint4* values;    // [2][grid][threads]
  uint32_t* flags;  // [grid]
  float* out;       // [grid][threads]
  int rounds;
};

enum class Publish { kRight, kNoRelease, kNoBarrier };

// In every round each CTA reads the values of all others; it announces its own by a flag.
template <Publish kPublish>
KERNEL grid_exchange(const GridArgs args) {
  const int blocks = grid_x(), n = blocks * threads();
  uint32_t value = static_cast<uint32_t>(block_x() * threads() + tid());
  for (int round = 0; round < args.rounds; ++round) {
    uint4* values = args.values + round % 2 * n;
    store_l2(values + block_x() * threads() + tid(), {value, 0, 0, 0});
    if (kPublish != Publish::kNoBarrier) cta_sync();
    if (tid() == 0) {
      const auto done = static_cast<uint32_t>(round + 1);
      if (kPublish == Publish::kNoRelease)
        *static_cast<volatile uint32_t*>(args.flags + block_x()) = done;
      else
        store_release(args.flags + block_x(), done);
    }
    for (int peer = tid(); peer < blocks; peer += threads())
      wait_until([&] { return load_acquire(args.flags + peer) > static_cast<uint32_t>(round); });
    cta_sync();
    value = 0;
    for (int i = 0; i < n; ++i) value = (value + load_l2(values + i).x + 1) % 65536;
    cta_sync();
  }
  args.out[block_x() * threads() + tid()] = static_cast<float>(value);
}

template <Publish kPublish>
bool grid_exchanges(bool cooperative) {
  constexpr int kBlocks = 3, kThreads = 32, kRounds = 5, n = kBlocks * kThreads;
  std::vector<uint4> values(2 * n);
  std::vector<uint32_t> flags(kBlocks);
  std::vector<float> out(n);
  check_runs(grid_exchange<kPublish>,
             {.grid_x = kBlocks, .threads = kThreads, .cooperative = cooperative},
             {values.data(), flags.data(), out.data(), kRounds});
  uint32_t value = n * (n - 1) / 2 + n;
  for (int round = 1; round < kRounds; ++round) value = (value * n + n) % 65536;
  for (float x : out)
    if (x != static_cast<float>(value)) return false;
  return true;
}

void grids_exchange() {
  for (int seed = 0; seed < kSeeds; ++seed)
    check(grid_exchanges<Publish::kRight>(true), "wrong sum");
  check_breaks([] { return grid_exchanges<Publish::kNoRelease>(true); });
  check_breaks([] { return grid_exchanges<Publish::kNoBarrier>(true); });
}

void cluster_sync_orders() {
  for (int seed = 0; seed < kSeeds; ++seed) {
    float out[4] = {9, 9, 9, 9};
    check_runs(count_in_cluster, {.grid_x = 4, .threads = 32, .cluster = 2}, {out});
    for (float x : out) check(x >= 32, "fewer than its own threads");
  }
}

// ---- launches ----

void refusals_are_statuses() {
  float out[64];
  const Launch small{.grid_x = 2, .threads = 32};
  const auto code = [&](const Launch& l) {
    return dev::launch(add_up<true, true>, l, {}, {out}).code;
  };
  Launch cooperative = small, cluster = small, large = small;
  cooperative.cooperative = true;
  cluster.cluster = 2;
  large.smem_bytes = 228 << 10;
  large.grid_x = 1;
  check(code(large) == Status::kDoesNotFit, "too much shared memory");
  settings.max_cooperative_blocks = 1;
  settings.max_active_clusters = 0;
  check(code(cooperative) == Status::kDoesNotFit, "too many CTAs");
  check(code(cluster) == Status::kDoesNotFit, "no cluster fits");
  check(max_cooperative_blocks(visit, small) == 1, "max_cooperative_blocks");
  check(max_active_clusters(visit, small) == 0, "max_active_clusters");
}

}  // namespace

int main() {
  return run_tests({
      {"every thread runs once", every_thread_runs_once},
      {"the order of CTAs varies", order_of_blocks_varies},
      {"a warp may be slow", anything_may_be_slow<Slow::kWarp>},
      {"a CTA may be slow", anything_may_be_slow<Slow::kCta>},
      {"a copy may be slow", anything_may_be_slow<Slow::kCopy>},
      {"a word may be slow", anything_may_be_slow<Slow::kWord>},
      {"a copy of one's own may be slow", anything_may_be_slow<Slow::kOwnCopy>},
      {"cta_sync", cta_sync_orders},
      {"group_sync", group_sync_orders},
      {"warp_sync", warp_sync_orders},
      {"cluster_sync", cluster_sync_orders},
      {"exchange in a cluster", clusters_exchange},
      {"16 CTAs of 256 threads", large_clusters_are_fast},
      {"exchange across a grid", grids_exchange},
      {"refused launches", refusals_are_statuses},
  });
}
