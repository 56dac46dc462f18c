#include "cuda/fma_launch.h"

namespace rnnfast::cuda {

template const FmaTable& fma_table<Gru>();

}  // namespace rnnfast::cuda
