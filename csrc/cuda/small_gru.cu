#include "cuda/small_launch.h"

namespace rnnfast::cuda {

template <>
const SmallTables& small_tables<Gru>() {
  return small_tables_of<Gru>();
}

}  // namespace rnnfast::cuda
