// The CPU kernels for the instruction set of this file's flags (setup.py); one library each, one of
// them is loaded.
#include "cpu/op.h"
