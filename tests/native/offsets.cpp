// Where the kernels read and write in tensors of more than 2^31 elements, without such tensors:
// every position is an int64_t product of sizes, computed by the functions below and nowhere else.
// Exits with the number of wrong ones.
#include <cstdio>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/plan.h"
#include "recurrence.h"

using namespace rnnfast;
using namespace rnnfast::cpu;

static int failures = 0;

static void expect(const char* what, int64_t got, int64_t wanted) {
  if (got == wanted) return;
  std::printf("%s: got %lld, wanted %lld\n", what, static_cast<long long>(got),
              static_cast<long long>(wanted));
  ++failures;
}

int main() {
  const int64_t T = 4, B = int64_t{3} << 30, H = 5;
  std::vector<int64_t> batch{B, B, B - 7, 1}, offset;
  int64_t rows = 0;
  for (int64_t b : batch) offset.push_back(rows), rows += b;
  const Steps steps{T, rows, B, batch.data(), offset.data()};

  const Walk forward{steps, false}, reverse{steps, true};
  expect("forward after", forward.after(2, 11), B + 2 * B + 11);
  expect("forward before", forward.before(2, 11), B + B + 11);
  expect("forward before the first", forward.before(0, B - 1), B - 1);
  expect("forward rows that stay", forward.staying(1), B - 7);
  expect("forward rows that stay at the end", forward.staying(3), 0);
  expect("reverse after", reverse.after(2, 11), 2 * B + 11);
  expect("reverse before", reverse.before(1, B - 8), 2 * B + B - 8);
  expect("reverse before, not alive", reverse.before(1, B - 7), rows + B - 7);
  expect("reverse time", reverse.time(0), T - 1);
  expect("reverse rows that stay", reverse.staying(0), 1);

  const Panels<float> panels{int64_t{1} << 17, int64_t{3} << 17, 3, 1};
  const int64_t width = Panels<float>::kWidth, panel = panels.count() - 1;
  expect("packed size", panels.size(), (int64_t{1} << 17) * 3 * (int64_t{3} << 17));
  expect("offset of the last panel", panels.offset(panel), panel * 3 * width * (int64_t{3} << 17));
  expect("a row of x_gates", (forward.after(3, 0) - B) * 3 * H, (3 * B - 7) * 15);

  const Plan huge = plan({{4, int64_t{1} << 20, int64_t{1} << 20, 1, int64_t{1} << 12, 1},
                          true,
                          2,
                          16,
                          4,
                          100,
                          false,
                          kSmallCaches});
  expect("steps of a chunk", huge.chunk_steps, 1);
  return failures;
}
