#include "cuda/persistent_launch.h"

template <>
const rnnfast::cuda::PersistentTables& rnnfast::cuda::persistent_tables<rnnfast::Lstm>() {
  return persistent_tables_of<Lstm>();
}
