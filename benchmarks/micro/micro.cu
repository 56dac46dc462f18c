// What the primitives cost that the kernels of csrc/cuda are made of. `python -m benchmarks.micro`
// builds and runs it; by hand:
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -Xcompiler -iquote,csrc benchmarks/micro/micro.cu -o micro
//   ./micro [GROUP...]        device launch tensor barrier cluster exchange grid; default: all
//
// One JSON object a line. A kernel repeats a primitive and times its loop, in the slowest CTA; what
// is printed are medians over several launches. Exchanges check what arrives: after every round in
// a first launch, after the last in the timed ones. A lost signal hangs, so run it with a limit.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "primitives.cuh"

using namespace rnnfast;
using namespace rnnfast::micro;

namespace {

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class T>
T* allocate(size_t count) {
  void* p = nullptr;
  require(cudaMalloc(&p, count * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(p);
}

using Kernel = void (*)(Args);

// Runs a kernel, prints a line: cycles and nanoseconds of one primitive, and what follows from
// them.
class Bench {
 public:
  Bench() {
    int device = 0;
    require(cudaGetDevice(&device), "no GPU");
    require(cudaGetDeviceProperties(&properties_, device), "properties");
    require(cudaStreamCreate(&stream_), "stream");
    args_.cycles = allocate<int64_t>(kMaxCtas);
    args_.nanoseconds = allocate<int64_t>(kMaxCtas);
    args_.errors = allocate<uint32_t>(1);
    args_.flags = allocate<uint32_t>(kMaxCtas);
    args_.vectors = allocate<uint8_t>(size_t{kMaxCtas} * 2 * kMaxVectorBytes);
  }

  int processors() const { return properties_.multiProcessorCount; }
  const cudaDeviceProp& properties() const { return properties_; }
  dev::Stream stream() const { return stream_; }
  const Args& args() const { return args_; }

  void begin(const char* group) { group_ = group; }

  void print(const std::string& name, const std::string& fields) const {
    std::printf("{\"group\": \"%s\", \"name\": \"%s\", %s}\n", group_, name.c_str(),
                fields.c_str());
    std::fflush(stdout);
  }
  void fact(const std::string& name, double value) const {
    print(name, "\"value\": " + number(value));
  }

  static std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return text;
  }

  // per_iteration: primitives of one SM. unit, per_primitive: what a primitive does, for a rate by
  // nanosecond of all SMs that run (TFLOP/s, GB/s after the factor).
  void time(const std::string& name, Kernel kernel, const dev::Launch& launch, Args args,
            double per_iteration, const char* unit = nullptr, double per_primitive = 0) {
    args.check = true;
    const int iterations = args.iterations;
    args.iterations = std::min(iterations, 64);
    std::vector<double> cycles, ns;
    for (int sample = -1; sample < kSamples; ++sample) {
      std::string problem = run(kernel, launch, args);
      if (!problem.empty()) return print(name, "\"error\": \"" + problem + "\"");
      if (sample >= 0) {
        const double primitives = per_iteration * iterations;
        cycles.push_back(slowest(args.cycles, launch.grid_x) / primitives);
        ns.push_back(slowest(args.nanoseconds, launch.grid_x) / primitives);
      }
      args.check = false, args.iterations = iterations;
    }
    std::string fields =
        "\"cycles\": " + number(median(cycles)) + ", \"ns\": " + number(median(ns));
    if (unit)
      fields += ", \"rate\": " + number(per_primitive * launch.grid_x / median(ns)) +
                ", \"unit\": \"" + unit + "\"";
    print(name, fields);
  }

  // Nanoseconds of one of `count` things that `enqueue` puts on the stream.
  template <class F>
  void time_stream(const std::string& name, int count, F enqueue) {
    cudaEvent_t start, stop;
    require(cudaEventCreate(&start), "event"), require(cudaEventCreate(&stop), "event");
    std::vector<double> ns;
    for (int sample = -1; sample < kSamples; ++sample) {
      require(cudaEventRecord(start, stream_), "record");
      const dev::Status status = enqueue();
      if (!status.ok()) return print(name, "\"error\": \"" + status.text + "\"");
      require(cudaEventRecord(stop, stream_), "record");
      require(cudaStreamSynchronize(stream_), "synchronize");
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, start, stop), "elapsed");
      if (sample >= 0) ns.push_back(milliseconds * 1e6 / count);
    }
    print(name, "\"ns\": " + number(median(ns)));
  }

