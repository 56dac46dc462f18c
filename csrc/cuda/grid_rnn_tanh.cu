#include "cuda/grid_launch.h"

namespace rnnfast::cuda {

template <>
const GridTables& grid_tables<Elman<Tanh>>() {
  return grid_tables_of<Elman<Tanh>>();
}

}  // namespace rnnfast::cuda
