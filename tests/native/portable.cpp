// The kernels as they are built for any CPU, without torch: maths within the bounds that math.h
// states, products, and whole layers, forward, beside plain loops in higher precision; one step
// backward beside the same in one number. For processors that the tests of the package do not run
// on: compiled for those, and run by an emulator.
// Exits with 1 where something is wrong.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/outer.h"
#include "cpu/steps_forward.h"

using namespace rnnfast;
using namespace rnnfast::cpu;

template <class T>
using Vector = std::vector<T>;

static bool failed = false;
static std::mt19937 generator(1);

static void at_most(const char* what, size_t bytes, double got, double bound) {
  const bool holds = got <= bound;
  std::printf("%s float%zu: %.3g, at most %.3g%s\n", what, 8 * bytes, got, bound,
              holds ? "" : ": WRONG");
  failed = failed || !holds;
}

template <class T>
static Vector<T> random_numbers(int64_t count) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  Vector<T> result(count);
  for (T& x : result) x = static_cast<T>(uniform(generator));
  return result;
}

// ---- maths ----

using Wide = long double;  // has 64 bits of mantissa on x86-64, 113 on aarch64

struct Errors {
  double absolute = 0, ulp = 0;

  template <class T>
  void add(T got, Wide truth) {
    const Wide error = std::fabs(Wide(got) - truth);
    const T nearest = std::fabs(static_cast<T>(truth)), infinity = std::numeric_limits<T>::max();
    const T spacing = std::nextafter(nearest, infinity) - nearest;
    absolute = std::fmax(absolute, static_cast<double>(error));
    ulp = std::fmax(ulp, static_cast<double>(error / spacing));
  }
};

// Of numbers on either side of zero, near it and far from it, up to `limit`.
template <class T, class Ours, class Truth>
static Errors errors_of(double limit, const Ours& ours, const Truth& truth) {
  constexpr int kCount = 40000, kWidth = Vec<T>::kWidth;
  Errors errors;
  T x[kWidth], y[kWidth];
  for (int i = 0; i < kCount; i += kWidth) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const double part = double(i + lane) / kCount, sign = lane % 2 ? -1 : 1;
      x[lane] = static_cast<T>(sign * (i % 3 ? limit * part : std::exp(-12 * part)));
    }
    ours(Vec<T>::load(x)).store(y);
    for (int lane = 0; lane < kWidth; ++lane) errors.add(y[lane], truth(Wide(x[lane])));
  }
  return errors;
}

template <class T>
static void test_maths(double sigmoid_bound, double tanh_bound) {
  const double limit = sizeof(T) == 4 ? 87 : 708;
  const Errors of_exp = errors_of<T>(
      limit, [](Vec<T> x) { return rnnfast::exp(x); }, [](Wide x) { return std::exp(x); });
  const Errors of_sigmoid = errors_of<T>(
      limit, [](Vec<T> x) { return sigmoid(x); }, [](Wide x) { return 1 / (1 + std::exp(-x)); });
  const Errors of_tanh = errors_of<T>(
      25, [](Vec<T> x) { return rnnfast::tanh(x); }, [](Wide x) { return std::tanh(x); });
  at_most("exp, ULP,", sizeof(T), of_exp.ulp, 1.2);
  at_most("sigmoid, ULP,", sizeof(T), of_sigmoid.ulp, 2.5);
  at_most("sigmoid, absolute,", sizeof(T), of_sigmoid.absolute, sigmoid_bound);
  at_most("tanh, ULP,", sizeof(T), of_tanh.ulp, 1.2);
  at_most("tanh, absolute,", sizeof(T), of_tanh.absolute, tanh_bound);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (const Vec<T>& y : {sigmoid(Vec<T>(nan)), rnnfast::tanh(Vec<T>(nan)), relu(Vec<T>(nan))})
    at_most("lanes that lost NaN,", sizeof(T), y.raw[0] == y.raw[0], 0);
}

// ---- products ----

// The error of a sum of so many products of numbers up to 1: a rounding for each, and a few.
template <class T>
static double bound_of_sum(int64_t depth) {
  return static_cast<double>(depth + 4) * std::numeric_limits<T>::epsilon();
}

