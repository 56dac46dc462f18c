#include "cuda/small_launch.h"

namespace rnnfast::cuda {

template const SmallTables& small_tables<Elman<Relu>>();

}  // namespace rnnfast::cuda
