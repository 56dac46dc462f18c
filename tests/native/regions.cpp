// Preloaded beside ThreadSanitizer: that OpenMP's threads begin after the thread that opens a
// region and end before it goes on is nothing it can see, as libgomp is built without it and waits
// by futexes.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

namespace {

struct Region {
  void (*work)(void*);
  void* data;
  char begun = 0, done = 0;  // what order is said of
};

void run(void* region) {
  auto& r = *static_cast<Region*>(region);
  __tsan_acquire(&r.begun);
  r.work(r.data);
  __tsan_release(&r.done);
}

}  // namespace

extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto next = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{work, data};
  __tsan_release(&region.begun);
  next(run, &region, threads, flags);
  __tsan_acquire(&region.done);
}
