// The caches of this machine's cores, for the plans.
#pragma once

#if defined(__unix__)
#include <unistd.h>
#endif

#include "cpu/plan.h"

namespace rnnfast::cpu {

inline Caches reported_caches() {
  Caches found = kSmallCaches;
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  const long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (l1 > 0) found.l1 = l1;
  if (l2 > 0) found.l2 = l2;
#endif
  return found;
}

// Asked when the library is loaded: a local static variable has a lock, see team.h.
inline const Caches kCaches = reported_caches();

}  // namespace rnnfast::cpu
