// The launchers of kernels.h.
#include <bit>

#include "cuda/dispatch.h"
#include "cuda/step.h"

namespace rnnfast::cuda {
namespace {

// `kernel(cell, tag)` with so many threads as the step has units; nothing where it has none.
template <template <class, class> class Step, class Kernel>
Status launch_step(std::string_view cell, Type type, const Step<void, void>& args, int directions,
                   Stream stream, const Kernel& kernel) {
  const int64_t most = most_rows(args.rows, directions);
  if (most == 0) return {};
  const StepShape shape = StepShape::of(most, args.layer.hidden);
  const dev::Launch launch{.grid_x = static_cast<int>(shape.row_blocks) * shape.column_blocks,
                           .grid_y = directions,
                           .threads = kThreads};
  return dispatch_cell_and_type(cell, type, [&](auto c, auto tag) {
    using E = typename decltype(tag)::type;
    return dev::launch(kernel(c, tag), launch, stream,
                       {std::bit_cast<Step<E, Compute<E>>>(args), shape});
  });
}

}  // namespace

Status launch_step_forward(std::string_view cell, Type type, const StepForward<void, void>& args,
                           int directions, Stream stream) {
  return launch_step(cell, type, args, directions, stream, [](auto c, auto tag) {
    return step_forward<decltype(c), typename decltype(tag)::type>;
  });
}

Status launch_step_backward(std::string_view cell, Type type, const StepBackward<void, void>& args,
                            int directions, Stream stream) {
  return launch_step(cell, type, args, directions, stream, [](auto c, auto tag) {
    return step_backward<decltype(c), typename decltype(tag)::type>;
  });
}

Status launch_column_sums(Type type, const ColumnSums<void, void>& args, Stream stream) {
  return dispatch_type(type, [&](auto tag) {
    using E = typename decltype(tag)::type;
    const auto typed = std::bit_cast<ColumnSums<E, Compute<E>>>(args);
    const auto blocks = [&](int columns) {
      return args.count * static_cast<int>((args.columns - 1) / columns + 1);
    };
    const int parts = static_cast<int>(args.parts);
    const Status status = dev::launch(
        partial_sums<E>, {.grid_x = blocks(kThreads), .grid_y = parts, .threads = kThreads}, stream,
        typed);
    if (!status.ok() || args.parts == 1) return status;
    return dev::launch(total_sums<E>, {.grid_x = blocks(kSumBlock), .threads = kThreads}, stream,
                       typed);
  });
}

int compiled_for() { return dev::compiled_for(expand_runs); }

Status launch_expand_runs(const ExpandRuns& args, Stream stream) {
  return dev::launch(expand_runs, {.grid_x = args.count, .threads = kThreads}, stream, args);
}

Status launch_states_before(Type type, const StatesBefore<void>& args, Stream stream) {
  constexpr int64_t kMostBlocks = 4096;
  const int64_t steps = args.walk.steps.count;
  return dispatch_type(type, [&](auto tag) {
    using E = typename decltype(tag)::type;
    return dev::launch(states_before<E>,
                       {.grid_x = static_cast<int>(steps < kMostBlocks ? steps : kMostBlocks),
                        .threads = kThreads},
                       stream, std::bit_cast<StatesBefore<E>>(args));
  });
}

}  // namespace rnnfast::cuda
