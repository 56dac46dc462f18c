// The emulator's scheduler. Included by emulator.h.
#pragma once

namespace rnnfast::emu {

template <class Complete>
void Machine::arrive(Barrier& barrier, int expected, const char* where, Complete complete) {
  if (barrier.arrived > 0 && barrier.expected != expected)
    fail(std::string(where) + " of " + std::to_string(expected) + " threads at a barrier that " +
         "others wait at with " + std::to_string(barrier.expected));
  barrier.expected = expected;
  barrier.waiting.push_back(current_);
  if (++barrier.arrived < expected) return block(where);
  barrier.arrived = 0;
  complete(barrier.waiting);
  barrier.waiting.pop_back();  // this one goes on without waiting
  wake(barrier.waiting);
  maybe_yield();
}

inline void Machine::leave() {
  Context dead;
  switch_context(dead, scheduler_);
  std::abort();  // nothing resumes it
}

inline void Machine::fail(const std::string& what) {
  if (!current_) throw Error("kernel " + name_ + ": " + what);
  error_ = "kernel " + name_ + ", " + cta().name() + ", thread " +
           std::to_string(current_->thread) + ": " + what;
  leave();
}

inline void Machine::block(const char* where) {
  current_->where = where;
  switch_context(current_->context, scheduler_);
}

inline void Machine::pause() {
  paused_.push_back(current_);
  block("a loop around pause()");
}

inline void Machine::maybe_yield() {
  if (random(8) != 0) return;
  ready_.push_back(current_);
  block("running");
}

inline void Machine::check_phase(Cta& cta, uint64_t* bar) {
  constexpr int kMostBytes = (1 << 20) - 1;  // the range of a transaction count
  auto* m = reinterpret_cast<Mbar*>(bar);
  if (m->pending < 0)
    fail("more arrivals at an mbarrier of " + cta.name() + " than it was made for");
  if (m->bytes > kMostBytes || m->bytes < -kMostBytes)
    fail("an mbarrier of " + cta.name() + " counts more bytes than it can");
  if (m->pending != 0 || m->bytes != 0) return;
  m->phase = m->phase ^ 1;
  m->pending = m->arrivals;
  auto& waiting = cta.mbar_waiting;
  for (size_t i = 0; i < waiting.size();)
    if (waiting[i]->bar == bar && waiting[i]->parity != m->phase) {
      ready_.push_back(waiting[i]);
      waiting[i] = waiting.back();
      waiting.pop_back();
    } else {
      ++i;
    }
  happened();
}

// Lands one copy that is not held back: a random one, or, with `search`, any.
inline bool Machine::deliver(bool search) {
  const size_t n = copies_.size();
  if (n == 0) return false;
  size_t i = random(n);
  for (size_t tries = search ? n : 1; hold_.holds(copies_[i]); i = (i + 1) % n)
    if (--tries == 0) return false;
  const Copy copy = copies_[i];
  copies_[i] = copies_.back();
  copies_.pop_back();
  if (copy.to->running == 0)
    fail("st_async lands in the shared memory of " + copy.to->name() + ", which has ended");
  auto* m = reinterpret_cast<Mbar*>(copy.bar);
  bool known = false;
  for (const uint64_t* bar : copy.to->mbars) known |= bar == copy.bar;
  if (!known) fail("st_async counts on an mbarrier of " + copy.to->name() + " without mbar_init");
  std::memcpy(copy.address, &copy.value, copy.bytes);
  m->bytes = m->bytes - static_cast<int>(copy.bytes);
  check_phase(*copy.to, copy.bar);
  return true;
}

// Who waits for words looks again now and then, and when nothing else can go on.
inline void Machine::store_word(uint32_t* to, uint32_t value) {
  words_.store(current_->words, to, value);
  idle_rounds_ = 0, news_ = true;
  if (random(std::max<size_t>(256, paused_.size())) == 0) wake(paused_);
}

// The newest, or now and then any other that the thread may find.
inline uint4 Machine::load_words(const uint4* p) {
  uint32_t v[4];
  words_.load(current_->words, &p->x, v,
              [this](size_t n) { return random(stale_odds_) == 0 ? 1 + random(n - 1) : 0; });
  return {v[0], v[1], v[2], v[3]};
}

inline void Machine::release_hold() {
  ready_.insert(ready_.end(), held_.begin(), held_.end());
  held_.clear();
  hold_ = {};
}

// Sometimes a hold, then until it is all that is left.
inline void Machine::change_mood() {
  picks_left_ = 1 + random(4 * live_);
  newest_first_ = random(4) == 0;
  delivery_odds_ = 1u << random(8);
  if (hold_.kind != Hold::kNothing || random(4) == 0) return;
  constexpr Hold::Kind kKinds[] = {Hold::kWarp, Hold::kCta, Hold::kCopies, Hold::kCopiesTo};
  const Cluster& cluster = clusters_[random(clusters_.size())];
  hold_.kind = kKinds[random(std::size(kKinds))];
  hold_.cta = &cluster.ctas[random(cluster.ctas.size())];
  hold_.warp = static_cast<int>(random(hold_.cta->warps.size()));
}

// Takes a fiber that can go on, or null.
inline Fiber* Machine::pick() {
  if (picks_left_-- == 0) change_mood();
  while (!ready_.empty()) {
    Fiber*& chosen = newest_first_ ? ready_.back() : ready_[random(ready_.size())];
    Fiber* f = chosen;
    chosen = ready_.back();
    ready_.pop_back();
    if (!hold_.holds(*f)) return f;
    held_.push_back(f);
  }
  return nullptr;
}

inline void Machine::run() {
  constexpr int kPatience = 200;  // rounds of paused fibers without anything happening
  while (live_ > 0) {
    if (Fiber* f = pick()) {
      current_ = f;
      switch_context(scheduler_, f->context);
      current_ = nullptr;
      if (!error_.empty()) throw Error(error_);
      if (f->done) finish(*f);
      if (!copies_.empty() && random(delivery_odds_) == 0) deliver(false);
      continue;
    }
    if (deliver(true)) continue;
    if (news_ && !paused_.empty()) {
      news_ = false;
      wake(paused_);
      continue;
    }
    if (hold_.kind != Hold::kNothing) {
      release_hold();
      continue;
    }
    if (paused_.empty() || ++idle_rounds_ > kPatience) report_deadlock();
    wake(paused_);
  }
  check_end();
}

inline void Machine::finish(Fiber& f) {
  --live_;
  Cta& cta = *f.cta;
  publish(f.stores);
  if (--cta.running > 0) return;
  for (Warp& w : cta.warps) publish(w.stores);
  publish(cta.stores);
  if (cta.smem->damaged()) fail("wrote beside the shared memory of " + cta.name());
  happened();
}

inline void Machine::check_end() {
  if (!copies_.empty())
    fail("st_async16 in flight to " + copies_[0].to->name() + " when all have ended");
  for (Cluster& cluster : clusters_)
    for (Cta& cta : cluster.ctas)
      for (const uint64_t* bar : cta.mbars)
        if (const int bytes = reinterpret_cast<const Mbar*>(bar)->bytes; bytes < 0)
          fail("an mbarrier of " + cta.name() + " has received " + std::to_string(-bytes) +
               " bytes that no mbar_expect announced");
}

// Where a thread is, and for an mbarrier what it lacks.
inline std::string describe_wait(const Fiber& f) {
  if (f.done) return "ended";
  std::string text = f.where;
  if (f.bar) {
    const auto* m = reinterpret_cast<const Mbar*>(f.bar);
    text += " (parity " + std::to_string(f.parity) + "; missing " + std::to_string(m->pending) +
            " arrivals, " + std::to_string(m->bytes) + " bytes)";
  }
  return text;
}

inline void Machine::report_deadlock() {
  struct Group {
    int count, first;
  };
  std::map<std::string, Group> groups;
  for (const Fiber& f : fibers_) {
    const std::string place = f.cta->name() + ", " + describe_wait(f);
    ++groups.try_emplace(place, Group{0, f.thread}).first->second.count;
  }
  constexpr size_t kMost = 16;
  std::string text = "deadlock";
  size_t shown = 0;
  for (const auto& [place, group] : groups)
    if (++shown <= kMost)
      text += "; " + place + ": " + std::to_string(group.count) + " threads from " +
              std::to_string(group.first) + " on";
  if (shown > kMost) text += "; and " + std::to_string(shown - kMost) + " more groups";
  fail(text);
}

inline void Machine::run_fiber() {
  Machine& m = *machine;
  std::string thrown;  // fails only after the handler, which must end
  try {
    m.entry_(m.kernel_, m.args_);
  } catch (const std::exception& e) {
    thrown = e.what();
  }
  if (!thrown.empty()) m.fail("exception: " + thrown);
  if (m.shape_.dependent && !m.current_->waited) m.fail("ended without wait_for_previous");
  m.current_->done = true;
  m.leave();
}

// Sets up shared memory and fibers for these clusters.
inline void Machine::place(std::vector<int> clusters) {
  const auto threads = static_cast<size_t>(shape_.threads);
  const auto size = static_cast<size_t>(shape_.cluster);
  clusters_.assign(clusters.size(), {});
  fibers_.assign(clusters.size() * size * threads, {});
  ready_.clear(), held_.clear(), paused_.clear();
  words_.clear();
  live_ = 0;
  while (smem_.size() < clusters.size() * size)
    smem_.push_back(std::make_unique<GuardedBlock>("shared memory", shape_.smem_bytes, 128));
  for (size_t c = 0; c < clusters.size(); ++c) {
    clusters_[c].ctas.resize(size);
    for (size_t rank = 0; rank < size; ++rank) {
      Cta& cta = clusters_[c].ctas[rank];
      const int index = clusters[c] * shape_.cluster + static_cast<int>(rank);
      cta.x = index % shape_.grid_x;
      cta.y = index / shape_.grid_x;
      cta.rank = static_cast<int>(rank);
      cta.running = shape_.threads;
      cta.cluster = &clusters_[c];
      cta.smem = smem_[c * size + rank].get();
      cta.smem->poison();
      cta.warps.resize(threads / kWarp);
      for (size_t t = 0; t < threads; ++t, ++live_) {
        Fiber& f = fibers_[live_];
        f.thread = static_cast<int>(t);
        f.cta = &cta;
        start_context(f.context, stacks[live_], run_fiber);
        ready_.push_back(&f);
      }
    }
  }
}

inline void Machine::run_grid() {
  const int count = shape_.grid_x * shape_.grid_y / shape_.cluster;
  std::vector<int> order(static_cast<size_t>(count));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), rng_);
  const size_t fibers = static_cast<size_t>(shape_.threads) * static_cast<size_t>(shape_.cluster);
  const size_t most = std::max<size_t>(1, 2048 / fibers);  // enough that they interfere
  for (auto next = order.begin(); next != order.end();) {
    const auto left = static_cast<size_t>(order.end() - next);
    const size_t n = shape_.cooperative ? left : std::min<size_t>(left, 1 + random(most));
    delays_stores_ = random(4) != 0;
    stale_odds_ = 2u << random(6);
    place({next, next + static_cast<std::ptrdiff_t>(n)});
    run();
    next += static_cast<std::ptrdiff_t>(n);
  }
  if (const std::string damage = GuardedBlock::find_damage(); !damage.empty()) fail(damage);
}

}  // namespace rnnfast::emu
