// Where the ops' tensors and buffers lie. Memory of a few hundred kilobytes and more comes fresh
// from the system at every call and goes back after it, and to touch a page for the first time
// takes a microsecond: a fifth of a forward pass that keeps what backward needs. So some of what is
// freed is kept for the next call, and what is large asks for huge pages.
#pragma once

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/resource.h>
#endif

namespace rnnfast::cpu {

// A wish only; numpy has it from this size on.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kLarge = size_t{4} << 20, kPage = 4096;
  if (bytes < kLarge) return;
  char* first = static_cast<char*>(data);
  first += (kPage - reinterpret_cast<uintptr_t>(first) % kPage) % kPage;
  madvise(first, (static_cast<char*>(data) + bytes - first) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

struct alignas(64) Block {
  size_t bytes;  // that follow
};

// Lets the system take the pages of a block that nobody uses, if it runs short of memory before the
// block is written again, and otherwise costs nothing then. Whole huge pages, so that none is split
// and the block's own bytes stay. False where the system cannot do that (Linux before 4.5), and
// where addresses are scarce, as those stay taken (`ulimit -v`).
inline bool lend_to_system(Block* block) {
#if defined(__linux__) && defined(MADV_FREE)
  rlimit addresses;
  if (getrlimit(RLIMIT_AS, &addresses) || addresses.rlim_cur != RLIM_INFINITY) return false;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto data = reinterpret_cast<uintptr_t>(block + 1);
  const uintptr_t first = (data + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (data + block->bytes) / kHugePage * kHugePage;
  return first < last && madvise(reinterpret_cast<void*>(first), last - first, MADV_FREE) == 0;
#else
  return false;
#endif
}

// Freed blocks, the latest ones, of at most `limit` bytes together.
class Shelf {
 public:
  Shelf(size_t limit, size_t smallest) : limit_(limit) {
    blocks_.reserve(limit / smallest + 1);  // to keep a block must not fail
  }

  // Null if there is none of about this size.
  Block* take(size_t bytes) {
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      if ((*block)->bytes < bytes || (*block)->bytes > bytes + bytes / 4) continue;
      Block* found = *block;
      bytes_ -= found->bytes;
      blocks_.erase(std::next(block).base());
      return found;
    }
    return nullptr;
  }
  void put(Block* freed) {
    blocks_.push_back(freed);
    bytes_ += freed->bytes;
    while (bytes_ > limit_) {
      bytes_ -= blocks_.front()->bytes;
      c10::free_cpu(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  size_t limit_, bytes_ = 0;
  std::vector<Block*> blocks_;  // in the order in which they were freed
};

// Two shelves: what an idle process may hold, and larger blocks that the system may take back.
class Pool final : public c10::Allocator {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: tensors may outlive every static object
    return *pool;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallest || bytes > kLargest) {
      c10::DataPtr result = c10::GetCPUAllocator()->allocate(bytes);
      prefer_huge_pages(result.get(), bytes);
      return result;
    }
    Block* block = take(bytes);
    if (!block) {
      block = static_cast<Block*>(c10::alloc_cpu(sizeof(Block) + bytes));
      block->bytes = bytes;
      prefer_huge_pages(block, sizeof(Block) + bytes);
    }
    return {block + 1, block, [](void* freed) { instance().put(static_cast<Block*>(freed)); },
            c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  // Around a fork, so that the child finds what is kept whole, and the lock free.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  Pool() = default;

  static constexpr size_t kMiB = size_t{1} << 20;
  static constexpr size_t kSmallest = kMiB / 8, kLent = 32 * kMiB, kLargest = 512 * kMiB;

  Shelf& shelf_for(size_t bytes) { return bytes > kLent ? lent_ : kept_; }

  // The lock is only tried: the system's allocator does where another thread holds it.
  Block* take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    return lock ? shelf_for(bytes).take(bytes) : nullptr;
  }
  void put(Block* freed) {
    const bool keep = freed->bytes <= kLent || lend_to_system(freed);
    std::unique_lock lock(mutex_, std::defer_lock);
    if (!keep || !lock.try_lock()) return c10::free_cpu(freed);
    shelf_for(freed->bytes).put(freed);
  }

  std::mutex mutex_;
  Shelf kept_{64 * kMiB, kSmallest}, lent_{kLargest, kLent};
};

inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::detail::empty_generic(sizes, &Pool::instance(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

// Memory for one call, without what a tensor costs beside it.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t size)
      : memory_(Pool::instance().allocate(size * static_cast<int64_t>(sizeof(T)))) {}
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  c10::DataPtr memory_;
};

template <class T>
Scratch<T> zero_scratch(int64_t size) {
  Scratch<T> result(size);
  std::fill_n(result.data(), size, T{});
  return result;
}

}  // namespace rnnfast::cpu
