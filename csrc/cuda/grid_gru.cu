#include "cuda/grid_launch.h"

namespace rnnfast::cuda {

template <>
const GridTables& grid_tables<Gru>() {
  return grid_tables_of<Gru>();
}

}  // namespace rnnfast::cuda
