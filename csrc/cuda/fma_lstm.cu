#include "cuda/fma_launch.h"

namespace rnnfast::cuda {

template const FmaTable& fma_table<Lstm>();

}  // namespace rnnfast::cuda
