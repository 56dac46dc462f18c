#include "cuda/single_launch.h"

namespace rnnfast::cuda {

template <>
const SingleTables& single_tables<Lstm>() {
  return single_tables_of<Lstm>();
}

}  // namespace rnnfast::cuda
