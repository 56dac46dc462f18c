// The device primitives of csrc/cuda/device.h on the emulator; see there for what they mean.
#pragma once

#define DEVICE inline
#define KERNEL inline void
#define LAUNCH_BOUNDS(threads)
#define LAUNCH_BOUNDS_FOR(threads, ctas)
#define UNROLL
#define HAS_CLUSTER 1
#define HAS_MMA 1
#define TAKES_MORE_REGISTERS 0

#include "simt/device/memory.h"
#include "simt/device/numbers.h"
#include "simt/device/threads.h"
