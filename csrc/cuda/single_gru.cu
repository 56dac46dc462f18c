#include "cuda/single_launch.h"

namespace rnnfast::cuda {

template const SingleTables& single_tables<Gru>();

}  // namespace rnnfast::cuda
