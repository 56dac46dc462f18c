// The launchers of rows_kernels.h.
#include <bit>

#include "cuda/dispatch.h"
#include "cuda/rows_backward.h"
#include "cuda/rows_forward.h"

namespace rnnfast::cuda {
namespace {

// A block for each row of the step, as sums go over all of it; where there are none, more of them.
template <class E>
dev::Launch step_launch(const Rows<void>& rows) {
  constexpr int kApart = 128;
  const int64_t H = rows.hidden, most = rows.gain ? kRowThreads : kApart,
                threads = H < most ? (H + kWarpSize - 1) / kWarpSize * kWarpSize : most;
  return {.grid_x = static_cast<int>(rows.step.count),
          .grid_y = rows.gain ? 1 : static_cast<int>((H - 1) / threads + 1),
          .threads = static_cast<int>(threads),
          .smem_bytes = rows.gain ? shared_bytes_of<Compute<E>>(static_cast<int>(threads)) : 0};
}

dev::Launch units_launch(const Rows<void>& rows) {
  const int64_t units = rows.walk.steps.largest * rows.hidden;
  return {.grid_x = static_cast<int>((units - 1) / kUnitThreads + 1), .threads = kUnitThreads};
}

}  // namespace

Status launch_rows_forward(std::string_view cell, Type type, const RowsForward<void, void>& args,
                           Stream stream) {
  return dispatch_cell_and_type(cell, type, [&](auto c, auto tag) {
    using E = typename decltype(tag)::type;
    return dev::launch(rows_forward<decltype(c), E>, step_launch<E>(args.rows), stream,
                       std::bit_cast<RowsForward<E, Compute<E>>>(args));
  });
}

Status launch_rows_backward(std::string_view cell, Type type, const RowsBackward<void, void>& args,
                            Stream stream) {
  return dispatch_cell_and_type(cell, type, [&](auto c, auto tag) {
    using E = typename decltype(tag)::type;
    return dev::launch(rows_backward<decltype(c), E>, step_launch<E>(args.rows), stream,
                       std::bit_cast<RowsBackward<E, Compute<E>>>(args));
  });
}

Status launch_units_forward(std::string_view cell, Type type, const RowsForward<void, void>& args,
                            Stream stream) {
  return dispatch_cell_and_type(cell, type, [&](auto c, auto tag) {
    using E = typename decltype(tag)::type;
    return dev::launch(units_forward<decltype(c), E>, units_launch(args.rows), stream,
                       std::bit_cast<RowsForward<E, Compute<E>>>(args));
  });
}

Status launch_units_backward(std::string_view cell, Type type, const RowsBackward<void, void>& args,
                             Stream stream) {
  return dispatch_cell_and_type(cell, type, [&](auto c, auto tag) {
    using E = typename decltype(tag)::type;
    return dev::launch(units_backward<decltype(c), E>, units_launch(args.rows), stream,
                       std::bit_cast<RowsBackward<E, Compute<E>>>(args));
  });
}

}  // namespace rnnfast::cuda
