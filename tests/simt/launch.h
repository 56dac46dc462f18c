// How a launch on the emulator begins, ends and fails. Included by emulator.h.
#pragma once

namespace rnnfast::emu {

// ---- faults ----

inline void Machine::fault(const siginfo_t& info, const char* access) {
  std::string where = GuardedBlock::describe(info.si_addr);
  if (info.si_code == SI_KERNEL)  // the CPU does not say where
    where = "a misaligned address";
  else if (stacks[static_cast<size_t>(current_ - fibers_.data())].overflown_at(info.si_addr))
    where = "the page behind its stack";
  else if (where.empty())
    where = "an address that is of no block";
  fail(std::string(access) + " " + where);
}

// While it lives, a fault of a kernel on this thread ends the launch with an error. The signal
// handler never returns then: it goes to the scheduler, as every failing fiber does.
struct FaultHandler {
  FaultHandler() {
    stack_t ours{};
    ours.ss_sp = memory_.data();
    ours.ss_size = memory_.size();
    sigaltstack(&ours, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_action());
    thread() = pthread_self();
  }
  FaultHandler(const FaultHandler&) = delete;
  ~FaultHandler() {
    sigaction(SIGSEGV, &old_action(), nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static struct sigaction& old_action() {
    static struct sigaction instance;
    return instance;
  }
  static pthread_t& thread() {
    static pthread_t instance;
    return instance;
  }
  static void handle(int, siginfo_t* info, [[maybe_unused]] void* context) {
    const char* access = "access to";
#if defined(__x86_64__)
    const bool write = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
    access = write ? "write to" : "read of";
#endif
    if (machine && pthread_equal(thread(), pthread_self()) && machine->runs_kernel())
      machine->fault(*info, access);
    sigaction(SIGSEGV, &old_action(), nullptr);  // not ours: the next fault goes where it belongs
  }

  std::vector<uint8_t> memory_ = std::vector<uint8_t>(64 << 10);
  stack_t old_stack_{};
};

// ---- launches ----

inline std::string demangle(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  const std::string name = status == 0 ? text : symbol;
  std::free(text);
  return name;
}

// The kernel's own name where the linker has kept it, else that of its arguments.
template <class Args>
std::string name_of(const void* kernel) {
  Dl_info info{};
  if (dladdr(kernel, &info) && info.dli_sname) return demangle(info.dli_sname);
  return "of " + demangle(typeid(Args).name());
}

// Whether the emulated device takes a launch of this size.
inline bool fits(int blocks, int cluster, size_t smem_bytes, bool cooperative) {
  return smem_bytes <= settings.max_smem_bytes && cluster <= settings.max_cluster &&
         (cluster == 1 || settings.max_active_clusters > 0) &&
         (!cooperative || blocks <= settings.max_cooperative_blocks);
}

template <class Args>
void launch(void (*kernel)(Args), Shape shape, const Args& args) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const auto* address = reinterpret_cast<const void*>(kernel);
  const auto entry = [](const void* k, const void* a) {
    reinterpret_cast<void (*)(Args)>(const_cast<void*>(k))(*static_cast<const Args*>(a));
  };
  const size_t fibers =
      static_cast<size_t>(shape.threads) *
      static_cast<size_t>(shape.cooperative ? shape.grid_x * shape.grid_y : shape.cluster);
  const std::string name = name_of<Args>(address);
  if (shape.threads < kWarp || shape.threads > 1024 || shape.threads % kWarp != 0)
    throw Error("kernel " + name + ": " + std::to_string(shape.threads) + " threads");
  if (shape.grid_x < 1 || shape.grid_y < 1 || shape.cluster < 1 ||
      shape.grid_x % shape.cluster != 0)
    throw Error("kernel " + name + ": the grid is empty or not of whole clusters");
  if (fibers > kMaxFibers)
    throw Error("kernel " + name + ": more threads at a time than the emulator runs");
  if (const std::string damage = GuardedBlock::find_damage(); !damage.empty())
    throw Error("before kernel " + name + ": " + damage);
  const FaultHandler handler;
  Machine m(name, shape, entry, address, &args);
  machine = &m;
  struct Off {
    ~Off() { machine = nullptr; }
  } off;
  m.run_grid();
  launches.push_back(shape);
}

}  // namespace rnnfast::emu
