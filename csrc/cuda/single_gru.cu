#include "cuda/single_launch.h"

namespace rnnfast::cuda {

template <>
const SingleTables& single_tables<Gru>() {
  return single_tables_of<Gru>();
}

}  // namespace rnnfast::cuda
