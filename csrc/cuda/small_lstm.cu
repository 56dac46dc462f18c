#include "cuda/small_launch.h"

namespace rnnfast::cuda {

template <>
const SmallTables& small_tables<Lstm>() {
  return small_tables_of<Lstm>();
}

}  // namespace rnnfast::cuda
