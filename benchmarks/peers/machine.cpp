// What the parts of a recurrent layer cost on this machine, behind a C interface, for ctypes.
// Compiled with -march=native: vectors are as wide as the processor's.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kPanel = 4;  // panels of 4 vectors: 6 rows of sums fill the registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kPanel = 2;
#else
constexpr int kBytes = 16, kPanel = 2;
#endif
constexpr int kLanes = kBytes / 4, kRows = 6;
typedef float Vec __attribute__((vector_size(kBytes)));
typedef int Bits __attribute__((vector_size(kBytes)));

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Keeps a value, and all memory, out of the optimiser's sight.
template <class T>
void keep(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

std::unique_ptr<Vec[], Free> zeros(size_t count) {
  const size_t size = (count * sizeof(Vec) + 4095) / 4096 * 4096;
  auto* memory = static_cast<Vec*>(std::aligned_alloc(4096, size));
  std::fill(memory, memory + count, Vec{});
  return std::unique_ptr<Vec[], Free>(memory);
}

// Each thread owns a cache line, and waits until all others have come as far.
class Barrier {
 public:
  explicit Barrier(int threads) : lines_(threads) {}
  void wait(int me, long turn) {
    lines_[me].turn.store(turn, std::memory_order_release);
    for (Line& line : lines_)
      while (line.turn.load(std::memory_order_acquire) < turn) __builtin_ia32_pause();
  }

 private:
  struct alignas(128) Line {
    std::atomic<long> turn{0};
  };
  std::vector<Line> lines_;
};

// Seconds of body(thread, count), all threads beginning together.
template <class Body>
double once(int threads, long count, const Body& body) {
  double start = 0, end = 0;
#pragma omp parallel num_threads(threads)
  {
#pragma omp barrier
#pragma omp master
    start = now();
    body(omp_get_thread_num(), count);
#pragma omp barrier
#pragma omp master
    end = now();
  }
  return end - start;
}

// Seconds of one turn of body, which makes `count` of them: the best of many runs, each of at least
// half a millisecond, for a tenth of a second: it takes some of that until new threads have a core
// each. What a machine can do is asked, not what others leave of it.
template <class Body>
double seconds(int threads, const Body& body) {
  constexpr double kShortest = 5e-4, kLongest = 0.1;
  const auto best = [&](long count, int runs) {
    double found = once(threads, count, body);
    while (--runs > 0) found = std::min(found, once(threads, count, body));
    return found;
  };
  long count = 1;
  while (best(count, 3) < kShortest) count *= 2;
  const double begin = now();
  double found = best(count, 1);
  while (now() - begin < kLongest) found = std::min(found, best(count, 1));
  return found / count;
}

// 2^(x log2 e) by a polynomial of degree 6 and the exponent's bits: what a vectorised layer does.
Vec exponential(Vec x) {
  const Vec t = x * 1.44269504f, magic = Vec{} + 12582912.0f;
  const Vec whole = (t + magic) - magic, part = t - whole;
  Vec sum = Vec{} + 1.5403530e-4f;
  for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    sum = sum * part + c;
  const Bits exponent = (__builtin_convertvector(whole, Bits) + 127) << 23;
  return sum * reinterpret_cast<const Vec&>(exponent);
}

Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }
Vec tanh(Vec x) {
  const Vec e = exponential(x + x);
  return (e - 1.0f) / (e + 1.0f);
}

// Sums of `MR` rows of h [*, K] with a panel of `NV` vectors a row of K.
template <int MR, int NV>
void tile(const float* h, const Vec* panel, int K, Vec* out) {
  Vec sums[MR][NV] = {};
  for (int k = 0; k < K; ++k)
    for (int m = 0; m < MR; ++m)
      for (int n = 0; n < NV; ++n) sums[m][n] += h[m * K + k] * panel[k * NV + n];
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NV; ++n) out[m * NV + n] = sums[m][n];
}

using Tile = void (*)(const float*, const Vec*, int, Vec*);
template <int... I>
Tile choose(int rows, int vectors, std::integer_sequence<int, I...>) {
  static constexpr Tile tiles[] = {tile<I / kPanel + 1, I % kPanel + 1>...};
  return tiles[(rows - 1) * kPanel + vectors - 1];
}

