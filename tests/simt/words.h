// Words that the threads of a grid store and load one by one, as PTX's memory model has relaxed
// accesses at the scope of the GPU: nothing but fences orders those to different words, so that a
// thread may find an old value in one after a new one in another, for as long as it likes.
//
// A word keeps all that was stored to it, in the order that all threads agree on. A load returns
// any of it that is not older than
// - what this thread has stored there or found there before, nor
// - what is ordered before the load: what a thread stored before one of its fences, once this
//   thread has found something that the other stored after that fence and then passed a fence, too.
// That is less than PTX orders: barriers order no words here, and what a thread has learnt so it
// does not pass on to a third. No kernel relies on either. What PTX has and this has not: loads
// that return what is stored only later.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace rnnfast::emu {

// What a thread has stored, and how much of what others stored is ordered before what it does.
struct WordView {
  uint32_t stored = 0, fenced = 0;  // so many, and so many before its last fence
  std::unordered_map<const WordView*, uint32_t> ordered, ordered_by_next_fence;
};

class Words {
 public:
  void store(WordView& view, uint32_t* p, uint32_t value) {
    std::vector<Stored>& word = lines_[line_of(p)].words[place_in_line(p)];
    if (word.empty()) word.push_back({nullptr, *p, 0, 0});
    word.push_back({&view, value, ++view.stored, view.fenced});
    *p = value;
  }

  // 16 bytes, word by word. `choose(n)`: how many of the n newest to pass over, where n > 1.
  template <class Choose>
  void load(WordView& view, const uint32_t* p, uint32_t (&values)[4], Choose choose) {
    const auto line = lines_.find(line_of(p));
    Reader* reader = line == lines_.end() ? nullptr : &line->second.reader(&view);
    for (size_t i = 0; i < 4; ++i)
      values[i] = reader == nullptr || line->second.words[i].empty()
                      ? p[i]
                      : pick(view, line->second.words[i], reader->found[i], choose);
  }

  static void fence(WordView& view) {
    for (const auto& [by, count] : view.ordered_by_next_fence) raise(view.ordered[by], count);
    view.ordered_by_next_fence.clear();
    view.fenced = view.stored;
  }

  void clear() { lines_.clear(); }

 private:
  struct Stored {
    const WordView* by;  // null: it was there before
    uint32_t value;
    uint32_t number;  // of those of its thread, from 1 on
    uint32_t fenced;  // so many of its thread came before the last fence before it
  };
  struct Reader {
    const WordView* view;
    uint16_t found[4] = {};  // the newest in each word
  };
  struct Line {
    std::vector<Stored> words[4];
    std::vector<Reader> readers;
    Reader& reader(const WordView* view) {
      for (Reader& r : readers)
        if (r.view == view) return r;
      return readers.emplace_back(Reader{view});
    }
  };

  static uintptr_t line_of(const uint32_t* p) { return reinterpret_cast<uintptr_t>(p) / 16; }
  static size_t place_in_line(const uint32_t* p) {
    return reinterpret_cast<uintptr_t>(p) / sizeof *p % 4;
  }
  static void raise(uint32_t& count, uint32_t to) { count = to > count ? to : count; }
  static bool is_ordered(const WordView& view, const Stored& s) {
    if (s.by == &view) return true;
    const auto known = view.ordered.find(s.by);
    return known != view.ordered.end() && s.number <= known->second;
  }

  template <class Choose>
  static uint32_t pick(WordView& view, const std::vector<Stored>& word, uint16_t& found,
                       Choose choose) {
    const size_t newest = word.size() - 1;
    size_t oldest = newest;
    while (oldest > found && !is_ordered(view, word[oldest])) --oldest;
    const size_t chosen = newest - (newest > oldest ? choose(newest - oldest + 1) : 0);
    const Stored& s = word[chosen];
    if (chosen != found && s.fenced > 0) raise(view.ordered_by_next_fence[s.by], s.fenced);
    found = static_cast<uint16_t>(chosen);
    return s.value;
  }

  std::unordered_map<uintptr_t, Line> lines_;
};

}  // namespace rnnfast::emu
