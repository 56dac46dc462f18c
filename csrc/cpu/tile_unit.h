// The CPU's unit for products of tiles (AMX): eight tiles, each of up to 16 rows of 64 bytes. They
// belong to a thread, and have no rows before they are configured. Here is what we ask of it, and
// the same in plain C++.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "cpu/operands.h"

namespace rnnfast::cpu {

inline constexpr int kTileRows = 16, kTileCount = 8, kTileBytes = 64;
// The first tiles are sums and one left operand; the others always have all rows.
inline constexpr int kFirstLeftTile = 4;

constexpr int rows_of_tile(int tile, int rows) { return tile <= kFirstLeftTile ? rows : kTileRows; }

#if defined(__AMX_BF16__)

// In assembly: GCC takes no number that a template brings, and lets stores to what a tile reads
// come after it (seen in GCC 12).
struct TileUnit {
  // Gives so many rows to the sums and the left operand. What the tiles held is lost.
  static void configure(int rows) {
    struct alignas(64) {  // what ldtilecfg reads
      uint8_t palette = 1, start_row = 0, zeros[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    static_assert(sizeof shape == 64);
    for (int tile = 0; tile < kTileCount; ++tile) {
      shape.row_bytes[tile] = kTileBytes;
      shape.rows[tile] = static_cast<uint8_t>(rows_of_tile(tile, rows));
    }
    asm volatile("ldtilecfg %0" ::"m"(shape) : "memory");
  }
  static void release() { asm volatile("tilerelease" ::: "memory"); }
  template <int tile>
  static RNNFAST_FN void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  // Rows `stride` bytes apart.
  template <int tile>
  static RNNFAST_FN void load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static RNNFAST_FN void store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
  }
  // sums += left times right, whose rows are pairs of rows.
  template <int sums, int left, int right>
  static RNNFAST_FN void add_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(left), "i"(right));
  }
};

#else

// The same results, bit by bit, as Intel's manual gives them: in each element of the sums the
// products of the first and of the second numbers of the pairs are added up apart, their sum is
// added to the element; each step rounds once, numbers below the normal ones are zeros.
struct TileUnit {
  static void configure(int rows) { state().rows = rows; }
  static void release() { state().rows = 0; }
  template <int tile>
  static void zero() {
    std::memset(configured().tiles[tile], 0, sizeof state().tiles[tile]);
  }
  template <int tile>
  static void load(const void* p, int64_t stride) {
    zero<tile>();
    for (int row = 0; row < rows_of_tile(tile, state().rows); ++row)
      std::memcpy(state().tiles[tile][row], static_cast<const char*>(p) + row * stride, kTileBytes);
  }
  template <int tile>
  static void store(void* p, int64_t stride) {
    for (int row = 0; row < rows_of_tile(tile, configured().rows); ++row)
      std::memcpy(static_cast<char*>(p) + row * stride, state().tiles[tile][row], kTileBytes);
  }
  template <int sums, int left, int right>
  static void add_product() {
    State& s = configured();
    if (rows_of_tile(left, s.rows) != s.rows || rows_of_tile(right, s.rows) != kTileRows) fail();
    for (int row = 0; row < s.rows; ++row) {
      float apart[2][kColumns] = {};
      for (int pair = 0; pair < kTileRows; ++pair)
        for (int half = 0; half < 2; ++half) {
          const float factor = number(s.tiles[left][row][pair], half);
          for (int column = 0; column < kColumns; ++column)
            apart[half][column] = flush_to_zero(__builtin_fmaf(
                factor, number(s.tiles[right][pair][column], half), apart[half][column]));
        }
      for (int column = 0; column < kColumns; ++column) {
        float sum;
        std::memcpy(&sum, &s.tiles[sums][row][column], sizeof sum);
        sum =
            flush_to_zero(flush_to_zero(sum) + flush_to_zero(apart[0][column] + apart[1][column]));
        std::memcpy(&s.tiles[sums][row][column], &sum, sizeof sum);
      }
    }
  }

 private:
  static constexpr int kColumns = kTileBytes / 4;
  struct State {
    int rows;
    uint32_t tiles[kTileCount][kTileRows][kColumns];
  };
  static State& state() {
    static thread_local State state{};
    return state;
  }
  static State& configured() {
    if (state().rows == 0) fail();
    return state();
  }
  // Ends the process, as the CPU would.
  [[noreturn]] static void fail() {
    std::fputs("tiles were used that are not configured for it\n", stderr);
    std::abort();
  }
  static float number(uint32_t pair, int half) {
    const uint32_t bits = half ? pair & 0xffff0000 : pair << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return flush_to_zero(result);
  }
};

#endif

// A thread's use of the tiles, for the time of one call: others use them in the same threads, and
// oneDNN takes their rows away when it is done.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (rows_ > 0) TileUnit::release();
  }
  void use(int64_t rows) {
    if (rows == rows_) return;
    TileUnit::configure(static_cast<int>(rows));
    rows_ = rows;
  }

 private:
  int64_t rows_ = 0;
};

}  // namespace rnnfast::cpu
