#!/usr/bin/env bash
# Builds the whole package with its CUDA kernels into build/cuda, links it, and imports it: needs a
# Python with torch for CUDA, and nvcc; no GPU.
#
#   bash tools/cuda-build.sh [PYTHON]
#
# TORCH_CUDA_ARCH_LIST and MAX_JOBS are setup.py's.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(realpath -s "$(command -v "${1:-python3}")")

RNNFAST_CUDA=1 "$python" setup.py --quiet build --build-base build/cuda --build-lib build/cuda/lib
cd build/cuda/lib # not the source folder, whose libraries are another build's
"$python" -c '
import rnnfast
assert rnnfast._library.HAS_CUDA, "the CUDA library was not built"
print("\n".join(f"{name}: {fact}" for name, fact in rnnfast.diagnose.describe().items()))
'
