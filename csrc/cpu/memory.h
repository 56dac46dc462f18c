// Where the ops' tensors and buffers lie. Memory of a few hundred kilobytes and more comes fresh
// from the system at every call and goes back after it, and to touch a page for the first time
// takes a microsecond: a fifth of a forward pass that keeps what backward needs. So some of what is
// freed is kept for the next call, and what is too large to be kept asks for huge pages.
#pragma once

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnfast {

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

// Keeps freed blocks, kKept bytes at most, the latest ones.
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
  Pool() { kept_.reserve(kKept / kSmallest + 1); }  // to keep a block must not fail

  static constexpr size_t kSmallest = size_t{128} << 10, kLargest = size_t{32} << 20,
                          kKept = size_t{64} << 20;
  struct alignas(64) Block {
    size_t bytes;  // that follow
  };

  // The lock is only tried: the system's allocator does where another thread holds it.
  Block* take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (auto block = kept_.rbegin(); block != kept_.rend(); ++block) {
      if ((*block)->bytes < bytes || (*block)->bytes > bytes + bytes / 4) continue;
      Block* found = *block;
      kept_bytes_ -= found->bytes;
      kept_.erase(std::next(block).base());
      return found;
    }
    return nullptr;
  }
  void put(Block* freed) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return c10::free_cpu(freed);
    kept_.push_back(freed);
    kept_bytes_ += freed->bytes;
    while (kept_bytes_ > kKept) {
      kept_bytes_ -= kept_.front()->bytes;
      c10::free_cpu(kept_.front());
      kept_.erase(kept_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Block*> kept_;  // in the order in which they were freed
  size_t kept_bytes_ = 0;
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

}  // namespace rnnfast
