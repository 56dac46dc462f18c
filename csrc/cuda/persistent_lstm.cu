#include "cuda/persistent_launch.h"

namespace rnnfast::cuda {

template <>
const PersistentTables& persistent_tables<Lstm>() {
  return persistent_tables_of<Lstm>();
}

}  // namespace rnnfast::cuda
