#!/usr/bin/env bash
# Everything there is to check and to measure on a GPU, in one command: see gpu_check.py. PYTHON: a
# python3 with torch for CUDA, numpy and pytest; nothing is downloaded. PACK: the folder that
# `make gpu-pack` made, used where it is there.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export OUT="${OUT:-$PWD/benchmarks/results}"
pack=${PACK:-.gpu}
if [ -d "$pack" ]; then cd "$pack" || exit; fi
exec "${PYTHON:-python3}" -u -m tools.gpu_check "$@"