 private:
  // What went wrong, or nothing.
  std::string run(Kernel kernel, const dev::Launch& launch, const Args& args) {
    require(cudaMemsetAsync(args.errors, 0, sizeof(uint32_t), stream_), "memset");
    require(cudaMemsetAsync(args.flags, 0, kMaxCtas * sizeof(uint32_t), stream_), "memset");
    const dev::Status status = dev::launch(kernel, launch, stream_, args);
    if (!status.ok()) return status.text;
    require(cudaStreamSynchronize(stream_), "kernel");
    uint32_t errors = 0;
    require(cudaMemcpy(&errors, args.errors, sizeof errors, cudaMemcpyDefault), "copy");
    return errors == 0 ? "" : "wrong data " + std::to_string(errors) + " times";
  }

  static double slowest(const int64_t* on_device, int count) {
    std::vector<int64_t> times(static_cast<size_t>(count));
    require(cudaMemcpy(times.data(), on_device, times.size() * sizeof(int64_t), cudaMemcpyDefault),
            "copy");
    return static_cast<double>(*std::max_element(times.begin(), times.end()));
  }

  cudaDeviceProp properties_{};
  dev::Stream stream_{};
  Args args_{};
  const char* group_ = "";
};

Args with(const Bench& bench, int iterations, int bytes = 0, int peers = 1) {
  Args args = bench.args();
  args.iterations = iterations, args.bytes = bytes, args.peers = peers;
  return args;
}

void device_facts(Bench& b) {
  b.fact("multiprocessors", b.processors());
  b.fact("L2 bytes", b.properties().l2CacheSize);
  b.fact("shared bytes of a CTA", static_cast<double>(b.properties().sharedMemPerBlockOptin));
  for (int cluster : {2, 4, 8, 16})
    for (size_t kilobytes : {64, 128, 200}) {
      const dev::Launch launch{.grid_x = cluster * b.processors(),
                               .threads = kThreads,
                               .cluster = cluster,
                               .smem_bytes = kilobytes << 10};
      const std::string size = std::to_string(cluster) + ", " + std::to_string(kilobytes) + " KB";
      b.fact("resident clusters of " + size, dev::max_active_clusters(empty, launch));
    }
}

