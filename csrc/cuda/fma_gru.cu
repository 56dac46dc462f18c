#include "cuda/fma_launch.h"

namespace rnnfast::cuda {

template <>
const FmaTable& fma_table<Gru>() {
  return fma_table_of<Gru>();
}

}  // namespace rnnfast::cuda
