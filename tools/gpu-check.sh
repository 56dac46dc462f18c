#!/usr/bin/env bash
# Everything there is to check and to measure on a GPU, in one command: see gpu_check.py. PYTHON: a
# python3 with torch for CUDA, numpy and pytest; nothing is downloaded.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
exec "${PYTHON:-python3}" -u -m tools.gpu_check "$@"
