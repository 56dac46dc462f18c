// What a plan is asked for on a GPU, and what it says: shared by the families of kernels, each of
// which says for itself what it serves and what a step is expected to cost. Without CUDA and torch.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "cuda/instances.h"
#include "problem.h"

namespace rnnfast::cuda {

enum class Type { kFloat64, kFloat32, kBfloat16, kFloat16 };

// One product and one kernel per time step; one launch for a sequence of one step; or the whole
// sequence in one launch: small layers on a few rows a block, float32 without tensor cores, by one
// block of threads per tile of the batch, by a cluster of them, or by a grid.
enum class Kernel { kStep, kSingle, kSmall, kFma, kCta, kCluster, kGrid };
inline constexpr std::string_view kKernelNames[] = {"step", "single",  "small", "fma",
                                                    "cta",  "cluster", "grid"};

// The kernel of that name; none for "auto".
inline std::optional<Kernel> find_kernel(std::string_view name) {
  const auto found = std::find(std::begin(kKernelNames), std::end(kKernelNames), name);
  if (found == std::end(kKernelNames)) return std::nullopt;
  return static_cast<Kernel>(found - std::begin(kKernelNames));
}

// What RNNFAST_CUDA_KERNEL asks for: one kernel, and of its entries in the plan all, or one by its
// number, to measure each of them.
struct Wish {
  Kernel kernel;
  int entry;  // -1: all
};

// The wish that "cluster" or "cluster/2" says; none for "auto" and for what is no kernel.
inline std::optional<Wish> find_wish(std::string_view text) {
  const size_t slash = text.find('/');
  const auto kernel = find_kernel(text.substr(0, slash));
  if (!kernel) return std::nullopt;
  if (slash == text.npos) return Wish{*kernel, -1};
  int entry = -1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + slash + 1, end, entry);
  if (error != std::errc() || stop != end || entry < 0) return std::nullopt;
  return Wish{*kernel, entry};
}

struct Device {
  int arch;          // 10 * major + minor of the compute capability
  int processors;    // streaming multiprocessors
  int shared_bytes;  // of shared memory that one block may have
  int max_cluster;   // blocks
};

// A problem, and how and where it is to be run.
struct Request : Problem {
  bool whole_sequence;  // whether there are kernels for the cell besides those of a step
  Type type;
  bool backward;
  bool tf32;  // float32 products may round their operands to TF32
  Device device;
  std::optional<Wish> wanted;  // no other than this; what it cannot run goes to `step`
  bool resets = false;         // rows begin anew inside the sequence, which few kernels know
};

struct Plan {
  Kernel kernel;
  int instance;         // of the kernel's family; -1: step
  int hidden;           // H at most
  int peers;            // CTAs that share a tile of the batch
  int rows;             // of a tile
  int64_t tiles;        // of the batch
  double microseconds;  // per time step, as expected
  int part = 0;         // rows that a product takes at a time; 0: all of a tile
};
using Plans = std::vector<Plan>;

// With so many units cuDNN uses TF32 where it is allowed.
inline constexpr int64_t kTf32Units = 64;

// How a whole-sequence kernel multiplies numbers of that type; none does float64. Smaller layers
// are as exact as cuDNN's: by `fma`, or with resets, of which that knows nothing, by two parts.
inline std::optional<Precision> precision(const Request& p) {
  switch (p.type) {
    case Type::kBfloat16:
      return Precision::kBf16;
    case Type::kFloat16:
      return Precision::kHalf;
    case Type::kFloat32:
      return p.tf32 && !(p.resets && p.H < kTf32Units) ? Precision::kTf32 : Precision::kFloat;
    case Type::kFloat64:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace rnnfast::cuda
