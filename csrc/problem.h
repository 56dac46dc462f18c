// The sizes of a layer, by which every backend plans how to run it. Without torch.
#pragma once

#include <cstdint>

namespace rnnfast {

struct Problem {
  int gates;           // G of the cell
  int64_t T, B, I, H;  // B = batch_sizes[0] when packed
  int directions;      // 1 or 2
};

}  // namespace rnnfast
