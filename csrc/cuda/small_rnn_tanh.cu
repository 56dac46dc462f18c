#include "cuda/small_launch.h"

namespace rnnfast::cuda {

template <>
const SmallTables& small_tables<Elman<Tanh>>() {
  return small_tables_of<Elman<Tanh>>();
}

}  // namespace rnnfast::cuda
