// Memory that c10's CPU allocator hands out is guarded while a GuardedTensors lives.
// Exits with the number of tests that failed.
#include "guard.h"

#include <cmath>

#include "check.h"

using namespace rnnfast;
using namespace rnnfast::dev;
using namespace rnnfast::emu;

struct Pointer {
  float* p;
};
KERNEL writes(const Pointer args) { *args.p = 1; }

void tensors_are_guarded() {
  c10::DataPtr data;
  {
    const GuardedTensors on;
    data = c10::GetCPUAllocator()->allocate(400);
  }
  auto* x = static_cast<float*>(data.get());
  for (int i = 0; i < 100; ++i) check(std::isnan(x[i]), "not NaN");
  check_runs(writes, {}, {x + 99});
  check_fails(writes, {}, {x + 100}, {"write to 0 bytes after the end of a tensor (400 bytes)"});
  check_fails(writes, {}, {x - 1}, {"wrote beside a tensor"});
  data.clear();
  check_fails(writes, {}, {x}, {"write to"});
}

void only_while_it_lives() {
  c10::Allocator* const before = c10::GetCPUAllocator();
  {
    const GuardedTensors on;
    check(c10::GetCPUAllocator() != before, "not on");
  }
  check(c10::GetCPUAllocator() == before, "still on");
}

int main() {
  return run_tests({
      {"tensors are guarded", tensors_are_guarded},
      {"only while it lives", only_while_it_lives},
  });
}
