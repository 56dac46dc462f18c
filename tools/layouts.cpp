// The dynamic shared memory of the whole-sequence kernels that may need more than a block has on
// some GPU, for tools/cuda_compile.py: ptxas knows only of the static. A line each: template, gates
// of the cell, operand, instance, bytes.
#include <cstdio>
#include <utility>

#include "cuda/grid_shape.h"

int main() {
  using namespace rnnfast::cuda;
  constexpr std::pair<const char*, Precision> kOperands[] = {{"Bf16Operand", Precision::kBf16},
                                                             {"HalfOperand", Precision::kHalf},
                                                             {"Tf32Operand", Precision::kTf32},
                                                             {"FloatOperand", Precision::kFloat}};
  for (const int gates : {1, 3, 4})
    for (const auto& [name, precision] : kOperands) {
      for (int i = 0; i < kInstanceCount; ++i)
        if (possible(kInstances[i], gates, precision))
          std::printf("Shape %d %s %d %d\n", gates, name, i,
                      layout(kInstances[i], gates, precision).shared_bytes());
      for (int i = 0; i < kGridInstanceCount; ++i)
        if (grid_possible(kGridInstances[i], gates, precision))
          std::printf("GridShape %d %s %d %d\n", gates, name, i,
                      grid_layout(kGridInstances[i], gates, precision).shared_bytes(1));
    }
}
