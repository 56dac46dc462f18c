// Memory whose end lies against a page that may not be touched, so that the CPU itself reports an
// access behind it. It starts as 0xFF everywhere: NaN in every floating type.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "fiber.h"

namespace rnnfast::emu {

constexpr size_t kGuard = 1 << 20;  // an index may be far off

class GuardedBlock {
 public:
  // The end is `alignment` - 1 bytes off the guard page at most; those bytes, and the ones before
  // the block, must stay as they are.
  GuardedBlock(std::string name, size_t bytes, size_t alignment)
      : name_(std::move(name)),
        bytes_(bytes),
        room_((bytes + kPage - 1) / kPage * kPage),
        mapping_(static_cast<uint8_t*>(mmap(nullptr, room_ + 2 * kGuard, PROT_NONE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (mapping_ == MAP_FAILED || mprotect(mapping_ + kGuard, room_, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
    data_ = mapping_ + kGuard + room_ - (bytes + alignment - 1) / alignment * alignment;
    std::memset(mapping_ + kGuard, 0xFF, room_);
    const std::lock_guard lock(mutex());
    blocks()[mapping_] = this;
  }
  GuardedBlock(const GuardedBlock&) = delete;
  ~GuardedBlock() {
    {
      const std::lock_guard lock(mutex());
      blocks().erase(mapping_);
    }
    munmap(mapping_, room_ + 2 * kGuard);
  }

  uint8_t* data() const { return data_; }
  bool holds(const void* p, size_t n) const {
    const auto* at = static_cast<const uint8_t*>(p);
    return at >= data_ && n <= bytes_ && at <= data_ + bytes_ - n;
  }
  void poison() { std::memset(mapping_ + kGuard, 0xFF, room_); }

  // Whether something was written beside the block, on its own pages.
  bool damaged() const {
    return !untouched(mapping_ + kGuard, data_) ||
           !untouched(data_ + bytes_, mapping_ + kGuard + room_);
  }

  // "12 bytes after the end of NAME (64 bytes)", or "" for an address of no block.
  static std::string describe(const void* p) {
    const auto* at = static_cast<const uint8_t*>(p);
    const std::lock_guard lock(mutex());
    const auto next = blocks().upper_bound(at);
    if (next == blocks().begin()) return "";
    const GuardedBlock& block = *std::prev(next)->second;
    if (at >= block.mapping_ + block.room_ + 2 * kGuard) return "";
    const std::string of = " of " + block.name_ + " (" + std::to_string(block.bytes_) + " bytes)";
    if (at < block.data_) return std::to_string(block.data_ - at) + " bytes before the start" + of;
    const auto offset = static_cast<size_t>(at - block.data_);
    if (offset < block.bytes_) return "byte " + std::to_string(offset) + of;
    return std::to_string(offset - block.bytes_) + " bytes after the end" + of;
  }

  // Describes the first damaged block, once, or "".
  static std::string find_damage() {
    const std::lock_guard lock(mutex());
    for (const auto& [mapping, block] : blocks())
      if (block->damaged()) {
        block->repair();
        return "wrote beside " + block->name_ + " (" + std::to_string(block->bytes_) + " bytes)";
      }
    return "";
  }

 private:
  static bool untouched(const uint8_t* from, const uint8_t* to) {
    for (; from < to; ++from)
      if (*from != 0xFF) return false;
    return true;
  }
  void repair() {
    std::memset(mapping_ + kGuard, 0xFF, static_cast<size_t>(data_ - mapping_) - kGuard);
    std::memset(data_ + bytes_, 0xFF,
                static_cast<size_t>(mapping_ + kGuard + room_ - data_) - bytes_);
  }
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::map<const uint8_t*, GuardedBlock*>& blocks() {
    static std::map<const uint8_t*, GuardedBlock*> instance;
    return instance;
  }

  std::string name_;
  size_t bytes_, room_;
  uint8_t* mapping_;
  uint8_t* data_;
};

}  // namespace rnnfast::emu
