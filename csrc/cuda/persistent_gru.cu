#include "cuda/persistent_launch.h"

namespace rnnfast::cuda {

template <>
const PersistentTables& persistent_tables<Gru>() {
  return persistent_tables_of<Gru>();
}

}  // namespace rnnfast::cuda
