// What a fork of this process leaves to the child: of all threads the one that forked.
#pragma once

#include <pthread.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/frozen.h"
#include "cpu/memory.h"

namespace rnnfast::cpu {

// OpenMP keeps the threads of a region for the next one that the same thread opens. They are not in
// the child, which would wait for them for ever, in our kernels and in torch's. So this thread's
// end here; who opens a region after the fork, parent or child, gets new ones.
inline void before_fork() {
#if defined(_OPENMP)
  omp_pause_resource_all(omp_pause_soft);
#endif
  // In the order in which they are taken elsewhere.
  FrozenWeights::instance().lock();
  Pool::instance().lock();
}

inline void after_fork() {
  Pool::instance().unlock();
  FrozenWeights::instance().unlock();
}

// Once, when the library is loaded. What the first call would make is made here: a fork while
// another thread is at it would leave the child waiting for that.
inline void prepare_for_forks() {
  FrozenWeights::instance();
  Pool::instance();
  pthread_atfork(before_fork, after_fork, after_fork);
}

}  // namespace rnnfast::cpu
