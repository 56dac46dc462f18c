#include "cuda/grid_launch.h"

namespace rnnfast::cuda {

template const GridTables& grid_tables<Gru>();

}  // namespace rnnfast::cuda
