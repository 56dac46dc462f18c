// A SIMT emulator: runs kernels written with csrc/cuda/device.h on a CPU. Every thread of a kernel
// is a fiber; a scheduler picks, at random and now and then unfairly, which one goes on.
//
// Modelled: CTA, named, warp and cluster barriers; warp collectives; mbarriers with transaction
// counts; asynchronous stores to other CTAs, which land late and in random order; stores by
// store_l2, which other CTAs see only after a store_release by a thread that is ordered behind
// them, or when the CTA ends; words, of which a load finds any old value that no fence rules out
// (words.h); cp.async, which lands at once or when its thread waits for it; CTAs that run at the
// same time: all of a cooperative grid, else some clusters at a time, in random order.
//
// Found, and thrown as Error: deadlocks, warp collectives that not all lanes reach, wrong uses of
// barriers, accesses beyond shared memory and guarded global memory (memory.h), copies into a CTA
// that has ended, bytes that no mbarrier expected, reads of memory that nobody has written (as
// NaN).
//
// Not modelled: plain global stores (others see them at once), loads without an acquire but those
// of words, scopes, the L1 cache, fences between proxies, `.aligned` instructions in a diverged
// warp, bank conflicts, time. PTX text is not looked at. Plain accesses never interleave inside the
// stretch between two primitives.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "fiber.h"
#include "memory.h"
#include "words.h"

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

namespace rnnfast::emu {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Read at every launch; tests change them.
struct Settings {
  uint64_t seed = 1;  // of the next launch; every launch adds one
  size_t max_smem_bytes = 227 << 10;
  int max_cluster = 16;
  int max_active_clusters = 1 << 20;
  int max_cooperative_blocks = 1 << 20;
  int processors = 132;  // what the plan is told
};
inline Settings settings;

struct Shape {
  int grid_x, grid_y, threads, cluster;
  size_t smem_bytes;
  bool cooperative;
  bool dependent = false;
};
inline std::vector<Shape> launches;  // all so far, until somebody empties it

constexpr int kWarp = 32;
constexpr int kNamedBarriers = 16;
constexpr size_t kMaxFibers = 40960;

struct Cta;

struct Store {
  uint4* to;
  uint4 value;
};

// A copy that a thread has begun and not waited for: `bytes` out of `size`, zeros behind them.
struct ThreadCopy {
  uint8_t* to;
  const uint8_t* from;
  int size, bytes;
  void land() const {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    std::memset(to + bytes, 0, static_cast<size_t>(size - bytes));
  }
};

struct Fiber {
  Context context;
  int thread = 0;
  Cta* cta = nullptr;
  const char* where = "";  // the primitive it waits in
  bool done = false;
  bool waited = false;            // for the kernel before, in a dependent launch
  const uint64_t* bar = nullptr;  // the mbarrier it waits for, and
  uint32_t parity = 0;
  std::vector<Store> stores;  // not seen by others yet, and ordered before nothing of them
  WordView words;
  std::vector<std::vector<ThreadCopy>> copies{1};  // by group; the last one is open
};

struct Barrier {
  int arrived = 0;
  int expected = 0;
  std::vector<Fiber*> waiting;
};

// What the lanes of a warp bring to a collective, and what they get.
struct Lane {
  uint32_t in[8];
  float d[4];
  const void* row;
  uint32_t out[4];
};

struct Warp {
  Barrier barrier;
  const char* collective = nullptr;  // the one in progress
  Lane lanes[kWarp];
  std::vector<Store> stores;  // ordered before what its threads do now
};

// How an mbarrier lies in its 8 bytes of shared memory.
struct Mbar {
  int16_t pending, arrivals;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(Mbar) == 8);

struct Cluster;

struct Cta {
  int x = 0, y = 0, rank = 0;
  int running = 0;  // threads that have not returned
  Cluster* cluster = nullptr;
  GuardedBlock* smem = nullptr;
  Barrier barrier, named[kNamedBarriers];
  std::vector<Warp> warps;
  std::vector<uint64_t*> mbars;
  std::vector<Fiber*> mbar_waiting;
  std::vector<Store> stores;  // ordered before what its threads do now
  std::string name() const {
    return "block (" + std::to_string(x) + ", " + std::to_string(y) + ")";
  }
};

struct Cluster {
  Barrier barrier;
  std::vector<Cta> ctas;
};

// An asynchronous store in flight.
struct Copy {
  Cta* to;
  uint8_t* address;
  uint64_t* bar;
  uint4 value;
  size_t bytes;  // the first ones of it
};

// What the scheduler holds back until nothing else can go on.
struct Hold {
  enum Kind { kNothing, kWarp, kCta, kCopies, kCopiesTo };
  Kind kind = kNothing;
  const Cta* cta = nullptr;
  int warp = 0;
  bool holds(const Fiber& f) const {
    return f.cta == cta && (kind == kCta || (kind == kWarp && f.thread / emu::kWarp == warp));
  }
  bool holds(const Copy& c) const { return kind == kCopies || (kind == kCopiesTo && c.to == cta); }
};

// Runs the clusters that are on the machine at the same time.
class Machine {
 public:
  using Entry = void (*)(const void* kernel, const void* args);

