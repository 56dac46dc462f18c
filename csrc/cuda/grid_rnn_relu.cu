#include "cuda/grid_launch.h"

namespace rnnfast::cuda {

template const GridTables& grid_tables<Elman<Relu>>();

}  // namespace rnnfast::cuda
