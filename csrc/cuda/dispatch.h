// How launchers find the instance of a kernel: by the cell's name and the type of the tensors.
#pragma once

#include <string_view>

#include "cells.h"
#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/types.h"

namespace rnnfast::cuda {

template <class E>
struct TypeTag {
  using type = E;
};

// Calls f with the storage type.
template <class F>
dev::Status dispatch_type(Type type, F&& f) {
  switch (type) {
    case Type::kFloat64:
      return f(TypeTag<double>{});
    case Type::kFloat32:
      return f(TypeTag<float>{});
    case Type::kBfloat16:
      return f(TypeTag<dev::Bf16>{});
    case Type::kFloat16:
      return f(TypeTag<dev::Half>{});
  }
  return {dev::Status::kError, "unknown type"};
}

template <class F>
dev::Status dispatch_cell_and_type(std::string_view name, Type type, F&& f) {
  dev::Status status{dev::Status::kError, "unknown cell"};
  dispatch_cell(name, [&](auto cell) {
    status = dispatch_type(type, [&](auto tag) { return f(cell, tag); });
  });
  return status;
}

}  // namespace rnnfast::cuda
