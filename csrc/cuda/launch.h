// Launching kernels, torch-free. A kernel is a function of one plain struct, at most 4 KB:
//   template <class Config> KERNEL LAUNCH_BOUNDS(Config::kThreads) name(const Args args);
//   Status status = launch(name<Config>, Launch{.grid_x = 8, .threads = 256}, stream, args);
// Nothing here allocates device memory, waits for the device, or uses another stream.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>

#ifdef RNNFAST_SIMT
#include "simt/emulator.h"
#else
#include <cuda_runtime.h>

#include <array>
#include <map>
#include <mutex>
#include <utility>
#endif

namespace rnnfast::dev {

struct Launch {
  int grid_x = 1, grid_y = 1;
  int threads = 32;          // a multiple of 32
  int cluster = 1;           // CTAs per cluster along x; divides grid_x
  size_t smem_bytes = 0;     // dynamic shared memory
  bool cooperative = false;  // all CTAs run at the same time, or the launch is refused
  bool dependent = false;    // may begin before its stream comes to it: see wait_for_previous
};

struct Status {
  enum Code {
    kOk,
    kDoesNotFit,  // the device refuses this size of CTA, cluster or cooperative grid; nothing ran
    kError
  };
  Code code = kOk;
  std::string text;

  bool ok() const { return code == kOk; }
};

#ifdef RNNFAST_SIMT

struct Stream {};

// Errors of the kernel itself leave as emu::Error.
template <class Args>
Status launch(void (*kernel)(Args), const Launch& l, Stream,
              const std::type_identity_t<Args>& args) {
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096);
  if (!emu::fits(l.grid_x * l.grid_y, l.cluster, l.smem_bytes, l.cooperative))
    return {Status::kDoesNotFit, "refused by the emulator's settings"};
  emu::launch(kernel,
              {l.grid_x, l.grid_y, l.threads, l.cluster, l.smem_bytes, l.cooperative, l.dependent},
              args);
  return {};
}

template <class Args>
int max_active_clusters(void (*)(Args), const Launch&) {
  return emu::settings.max_active_clusters;
}
template <class Args>
int max_cooperative_blocks(void (*)(Args), const Launch&) {
  return emu::settings.max_cooperative_blocks;
}
template <class Args>
int compiled_for(void (*)(Args)) {
  return 90;
}

#else

using Stream = cudaStream_t;

namespace detail {

inline Status status_of(cudaError_t error) {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());  // or the next check of someone else reports it
  switch (error) {
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorInvalidClusterSize:
    case cudaErrorLaunchOutOfResources:
      return {Status::kDoesNotFit, cudaGetErrorString(error)};
    default:
      return {Status::kError, cudaGetErrorString(error)};
  }
}

// Shared memory and CTAs per cluster that need no attribute.
inline constexpr size_t kPlainBytes = 48 << 10;
inline constexpr int kPlainCluster = 8;

// What has been set, or asked, for one kernel on one device.
struct KernelState {
  size_t smem_bytes = kPlainBytes;
  bool large_cluster = false;
  int compiled_for = -1;                          // not asked yet
  std::map<std::array<size_t, 4>, int> resident;  // by {threads, cluster, smem, cooperative}
};

// The state of every kernel, of which one caller at a time uses one.
class KernelStates {
 public:
  static KernelStates& instance() {
    static KernelStates states;
    return states;
  }
  // Calls f(state) with that of this kernel on the current device.
  template <class F>
  auto use(const void* kernel, F f) {
    int device = 0;
    cudaGetDevice(&device);
    const std::lock_guard lock(mutex_);
    return f(states_[{kernel, device}]);
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<const void*, int>, KernelState> states_;
};

// Asks for more than 48 KB of shared memory and clusters of more than 8 where the launch needs it.
inline Status prepare(const void* kernel, const Launch& l, KernelState& state) {
  if (l.smem_bytes > state.smem_bytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.smem_bytes));
    if (error == cudaErrorInvalidValue) {
      static_cast<void>(cudaGetLastError());
      return {Status::kDoesNotFit, "more shared memory than a CTA can have"};
    }
    if (error != cudaSuccess) return status_of(error);
    state.smem_bytes = l.smem_bytes;
  }
  if (l.cluster > kPlainCluster && !state.large_cluster) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return status_of(error);
    state.large_cluster = true;
  }
  return {};
}

