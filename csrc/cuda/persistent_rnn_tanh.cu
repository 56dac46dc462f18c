#include "cuda/persistent_launch.h"

template <>
const rnnfast::cuda::PersistentTables& rnnfast::cuda::persistent_tables<rnnfast::Elman<Tanh>>() {
  return persistent_tables_of<Elman<Tanh>>();
}
