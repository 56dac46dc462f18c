#include "cuda/grid_launch.h"

namespace rnnfast::cuda {

template <>
const GridTables& grid_tables<Lstm>() {
  return grid_tables_of<Lstm>();
}

}  // namespace rnnfast::cuda
