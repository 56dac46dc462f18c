// Fibers: functions that run on stacks of their own and take turns on one thread of the CPU.
// x86-64 switches by twelve instructions; elsewhere, or with RNNFAST_SIMT_UCONTEXT, by ucontext.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if !defined(__x86_64__) && !defined(RNNFAST_SIMT_UCONTEXT)
#define RNNFAST_SIMT_UCONTEXT
#endif
#ifdef RNNFAST_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace rnnfast::emu {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 128 << 10;

// A process may have 65530 mappings. A stack with a guard is two; others lie in one.
constexpr size_t kGuarded = 16384;

// A stack above a page that may not be touched.
struct Stack {
  uint8_t* mapping;
  size_t bytes;
  uint8_t* base() const { return mapping + kPage; }
  bool overflown_at(const void* p) const {
    return p >= mapping && p < static_cast<const void*>(base());
  }
};

// The stacks of the fibers that run at the same time; kept from launch to launch.
class StackPool {
 public:
  Stack operator[](size_t i) {
    while (stacks_.size() <= i) {
      void* p = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      if (stacks_.size() < kGuarded && mprotect(p, kPage, PROT_NONE) != 0) throw std::bad_alloc();
      // Begun at different places in a page: else they would share a few sets of the caches.
      const size_t unused = stacks_.size() % 32 * 128;
      stacks_.push_back({static_cast<uint8_t*>(p), kStackBytes - unused});
    }
    return stacks_[i];
  }
  ~StackPool() {
    for (Stack s : stacks_) munmap(s.mapping, kPage + kStackBytes);
  }

 private:
  std::vector<Stack> stacks_;
};

#ifdef RNNFAST_SIMT_UCONTEXT

struct Context {
  ucontext_t state;
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

inline void start_context(Context& context, Stack stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack.base();
  context.state.uc_stack.ss_size = stack.bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

#else

struct Context {
  void* stack_pointer;
};

// Pushes what a function must preserve onto the stack left, and pops it from the one entered.
__attribute__((naked, noinline)) inline void switch_stack(void**, void*) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}

inline void switch_context(Context& from, Context& to) {
  switch_stack(&from.stack_pointer, to.stack_pointer);
}

inline void start_context(Context& context, Stack stack, void (*entry)()) {
  auto* top = reinterpret_cast<uintptr_t*>(stack.base() + stack.bytes - 64);
  *--top = 0;  // where a return from `entry` would go; it also aligns the stack as a call does
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context.stack_pointer = top;
}

#endif

}  // namespace rnnfast::emu
