// The products by tiles beside the same sums one by one, bit for bit: rows from 1 to 33, every
// depth around that of a tile, NaN wherever nothing should be read, numbers below the normal ones.
// And those by register tiles, in blocks of K beside whole columns.
// Exits with the number of wrong ones.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "cpu/pairs.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace rnnfast;
using namespace rnnfast::cpu;

static int failures = 0;
static uint32_t seed = 1;

static uint32_t random_bits() { return seed = seed * 1664525 + 1013904223, seed >> 8; }

static Bfloat16 random_number() {
  switch (random_bits() % 16) {
    case 0:
      return {static_cast<uint16_t>(random_bits() % 128)};  // zero, or below the normal ones
    case 1:
      return {static_cast<uint16_t>(0x100 + random_bits() % 0x1000)};  // products below them
    default:
      return {static_cast<uint16_t>((0x3f00 + random_bits() % 0x100) | random_bits() % 2 << 15)};
  }
}

static float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x;
}

// What tdpbf16ps adds up, 32 products at a time.
template <class Left, class Right>
static float sum_of(int64_t depth, const Left& left, const Right& right) {
  float sum = 0;
  for (int64_t begin = 0; begin < depth; begin += 32) {
    float half[2] = {};
    for (int64_t k = begin; k < depth && k < begin + 32; ++k)
      half[k % 2] = flushed(std::fma(flushed(left(k)), flushed(right(k)), half[k % 2]));
    sum = flushed(sum + flushed(half[0] + half[1]));
  }
  return sum;
}

// What vdpbf16ps adds up, a pair after the other, the second of it first.
template <class Left, class Right>
static float sum_of_pairs(int64_t depth, const Left& left, const Right& right) {
  float sum = 0;
  for (int64_t pair = 0; pair < depth; pair += 2)
    for (int64_t k : {pair + 1, pair})
      if (k < depth) sum = flushed(std::fma(flushed(left(k)), flushed(right(k)), sum));
  return sum;
}

static void expect(const char* what, int64_t rows, int64_t depth, float got, float wanted) {
  if (std::memcmp(&got, &wanted, sizeof got) == 0 || (got != got && wanted != wanted)) return;
  if (++failures < 20)
    std::printf("%s: %lld rows, depth %lld: got %g, wanted %g\n", what,
                static_cast<long long>(rows), static_cast<long long>(depth), got, wanted);
}

static const Bfloat16 kNan{0x7fc0};

// `rows` rows of `columns` numbers, NaN between and around them, that end where the memory ends.
struct Matrix {
  int64_t columns, stride, first;
  std::vector<Bfloat16> memory;

  Matrix(int64_t rows, int64_t columns, int64_t gap)
      : columns(columns),
        stride(columns + gap),
        first(40),
        memory(first + rows * stride - gap, kNan) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < columns; ++i) memory[first + row * stride + i] = random_number();
  }
  const Bfloat16* data() const { return memory.data() + first; }
  float at(int64_t row, int64_t i) const { return data()[row * stride + i]; }
};

static void test_multiply(int64_t rows, int64_t depth, int gates, int group, int64_t hidden,
                          bool backward) {
  const Panels<Bfloat16> panels{hidden, depth, gates, group};
  const Matrix w(backward ? depth : gates * hidden, backward ? hidden : depth, 0);
  std::vector<Bfloat16> packed(panels.size(), kNan);
  for (int64_t panel = 0; panel < panels.count(); ++panel)
    if (backward) {
      pack_backward(w.data(), panels, panel, packed.data() + panels.offset(panel));
    } else {
      pack_forward(w.data(), panels, panel, packed.data() + panels.offset(panel));
    }
  const Matrix a(rows, depth, 3);
  std::vector<int> seen(rows * gates * hidden);
  Tiles tiles;
  multiply_by_tiles(tiles, panels, packed.data(), a.data(), a.stride, {0, rows},
                    {0, panels.count()}, [&](int64_t row, int64_t unit, const float* sums) {
                      for (int gate = 0; gate < gates; ++gate)
                        for (int64_t u = 0; u < panels.units_from(unit); ++u) {
                          ++seen[(row * gates + gate) * hidden + unit + u];
                          const auto right = [&](int64_t k) {
                            return backward ? w.at(k, unit + u) : w.at(gate * hidden + unit + u, k);
                          };
                          expect("a product", rows, depth, sums[gate * Vec<Bfloat16>::kWidth + u],
                                 sum_of(depth, [&](int64_t k) { return a.at(row, k); }, right));
                        }
                    });
  for (int count : seen) expect("times consumed", rows, depth, static_cast<float>(count), 1);
}

