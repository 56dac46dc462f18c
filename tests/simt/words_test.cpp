// What the emulator lets a thread find of the words that others store (words.h). Exits with the
// number of tests that failed.
#include <vector>

#include "check.h"

using namespace rnnfast;
using namespace rnnfast::dev;
using namespace rnnfast::emu;

namespace {

constexpr int kSeeds = 20;
constexpr Launch kTwoCtas{.grid_x = 2, .threads = 32, .cooperative = true};

struct Words4 {
  uint4* words;
  uint32_t* out;
};

bool is_first_of(int block) { return block_x() == block && tid() == 0; }

// ---- two words, of a thread and for another ----

// The second word says that the first is there, if both have a fence in between.
template <bool kStorer, bool kLoader>
KERNEL message(const Words4 args) {
  if (is_first_of(0)) {
    store_word(&args.words[0].x, 1);
    if (kStorer) fence_words();
    store_word(&args.words[1].x, 1);
  }
  if (is_first_of(1)) {
    wait_until([&] { return load_words(args.words + 1).x == 1; });
    if (kLoader) fence_words();
    *args.out = load_words(args.words).x;
  }
}

template <bool kStorer, bool kLoader>
bool arrives() {
  alignas(16) uint4 words[2] = {};
  uint32_t out = 9;
  check_runs(message<kStorer, kLoader>, kTwoCtas, {words, &out});
  return out == 1;
}

void fences_order() {
  for (int seed = 0; seed < kSeeds; ++seed) check(arrives<true, true>(), "an old word");
  check_breaks(arrives<false, false>);
  check_breaks(arrives<true, false>);
  check_breaks(arrives<false, true>);
}

// Nor do the four words of one load have an order.
KERNEL four_words(const Words4 args) {
  if (is_first_of(0)) {
    store_word(&args.words->x, 1);
    store_word(&args.words->w, 1);
  }
  if (is_first_of(1)) {
    uint4 v;
    wait_until([&] { return v = load_words(args.words), v.w == 1; });
    *args.out = v.x;
  }
}

void words_of_a_load_have_no_order() {
  check_breaks([] {
    alignas(16) uint4 words[1] = {};
    uint32_t out = 9;
    check_runs(four_words, kTwoCtas, {words, &out});
    return out == 1;
  });
}

// ---- one word ----

constexpr uint32_t kStores = 40;

// Those of one word have: nobody finds an older value after a newer one, the storer none at all.
KERNEL counts_up(const Words4 args) {
  if (is_first_of(0))
    for (uint32_t i = 1; i <= kStores; ++i) {
      store_word(&args.words->x, i);
      if (load_words(args.words).x != i) trap("not its own store");
    }
  if (is_first_of(1)) {
    uint32_t last = 0;
    for (uint32_t i = 0; i < 4 * kStores; ++i) {
      const uint32_t v = load_words(args.words).x;
      if (v < last) trap("an older value after a newer one");
      if (v > last) ++*args.out;
      last = v;
    }
  }
}

void one_word_has_an_order() {
  uint32_t most = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    alignas(16) uint4 words[1] = {};
    uint32_t out = 0;
    check_runs(counts_up, kTwoCtas, {words, &out});
    check(words->x == kStores, "what remains");
    most = std::max(most, out);
  }
  check(most > 3, "few values between the first and the last");
}

// ---- a ring of words that are their own flags, as that of the grid family ----

constexpr int kRing = 8, kRounds = 40, kWords = 64, kLoads = kWords / 4;
constexpr uint32_t kNothing = 0xffffffffu;

uint32_t value_of(uint32_t sum, int thread) {
  return (sum + static_cast<uint32_t>(thread) + 1) * 2654435761u >> 8;  // no two rounds alike
}

bool is_missing(const uint4& v) {
  return v.x == kNothing || v.y == kNothing || v.z == kNothing || v.w == kNothing;
}

template <int kFence>
KERNEL goes_round(const Words4 args) {
  const int thread = block_x() * threads() + tid();
  const auto place = [&](int round) { return args.words + (round + kRing) % kRing * kLoads; };
  uint32_t sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    store_word(&place(round)->x + thread, value_of(sum, thread));
    store_word(&place(round - 2)->x + thread, kNothing);
    if (round % kFence == kFence - 1) fence_words();
    uint4 v[kLoads];
    for (int i = 0; i < kLoads; ++i) v[i] = load_words(place(round) + i);
    poll_until([&] {
      bool all = true;
      for (int i = 0; i < kLoads; ++i)
        if (is_missing(v[i])) v[i] = load_words(place(round) + i), all = false;
      return all;
    });
    sum = 0;
    for (const uint4& u : v) sum += u.x + u.y + u.z + u.w;
  }
  args.out[thread] = sum;
}

template <int kFence>
bool ring_is_right() {
  alignas(16) uint4 words[kRing * kLoads];
  for (uint4& v : words) v = {kNothing, kNothing, kNothing, kNothing};
  uint32_t out[kWords] = {}, wanted = 0;
  check_runs(goes_round<kFence>, kTwoCtas, {words, out});
  for (int round = 0; round < kRounds; ++round) {
    uint32_t sum = 0;
    for (int i = 0; i < kWords; ++i) sum += value_of(wanted, i);
    wanted = sum;
  }
  for (const uint32_t sum : out)
    if (sum != wanted) return false;
  return true;
}

// A thread clears in round n what it stored in round n - 2, and passes a fence in round
// n + kFence - 1 at the latest. Who has received what it stores next is past a fence in round
// n + 2 kFence - 1, and must be before it asks for round n + kRing - 2.
void rings_need_fences() {
  for (int seed = 0; seed < kSeeds; ++seed) check(ring_is_right<3>(), "an old word");
  check_breaks(ring_is_right<kRounds>);
  check_breaks(ring_is_right<4>);
}

}  // namespace

int main() {
  return run_tests({
      {"fences order words", fences_order},
      {"the words of a load have no order", words_of_a_load_have_no_order},
      {"one word has an order", one_word_has_an_order},
      {"rings need fences", rings_need_fences},
  });
}