template <class T>
static void test_multiply(int64_t rows, int64_t depth, int gates, int group, int64_t hidden) {
  const Panels<T> panels{hidden, depth, gates, group};
  const Vector<T> w = random_numbers<T>(gates * hidden * depth),
                  a = random_numbers<T>(rows * depth);
  Vector<T> packed(panels.size() + 4096);
  for (int64_t panel = 0; panel < panels.count(); ++panel)
    pack_forward(w.data(), panels, panel, packed.data() + panels.offset(panel));
  double worst = 0;
  int64_t seen = 0;
  const auto compare = [&](int64_t row, int64_t unit, const T* sums) {
    for (int gate = 0; gate < gates; ++gate)
      for (int64_t u = 0; u < panels.units_from(unit); ++u, ++seen) {
        Wide sum = 0;
        for (int64_t k = 0; k < depth; ++k)
          sum += Wide(a[row * depth + k]) * w[(gate * hidden + unit + u) * depth + k];
        const Wide got = sums[gate * Vec<T>::kWidth + u];
        worst = std::fmax(worst, static_cast<double>(std::fabs(got - sum)));
      }
  };
  const Range all{0, rows}, all_panels{0, panels.count()};
  for (int block_rows : {0, 33})
    multiply(panels, packed.data(), a.data(), depth, all, all_panels, block_rows, compare);
  multiply_unpacked(panels, w.data(), a.data(), depth, all, all_panels, compare);
  at_most("products, error,", sizeof(T), worst, bound_of_sum<T>(depth));
  at_most("products left out,", sizeof(T), static_cast<double>(3 * rows * gates * hidden - seen),
          0);
}

template <class T>
static void test_outer(int64_t rows, int64_t N, int64_t K) {
  const Vector<T> a = random_numbers<T>(rows * N), x = random_numbers<T>(rows * K);
  Vector<T> sums(N * K);
  add_outer(a.data(), N, {0, N}, x.data(), K, K, rows, 64, sums.data(), true);
  double worst = 0;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k) {
      Wide sum = 0;
      for (int64_t row = 0; row < rows; ++row) sum += Wide(a[row * N + n]) * x[row * K + k];
      worst = std::fmax(worst, static_cast<double>(std::fabs(sums[n * K + k] - sum)));
    }
  at_most("outer products, error,", sizeof(T), worst, bound_of_sum<T>(rows));
}

// ---- cells ----

// A layer of one direction, all of its tensors.
template <class Cell, class T>
struct Layer {
  static constexpr int64_t T_ = 7, B = 6, I = 11, H = 21, kRows = 6 + 6 + 5 + 3 + 3 + 1 + 1;
  static constexpr int G = Cell::kGates, kStates = Cell::kStates;
  const int64_t batch[T_] = {6, 6, 5, 3, 3, 1, 1}, offset[T_] = {0, 6, 12, 17, 20, 23, 24};
  Vector<T> x = random_numbers<T>(kRows * I), initial = random_numbers<T>(kStates * B * H);
  Vector<T> w_ih = random_numbers<T>(G * H * I), w_hh = random_numbers<T>(G * H * H);
  Vector<T> b_ih = random_numbers<T>(G * H), b_hh = random_numbers<T>(G * H);

  Walk walk(bool reverse) const { return {{T_, kRows, B, batch, offset}, reverse}; }

  // What the kernels make of it, on one thread: the output.
  Vector<T> run(bool reverse, bool packs) const {
    const Panels<T> x_panels{H, I, G, G > 1 ? 1 : 2}, h_panels{H, H, G, G > 1 ? 1 : 2};
    const int64_t stride = whole_registers<T>(H) + Vec<T>::kWidth;
    Vector<T> x_memory(x_panels.size() + 4096), h_memory(h_panels.size() + 4096);
    Vector<T> states((kStates + 1) * B * stride), output(kRows * H), states_n(kStates * B * H);
    Vector<T> x_gates(kRows * (G * whole_registers<T>(H) + Vec<T>::kWidth));
    ForwardDirection<T> d{};
    d.walk = walk(reverse), d.hidden = H, d.input = I, d.x = x.data();
    d.w_ih = {x_panels, w_ih.data(), packs ? x_memory.data() : nullptr};
    d.w_hh = {h_panels, w_hh.data(), packs ? h_memory.data() : nullptr};
    d.b_ih = b_ih.data(), d.b_hh = b_hh.data(), d.chunk_rows = kRows;
    d.state_memory = states.data(), d.x_gates_memory = x_gates.data(), d.state_stride = stride;
    d.operand_stride = stride, d.output = output.data(), d.output_stride = H;
    for (int k = 0; k < kStates; ++k) {
      d.initial[k] = initial.data() + k * B * H;
      d.states_n[k] = states_n.data() + k * B * H;
    }
    forward_direction<Cell>(d, T_, Member{0, 1, Split::kBatch, nullptr, nullptr, 0, 0});
    return output;
  }

