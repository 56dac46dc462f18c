# make demo · make test · make bench · make lint: each sets up .venv by itself.
# Needed: Python 3.10+, g++, make. Another Python or torch: make PYTHON=python3.12 TORCH=torch==2.11.0 test
# (after `make clean`). MAX_JOBS limits the compilers that run side by side.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: demo test bench lint format build clean

demo: build
	$(BIN)/python examples/digits.py

test: build
	$(BIN)/python -m pytest

bench: build
	$(BIN)/python -m benchmarks

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

build: .venv/built

# The compiled libraries lie in rnnfast/: an edited .py file counts at once, edited C++ rebuilds.
.venv/built: .venv/torch setup.py pyproject.toml $(CXX_SOURCES)
	@echo "building rnnfast into .venv"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# uv picks the torch that fits this machine: the CPU build where there is no GPU. Where uv cannot
# have it, pip takes torch from wherever this machine is set up to take packages from.
.venv/torch:
	@echo "creating .venv with $(TORCH)"
	@$(PYTHON) -m venv --clear .venv
	@$(INSTALL) --upgrade pip uv 'setuptools>=77' wheel ninja pybind11 numpy
	@UV_HTTP_RETRIES=0 $(BIN)/uv pip install --quiet --python $(BIN)/python \
		--torch-backend=auto '$(TORCH)' 2>/dev/null || $(INSTALL) '$(TORCH)'
	@touch $@

clean:
	rm -rf .venv build dist rnnfast.egg-info rnnfast/_build.py rnnfast/*.so