  Machine(std::string name, Shape shape, Entry entry, const void* kernel, const void* args)
      : name_(std::move(name)), shape_(shape), entry_(entry), kernel_(kernel), args_(args) {}

  void run_grid();

  const Shape& shape() const { return shape_; }
  Fiber& fiber() { return *current_; }
  Cta& cta() { return *current_->cta; }
  Warp& warp() { return cta().warps[static_cast<size_t>(current_->thread / kWarp)]; }
  Lane& lane() { return warp().lanes[current_->thread % kWarp]; }
  uint32_t random(size_t n) {
    return static_cast<uint32_t>(static_cast<uint64_t>(rng_()) * n >> 32);
  }

  // Ends the launch with an error: on a fiber by leaving it for good, else by throwing.
  [[noreturn]] void fail(const std::string& what);
  // The running fiber waits until someone wakes it.
  void block(const char* where);
  void wake(std::vector<Fiber*>& fibers) {
    ready_.insert(ready_.end(), fibers.begin(), fibers.end());
    fibers.clear();
  }
  // The running fiber waits for anything to happen.
  void pause();
  // Something that a fiber in a loop around pause() may wait for has happened.
  void happened() {
    idle_rounds_ = 0;
    wake(paused_);
  }
  // Other threads may go on before the running one does: called by primitives that do not wait.
  void maybe_yield();

  // Arrives and waits. The last one calls `complete` before any goes on.
  template <class Complete>
  void arrive(Barrier& barrier, int expected, const char* where, Complete complete);

  void send(const Copy& copy) { copies_.push_back(copy); }
  void store_word(uint32_t* to, uint32_t value);
  uint4 load_words(const uint4* p);
  void check_phase(Cta& cta, uint64_t* bar);
  bool delays_stores() const { return delays_stores_; }
  static void publish(std::vector<Store>& stores) {
    for (const Store& s : stores) *s.to = s.value;
    stores.clear();
  }
  bool runs_kernel() const { return current_ != nullptr; }
  // The running fiber has touched memory that it may not.
  [[noreturn]] void fault(const siginfo_t& info, const char* access);

 private:
  static void run_fiber();
  void place(std::vector<int> clusters);
  void run();
  Fiber* pick();
  void change_mood();
  void release_hold();
  bool deliver(bool search);
  void finish(Fiber& f);
  void check_end();
  [[noreturn]] void report_deadlock();
  [[noreturn]] void leave();

  std::string name_;
  Shape shape_;
  Entry entry_;
  const void* kernel_;
  const void* args_;
  std::mt19937 rng_{settings.seed++};

  std::vector<std::unique_ptr<GuardedBlock>> smem_;
  std::vector<Cluster> clusters_;
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> ready_, held_, paused_;
  std::vector<Copy> copies_;
  Words words_;
  Fiber* current_ = nullptr;  // null while the scheduler itself runs
  Context scheduler_;
  std::string error_;
  size_t live_ = 0;
  bool delays_stores_ = true;
  uint32_t stale_odds_ = 2;  // of words: one load in so many finds an old one where it may

  // The scheduler's mood, redrawn every so often.
  Hold hold_;
  bool newest_first_ = false, news_ = false;  // news: words have been stored
  uint32_t delivery_odds_ = 8;
  size_t picks_left_ = 0;
  int idle_rounds_ = 0;
};

inline Machine* machine = nullptr;
inline StackPool stacks;

}  // namespace rnnfast::emu

#include "launch.h"
#include "scheduler.h"