// A launch as the runtime takes it.
struct Config {
  Config(const Launch& l, Stream stream) {
    config.gridDim = dim3(static_cast<unsigned>(l.grid_x), static_cast<unsigned>(l.grid_y));
    config.blockDim = dim3(static_cast<unsigned>(l.threads));
    config.dynamicSmemBytes = l.smem_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (l.cluster > 1) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeClusterDimension;
      a.val.clusterDim.x = static_cast<unsigned>(l.cluster);
      a.val.clusterDim.y = a.val.clusterDim.z = 1;
    }
    if (l.cooperative) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeCooperative;
      a.val.cooperative = 1;
    }
    if (l.dependent) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      a.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  Config(const Config&) = delete;  // config.attrs points into it

  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[3]{};
};

inline Status launch(const void* kernel, const Launch& l, Stream stream, void* args) {
  // `step` launches once per time step, and should not pay for a lock and a search.
  if (l.smem_bytes > kPlainBytes || l.cluster > kPlainCluster) {
    const Status ready = KernelStates::instance().use(
        kernel, [&](KernelState& state) { return prepare(kernel, l, state); });
    if (!ready.ok()) return ready;
  }
  const Config config(l, stream);
  return status_of(cudaLaunchKernelExC(&config.config, kernel, &args));
}

// Asked once per kind of launch. 0 where the device cannot hold even one.
template <class Query>
int resident(const void* kernel, const Launch& l, Query query) {
  return KernelStates::instance().use(kernel, [&](KernelState& state) {
    const std::array<size_t, 4> kind{static_cast<size_t>(l.threads), static_cast<size_t>(l.cluster),
                                     l.smem_bytes, l.cooperative};
    const auto known = state.resident.find(kind);
    if (known != state.resident.end()) return known->second;
    int count = 0;
    if (!prepare(kernel, l, state).ok() || !status_of(query(&count)).ok()) count = 0;
    return state.resident[kind] = count;
  });
}

}  // namespace detail

template <class Args>
Status launch(void (*kernel)(Args), const Launch& l, Stream stream,
              const std::type_identity_t<Args>& args) {
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096);
  return detail::launch(reinterpret_cast<const void*>(kernel), l, stream, const_cast<Args*>(&args));
}

// Clusters of this kind that the device holds at the same time.
template <class Args>
int max_active_clusters(void (*kernel)(Args), const Launch& l) {
  const void* address = reinterpret_cast<const void*>(kernel);
  return detail::resident(address, l, [&](int* count) {
    const detail::Config config(l, nullptr);
    return cudaOccupancyMaxActiveClusters(count, address, &config.config);
  });
}

// The largest cooperative grid, in CTAs.
template <class Args>
int max_cooperative_blocks(void (*kernel)(Args), const Launch& l) {
  if (l.cluster > 1) return max_active_clusters(kernel, l) * l.cluster;
  const void* address = reinterpret_cast<const void*>(kernel);
  return detail::resident(address, l, [&](int* count) {
    int device = 0, processors = 0, blocks = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
      error =
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, address, l.threads, l.smem_bytes);
    *count = blocks * processors;
    return error;
  });
}

// The architecture, 10 * major + minor, whose features the code of this kernel has that runs on the
// current device: an older one's than the device's where that is all there is. 0: nothing runs.
template <class Args>
int compiled_for(void (*kernel)(Args)) {
  const void* address = reinterpret_cast<const void*>(kernel);
  return detail::KernelStates::instance().use(address, [&](detail::KernelState& state) {
    if (state.compiled_for >= 0) return state.compiled_for;
    cudaFuncAttributes attributes{};
    const bool found = detail::status_of(cudaFuncGetAttributes(&attributes, address)).ok();
    return state.compiled_for = found ? attributes.ptxVersion : 0;
  });
}

#endif  // RNNFAST_SIMT

}  // namespace rnnfast::dev
