# make demo · make test · make bench · make lint: each sets up .venv by itself.
# make bench-peers: rnnfast beside oneDNN, ONNX Runtime, OpenVINO and JAX, in .venv-peers.
# make cuda-compile: the CUDA kernels for every GPU, registers and spills; needs nvcc, no GPU.
# make cuda-build: the whole package against a torch for CUDA, in .venv-cuda; needs nvcc, no GPU.
# make gpu-check: builds, tests and measures on this machine's GPU, with PYTHON's torch; fetches nothing.
# Needed: Python 3.10+, g++, make. Another Python or torch: make PYTHON=python3.12 TORCH=torch==2.11.0 test
# (after `make clean`). MAX_JOBS limits the compilers that run side by side.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
OTHER_SOURCES := benchmarks/micro/micro.cu $(wildcard benchmarks/peers/*.cpp) tools/layouts.cpp
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

# Each is installed by itself: one that this machine cannot have is left out, and the table says so.
PEERS := onnx onnxruntime openvino jax onednn-devel-cpu-gomp

.PHONY: demo test bench bench-peers lint format build clean cuda-compile cuda-build gpu-check

demo: build
	$(BIN)/python examples/digits.py

# A process for each core, eight at most. OPTIONS="-n 0 -k gru" runs a part, in one process.
test: build
	@echo "testing: on two free cores it takes about MINUTES minutes"
	$(BIN)/python -m pytest -n auto --dist loadgroup $(OPTIONS)

bench: build
	$(BIN)/python -m benchmarks

# OPTIONS="--quick --cells gru" measures a part.
bench-peers:
	@$(MAKE) --no-print-directory VENV=.venv-peers build .venv-peers/peers
	.venv-peers/bin/python -m benchmarks.peers $(OPTIONS)

# ARCH="80 90" compiles for these only.
cuda-compile:
	$(PYTHON) -m tools.cuda_compile $(if $(ARCH),--arch $(ARCH))

cuda-build: .venv-cuda/torch
	bash tools/cuda-build.sh .venv-cuda/bin/python

gpu-check:
	bash tools/gpu-check.sh

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(OTHER_SOURCES)

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) $(OTHER_SOURCES)

build: $(VENV)/built

# The compiled libraries lie in rnnfast/: an edited .py file counts at once, edited C++ rebuilds.
$(VENV)/built: $(VENV)/torch setup.py pyproject.toml $(CXX_SOURCES)
	@echo "building rnnfast into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# uv picks the torch that fits this machine: the CPU build where there is no GPU. Where uv cannot
# have it, pip takes torch from wherever this machine is set up to take packages from.
$(VENV)/torch:
	@echo "creating $(VENV) with $(TORCH)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) --upgrade pip uv 'setuptools>=77' wheel ninja pybind11 numpy
	@UV_HTTP_RETRIES=0 $(BIN)/uv pip install --quiet --python $(BIN)/python \
		--torch-backend=auto '$(TORCH)' 2>/dev/null || $(INSTALL) '$(TORCH)'
	@touch $@

.venv-peers/peers: .venv-peers/torch
	@for peer in $(PEERS); do $(INSTALL) $$peer || echo "$$peer cannot be installed"; done
	@touch $@

# The wheel of torch that the package index has for Linux is the one for CUDA.
.venv-cuda/torch:
	@echo "creating .venv-cuda with $(TORCH)"
	@$(PYTHON) -m venv --clear .venv-cuda
	@.venv-cuda/bin/python -m pip install --quiet 'setuptools>=77' wheel ninja pybind11 numpy '$(TORCH)'
	@touch $@

clean:
	rm -rf .venv .venv-cuda .venv-peers build dist rnnfast.egg-info rnnfast/_build.py rnnfast/*.so
