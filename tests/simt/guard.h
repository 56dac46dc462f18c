// Tensors in guarded memory: while a GuardedTensors lives, every CPU tensor that ATen makes lies
// against a page that may not be touched, and starts as NaN. The tensors may outlive it.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <map>
#include <memory>
#include <mutex>

#include "memory.h"

namespace rnnfast::emu {

class GuardAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t kAlignment = 16;  // of the largest access of a thread
    auto block = std::make_unique<GuardedBlock>("a tensor", bytes, kAlignment);
    void* data = block->data();
    const std::lock_guard lock(mutex());
    blocks()[data] = std::move(block);
    return {data, data, release, c10::Device(c10::DeviceType::CPU)};
  }
  // ATen's own kernels allocate scratch memory through raw pointers.
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex result;
    return result;
  }
  static std::map<void*, std::unique_ptr<GuardedBlock>>& blocks() {
    static auto& result = *new std::map<void*, std::unique_ptr<GuardedBlock>>;  // outlives tensors
    return result;
  }
  static void release(void* data) {
    const std::lock_guard lock(mutex());
    blocks().erase(data);
  }
};

class GuardedTensors {
 public:
  GuardedTensors() {
    static GuardAllocator allocator;  // as long as any tensor
    c10::SetAllocator(c10::DeviceType::CPU, &allocator, kPriority);
  }
  GuardedTensors(const GuardedTensors&) = delete;
  ~GuardedTensors() { c10::SetAllocator(c10::DeviceType::CPU, before_, kPriority); }

 private:
  static constexpr uint8_t kPriority = 255;
  c10::Allocator* before_ = c10::GetAllocator(c10::DeviceType::CPU);
};

}  // namespace rnnfast::emu
