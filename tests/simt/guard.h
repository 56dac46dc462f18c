// Tensors in guarded memory: while a GuardedTensors lives, every CPU tensor that ATen makes lies
// against a page that may not be touched, and starts as NaN. The tensors may outlive it.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "memory.h"

namespace rnnfast::emu {

class GuardAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t kAlignment = 16;  // of the largest access of a thread
    auto* block = new GuardedBlock("a tensor", bytes, kAlignment);
    return {block->data(), block, release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void release(void* block) { delete static_cast<GuardedBlock*>(block); }
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