  // The same in double, number by number.
  Vector<double> wanted(bool reverse) const {
    Vector<double> s(initial.begin(), initial.end()), output(kRows * H);
    for (int64_t i = 0; i < T_; ++i) {
      const int64_t t = walk(reverse).time(i);
      const Vector<double> before = s;
      for (int64_t b = 0; b < batch[t]; ++b)
        for (int64_t j = 0; j < H; ++j) {
          double in[G], hidden[G], state[kStates], kept[kReserveSlots<Cell>];
          for (int g = 0; g < G; ++g) {
            in[g] = b_ih[g * H + j], hidden[g] = b_hh[g * H + j];
            for (int64_t k = 0; k < I; ++k)
              in[g] += double(x[(offset[t] + b) * I + k]) * w_ih[(g * H + j) * I + k];
            for (int64_t k = 0; k < H; ++k)
              hidden[g] += before[b * H + k] * w_hh[(g * H + j) * H + k];
          }
          for (int k = 0; k < kStates; ++k) state[k] = before[(k * B + b) * H + j];
          Cell::forward(in, hidden, state, kept);
          for (int k = 0; k < kStates; ++k) s[(k * B + b) * H + j] = state[k];
          output[(offset[t] + b) * H + j] = state[0];
        }
    }
    return output;
  }
};

template <class Cell, class T>
static void test_layer() {
  const Layer<Cell, T> layer;
  double worst = 0, largest = 1;
  for (bool reverse : {false, true})
    for (bool packs : {false, true}) {
      const Vector<T> got = layer.run(reverse, packs);
      const Vector<double> wanted = layer.wanted(reverse);
      for (size_t i = 0; i < got.size(); ++i) {
        worst = std::fmax(worst, std::fabs(got[i] - wanted[i]));
        largest = std::fmax(largest, std::fabs(wanted[i]));  // without end, with relu
      }
    }
  std::printf("%s, ", Cell::kName);
  at_most("a layer, error,", sizeof(T), worst / largest, 64 * std::numeric_limits<T>::epsilon());
}

// One step backward in registers beside the same in one double.
template <class Cell, class T>
static void test_backward() {
  constexpr int G = Cell::kGates, N = Cell::kStates, Q = kReserveSlots<Cell>,
                kWidth = Vec<T>::kWidth;
  double worst = 0;
  for (int round = 0; round < 100; ++round) {
    const Vector<T> given = random_numbers<T>((Q + 3 * N) * kWidth);
    Vec<T> vectors[Q + 3 * N], dx[G], dh[G];
    for (int i = 0; i < Q + 3 * N; ++i) vectors[i] = Vec<T>::load(given.data() + i * kWidth);
    const auto* p = vectors + Q;
    Cell::backward(vectors, p, p + N, vectors + Q + 2 * N, dx, dh);
    for (int lane = 0; lane < kWidth; ++lane) {
      double numbers[Q + 3 * N], x[G], h[G];
      for (int i = 0; i < Q + 3 * N; ++i) numbers[i] = given[i * kWidth + lane];
      Cell::backward(numbers, numbers + Q, numbers + Q + N, numbers + Q + 2 * N, x, h);
      for (int g = 0; g < G; ++g)
        worst = std::fmax(
            worst, std::fmax(std::fabs(dx[g].raw[lane] - x[g]), std::fabs(dh[g].raw[lane] - h[g])));
    }
  }
  std::printf("%s, ", Cell::kName);
  at_most("a step backward, error,", sizeof(T), worst, 16 * std::numeric_limits<T>::epsilon());
}

template <class T, class... Cell>
static void test_cells(CellList<Cell...>) {
  (test_layer<Cell, T>(), ...);
  (test_backward<Cell, T>(), ...);
}

template <class T>
static void test_all() {
  for (int64_t rows : {1, 2, 7, 40})
    for (int64_t depth : {1, 5, 300}) {
      test_multiply<T>(rows, depth, 4, 1, 17);
      test_multiply<T>(rows, depth, 3, 1, 33);
      test_multiply<T>(rows, depth, 1, 4, 50);
      test_outer<T>(depth, rows, 37);
    }
  test_cells<T>(Cells{});
}

int main() {
  std::printf("registers of %d bytes\n", kVectorBytes);
  test_maths<float>(9e-8, 7e-8);
  test_maths<double>(1.7e-16, 1.3e-16);
  test_all<float>();
  test_all<double>();
  return failed;
}