// One step's product: rows of h times all panels from `first` to `last`.
void multiply(const float* h, int rows, int K, const Vec* weights, int vectors, int first, int last,
              Vec* out) {
  for (int n = first * kPanel; n < std::min(last * kPanel, vectors); n += kPanel) {
    const int width = std::min(kPanel, vectors - n);
    for (int row = 0; row < rows; row += kRows) {
      const int some = std::min(kRows, rows - row);
      const Tile run = choose(some, width, std::make_integer_sequence<int, kRows * kPanel>());
      run(h + size_t(row) * K, weights + size_t(n) * K, K, out);
    }
  }
}

template <class Function>
double elements_per_second(int threads, const Function& function) {
  constexpr int kCount = 128;
  const double time = seconds(threads, [&](int, long count) {
    Vec data[kCount] = {};
    for (long i = 0; i < count; ++i) {
      for (Vec& value : data) value = function(value);
      keep(data);
    }
  });
  return threads * kCount * kLanes / time;
}

}  // namespace

extern "C" {

// Floating-point operations a second: independent fused multiply-adds in registers.
double fma_peak(int threads) {
  constexpr int kChains = 12, kTurns = 64;
  const double time = seconds(threads, [](int, long count) {
    Vec sums[kChains] = {}, x = Vec{} + 0.999f, y = Vec{} + 1e-3f;
    keep(x), keep(y);
    for (long i = 0; i < count * kTurns; ++i)
      for (Vec& sum : sums) sum = sum * x + y;
    keep(sums);
  });
  return 2.0 * threads * kChains * kTurns * kLanes / time;
}

// Bytes a second: each thread reads `size` bytes of its own, again and again.
double read_bandwidth(int threads, size_t size) {
  const size_t vectors = std::max<size_t>(size / sizeof(Vec) / 8 * 8, 8);
  std::vector<std::unique_ptr<Vec[], Free>> data(threads);
  for (auto& memory : data) memory = zeros(vectors);
  const double time = seconds(threads, [&](int me, long count) {
    const Vec* memory = data[me].get();
    Vec sums[8] = {};
    for (long i = 0; i < count; ++i) {
      for (size_t v = 0; v < vectors; v += 8)
        for (int s = 0; s < 8; ++s) sums[s] += memory[v + s];
      asm volatile("" : : : "memory");
    }
    Vec total = sums[0];  // the sums themselves must stay in registers
    for (int s = 1; s < 8; ++s) total += sums[s];
    keep(total);
  });
  return threads * vectors * sizeof(Vec) / time;
}

double barrier_seconds(int threads) {
  long before = 0;
  Barrier barrier(threads);
  return seconds(threads, [&](int me, long count) {
    const long start = before;
#pragma omp barrier
    for (long i = 1; i <= count; ++i) barrier.wait(me, start + i);
#pragma omp master
    before = start + count;
  });
}

double sigmoid_rate(int threads) { return elements_per_second(threads, sigmoid); }
double tanh_rate(int threads) { return elements_per_second(threads, tanh); }

// Seconds of a step's product [rows, K] x [K, N] with packed weights: rows shared by the threads,
// or
// (`hidden`) the columns, with a barrier.
double step_seconds(int threads, int rows, int K, int N, int hidden) {
  const int vectors = (N + kLanes - 1) / kLanes, panels = (vectors + kPanel - 1) / kPanel;
  const auto weights = zeros(size_t(vectors) * K);
  const auto h = zeros((size_t(rows) * K + kLanes - 1) / kLanes);
  long before = 0;
  Barrier barrier(threads);
  return seconds(threads, [&](int me, long count) {
    Vec out[kRows * kPanel];
    const float* first = reinterpret_cast<const float*>(h.get());
    const int from = rows * me / threads, to = rows * (me + 1) / threads;
    const long start = before;
#pragma omp barrier
    for (long i = 1; i <= count; ++i) {
      if (hidden)
        multiply(first, rows, K, weights.get(), vectors, panels * me / threads,
                 panels * (me + 1) / threads, out);
      else
        multiply(first + size_t(from) * K, to - from, K, weights.get(), vectors, 0, panels, out);
      keep(out);
      if (hidden && threads > 1) barrier.wait(me, start + i);
    }
#pragma omp master
    before = start + count;
  });
}
}
