#include "cuda/persistent_launch.h"

namespace rnnfast::cuda {

template const PersistentTables& persistent_tables<Elman<Relu>>();

}  // namespace rnnfast::cuda