void launches(Bench& b) {
  constexpr int kLaunches = 2000, kNodes = 200, kReplays = 5;
  const dev::Launch clusters{.grid_x = 8, .threads = kThreads, .cluster = 8, .smem_bytes = kOneCta};
  const int fit = dev::max_active_clusters(empty, clusters);
  const std::pair<const char*, dev::Launch> kinds[] = {
      {"plain", {.grid_x = b.processors(), .threads = kThreads}},
      {"cooperative", {.grid_x = b.processors(), .threads = kThreads, .cooperative = true}},
      {"clusters of 8",
       {.grid_x = 8 * std::max(fit, 1), .threads = kThreads, .cluster = 8, .smem_bytes = kOneCta}}};
  for (const auto& [name, launch] : kinds) {
    const auto chain = [&b, &launch = launch](int count) {
      dev::Status status;
      for (int i = 0; i < count && status.ok(); ++i)
        status = dev::launch(empty, launch, b.stream(), b.args());
      return status;
    };
    if (!chain(1).ok()) continue;
    b.time_stream(std::string(name) + ", in a stream", kLaunches, [&] { return chain(kLaunches); });
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    require(cudaStreamBeginCapture(b.stream(), cudaStreamCaptureModeThreadLocal), "capture");
    chain(kNodes);
    require(cudaStreamEndCapture(b.stream(), &graph), "capture");
    require(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
    b.time_stream(std::string(name) + ", in a graph", kNodes * kReplays, [&] {
      for (int i = 0; i < kReplays; ++i) require(cudaGraphLaunch(replay, b.stream()), "replay");
      return dev::Status{};
    });
  }
}

template <class Mma>
void products(Bench& b, const std::string& name, double flop) {
  b.time(name + ", latency", mma_rate<Mma, 1>, {.threads = 32}, with(b, 512), kUnroll);
  for (int warps : {4, 8, 16})
    b.time(name + ", " + std::to_string(warps) + " warps", mma_rate<Mma, 4>,
           {.grid_x = b.processors(), .threads = warps * 32}, with(b, 1024), 4.0 * kUnroll * warps,
           "TFLOP/s", flop / 1e3);
}

void tensor(Bench& b) {
  products<dev::MmaBf16>(b, "mma m16n8k16 bf16", 16 * 8 * 16 * 2);
  products<dev::MmaTf32>(b, "mma m16n8k8 tf32", 16 * 8 * 8 * 2);
  constexpr size_t kTiles = kUnroll * 512;
  b.time("ldmatrix.x4, latency", ldmatrix_rate<true>, {.threads = 32, .smem_bytes = kTiles},
         with(b, 512), kUnroll);
  b.time("ldmatrix.x4, 16 warps", ldmatrix_rate<false>,
         {.grid_x = b.processors(), .threads = kThreads, .smem_bytes = kTiles}, with(b, 512),
         16.0 * kUnroll, "GB/s", 512);
}

void barriers(Bench& b) {
  for (int threads : {128, 256, 512})
    b.time("cta_sync, " + std::to_string(threads) + " threads", barrier_rate<Barrier::kCta>,
           {.threads = threads}, with(b, 512), kUnroll);
  b.time("group_sync, 128 of 512 threads", barrier_rate<Barrier::kGroup>, {.threads = kThreads},
         with(b, 512), kUnroll);
}

// One cluster alone, and as many as fit at one CTA an SM.
template <class F>
void of_clusters(Kernel kernel, F measure) {
  for (int peers : {2, 4, 8, 16}) {
    dev::Launch launch{
        .grid_x = peers, .threads = kThreads, .cluster = peers, .smem_bytes = kOneCta};
    const int fit = dev::max_active_clusters(kernel, launch);
    for (int clusters : {1, fit}) {
      if (clusters == 0) continue;
      launch.grid_x = peers * clusters;
      measure("P=" + std::to_string(peers) + " x" + std::to_string(clusters), launch);
    }
  }
}

void cluster_barriers(Bench& b) {
  of_clusters(barrier_rate<Barrier::kCluster>, [&](const std::string& name,
                                                   const dev::Launch& launch) {
    b.time("cluster_sync, " + name, barrier_rate<Barrier::kCluster>, launch, with(b, 256), kUnroll);
  });
}

void cluster_exchanges(Bench& b) {
  of_clusters(cluster_exchange, [&](const std::string& name, const dev::Launch& launch) {
    for (int kilobytes : {2, 8, 16, 32})
      b.time("st.async, " + name + ", " + std::to_string(kilobytes) + " KB", cluster_exchange,
             launch, with(b, 2000, kilobytes << 10, launch.cluster), 1);
  });
}

void grid_exchanges(Bench& b) {
  for (int peers : {16, 32, 64, 128})
    for (int groups : {1, b.processors() / peers}) {
      if (groups == 0) continue;
      const dev::Launch launch{.grid_x = peers * groups,
                               .threads = kThreads,
                               .smem_bytes = kOneCta,
                               .cooperative = true};
      for (int kilobytes : {2, 8, 32})
        b.time("flags, " + std::to_string(groups) + " x " + std::to_string(peers) + " CTAs, " +
                   std::to_string(kilobytes) + " KB",
               grid_exchange, launch, with(b, 2000, kilobytes << 10, peers), 1);
    }
}

constexpr std::pair<const char*, void (*)(Bench&)> kGroups[] = {
    {"device", device_facts}, {"launch", launches},          {"tensor", tensor},
    {"barrier", barriers},    {"cluster", cluster_barriers}, {"exchange", cluster_exchanges},
    {"grid", grid_exchanges}};

}  // namespace

int main(int count, char** words) {
  Bench bench;
  for (const auto& [name, measure] : kGroups) {
    const bool wanted = count == 1 || std::any_of(words + 1, words + count, [&](const char* word) {
                          return std::strcmp(word, name) == 0;
                        });
    if (!wanted) continue;
    bench.begin(name);
    measure(bench);
  }
  return 0;
}