static void test_outer(int64_t rows, int64_t gates, int64_t columns, bool by_tiles) {
  using Pairs = PairPanels<Bfloat16>;
  const Matrix a(rows, gates, 5), x(rows, columns, 0);
  std::vector<Bfloat16> memory(Pairs::size(rows, columns), kNan);
  const Pairs pairs{memory.data(), Pairs::pairs_of(rows)};
  const auto row_of = [&](int64_t row) { return row < rows ? x.data() + row * x.stride : nullptr; };
  for (int64_t pair = 0; pair < pairs.pairs; ++pair)
    pairs.pack(pair, row_of(2 * pair), row_of(2 * pair + 1), columns);
  std::vector<float> dst(gates * columns, std::numeric_limits<float>::quiet_NaN());
  const Range shares[] = {{0, gates / 2}, {gates / 2, gates}};
  for (bool fresh : {true, false})
    for (Range share : shares) {
      Tiles tiles;
      add_outer(by_tiles ? &tiles : nullptr, a.data(), a.stride, share, pairs, columns, rows,
                dst.data(), fresh);
    }
  for (int64_t n = 0; n < gates; ++n)
    for (int64_t k = 0; k < columns; ++k) {
      float wanted = 0;
      for (int time = 0; time < 2; ++time)
        for (int64_t begin = 0; begin < rows; begin += kOuterDepth) {
          const int64_t depth = std::min(rows - begin, kOuterDepth);
          const auto left = [&](int64_t row) { return a.at(begin + row, n); };
          const auto right = [&](int64_t row) { return x.at(begin + row, k); };
          wanted += by_tiles ? sum_of(depth, left, right) : sum_of_pairs(depth, left, right);
        }
      expect(by_tiles ? "an outer product by tiles" : "an outer product", rows, columns,
             dst[n * columns + k], wanted);
    }
}

static void test_nan_stays_in_its_row() {
  const Panels<Bfloat16> panels{20, 37, 1, 4};
  std::vector<Bfloat16> packed(panels.size(), Bfloat16{0x3f80}), a(19 * 37, Bfloat16{0x3f80});
  a[3 * 37 + 36] = kNan, a[7 * 37] = Bfloat16{0x7f80};
  Tiles tiles;
  multiply_by_tiles(tiles, panels, packed.data(), a.data(), 37, {0, 19}, {0, panels.count()},
                    [&](int64_t row, int64_t, const float* sums) {
                      expect("beside NaN", row, 37, sums[0],
                             row == 3   ? std::numeric_limits<float>::quiet_NaN()
                             : row == 7 ? std::numeric_limits<float>::infinity()
                                        : 37);
                    });
}

// Products of register tiles, by blocks of K and not.
template <class S>
static void test_blocks(int64_t rows, int64_t depth, int gates, const S* numbers) {
  const Panels<S> panels{20, depth, gates, gates > 1 ? 1 : 2};
  std::vector<S> packed(panels.size() + 4096);
  for (int64_t panel = 0; panel < panels.count(); ++panel)
    pack_forward(numbers, panels, panel, packed.data() + panels.offset(panel));
  const auto run = [&](int block_rows) {
    std::vector<Compute<S>> result;
    multiply(panels, packed.data(), numbers + 7, depth, {0, rows}, {0, panels.count()}, block_rows,
             [&](int64_t, int64_t, const Compute<S>* sums) {
               result.insert(result.end(), sums, sums + gates * Vec<S>::kWidth);
             });
    return result;
  };
  const std::vector<Compute<S>> wanted = run(0);
  for (int block_rows : {2, 10, 33, 66}) {
    const std::vector<Compute<S>> found = run(block_rows);
    expect("size", rows, depth, static_cast<float>(found.size()),
           static_cast<float>(wanted.size()));
    for (size_t i = 0; i < found.size(); ++i)
      expect("in blocks", rows, depth, static_cast<float>(found[i]), static_cast<float>(wanted[i]));
  }
}

int main() {
#if defined(__AMX_BF16__)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return std::puts("no tiles for this process"), 1;
#endif
  for (int64_t rows = 1; rows <= 33; ++rows)
    for (int64_t depth : {1, 2, 31, 32, 33, 63, 70}) {
      test_multiply(rows, depth, 4, 1, 17, false);
      test_multiply(rows, depth, 3, 1, 33, false);
      test_multiply(rows, depth, 1, 4, 50, rows % 2 == 0);
    }
  test_multiply(70, 300, 1, 3, 100, true);
  test_multiply(49, 64, 1, 2, 90, false);
  for (int64_t rows : {1, 2, 7, 32, 33, 256, 257, 300})
    for (int64_t gates : {1, 16, 31, 70})
      for (int64_t columns : {1, 15, 16, 17, 40})
        for (bool by_tiles : {true, false}) test_outer(rows, gates, columns, by_tiles);
  test_nan_stays_in_its_row();
  std::vector<float> numbers(81 * 1000);
  std::vector<Bfloat16> halves(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    const Bfloat16 drawn[] = {random_number(), random_number()};
    numbers[i] = drawn[0] + drawn[1] / 1000, halves[i] = drawn[0];
  }
  for (int64_t rows : {1, 2, 5, 7, 13, 34, 67, 70})
    for (int64_t depth : {0, 1, 127, 128, 129, 255, 256, 257, 300, 1000})
      for (int gates : {1, 3, 4}) {
        test_blocks(rows, depth, gates, numbers.data());
        test_blocks(rows, depth, gates, halves.data());
      }
  return failures > 255 ? 255 : failures;
}
