// The device primitives that the kernels are written in. Everything that is specific to a GPU,
// inline PTX above all, is in the files of cuda/device/; with RNNFAST_SIMT the emulator in
// tests/simt, which has files of the same names, stands in for them and the kernels run on a CPU.
// In a kernel every name of theirs is one of dev::.
#pragma once

#ifdef RNNFAST_SIMT
#include "simt/device.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL __global__ void
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#define LAUNCH_BOUNDS_FOR(threads, ctas) __launch_bounds__(threads, ctas)
#define UNROLL _Pragma("unroll")

// What the architecture being compiled for has, for #if and if constexpr in kernel bodies: clusters
// with distributed shared memory and mbarriers, and m16n8k16 tensor core instructions. The
// primitives that need them trap elsewhere.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HAS_CLUSTER 0
#else
#define HAS_CLUSTER 1
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define HAS_MMA 0
#else
#define HAS_MMA 1
#endif
// For sm_100 and later ptxas takes some registers more for the same kernel.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define TAKES_MORE_REGISTERS 1
#else
#define TAKES_MORE_REGISTERS 0
#endif

#include "cuda/device/memory.h"
#include "cuda/device/numbers.h"
#include "cuda/device/threads.h"

#endif  // RNNFAST_SIMT
