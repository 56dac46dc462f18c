#include "cuda/fma_launch.h"

namespace rnnfast::cuda {

template <>
const FmaTable& fma_table<Lstm>() {
  return fma_table_of<Lstm>();
}

}  // namespace rnnfast::cuda
