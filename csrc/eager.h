// Functions of rnnfast._C that take Python objects as they come.
#pragma once

#include <Python.h>

namespace rnnfast {

extern PyMethodDef kEagerMethods[];

}  // namespace rnnfast
