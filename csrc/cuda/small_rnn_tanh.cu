#include "cuda/small_launch.h"

namespace rnnfast::cuda {

template const SmallTables& small_tables<Elman<Tanh>>();

}  // namespace rnnfast::cuda
