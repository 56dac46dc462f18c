#include "cuda/small_launch.h"

namespace rnnfast::cuda {

template const SmallTables& small_tables<Gru>();

}  // namespace rnnfast::cuda
