# `make demo` and `make test` set everything up by themselves, in .venv and nowhere else.

PYTHON ?= python3
CXX ?= g++
VENV := .venv
PY := $(VENV)/bin/python
# What a first installation takes where it is to be had; any torch >= 2.11 that is already there is kept.
TORCH ?= torch==2.14.1 torchvision==0.29.1
# Enough for a quick build, where the user names no architectures: other GPUs run the PTX.
QUICKLY := TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST-8.0;9.0+PTX}"
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The oldest Triton that the kernels compile with; the tests use it beside the environment's own.
OLDEST_TRITON := 3.6.0

SOURCES := $(shell find csrc tests/csrc tests/cuda_on_cpu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# What a failed step has half made must not pass for done the next time.
.DELETE_ON_ERROR:

# Processes that `make test` divides its files among. Threads of OpenMP must not spin where several share the cores.
TEST_JOBS ?= 1
PARALLEL := $(if $(filter-out 1,$(TEST_JOBS)),OMP_WAIT_POLICY=passive)
DIVIDED := $(if $(filter-out 1,$(TEST_JOBS)),-n $(TEST_JOBS) --dist loadfile)
# Seconds that `make fuzz` gives each of its targets, and the number that it starts from.
FUZZ_SECONDS ?= 60
FUZZ_SEED := $(or $(FUZZ_SEED),$(shell date +%s))
# And those of `make soak`.
SOAK_SECONDS ?= 600

.PHONY: demo test lint format docs pictures bench readme gpu soak wheel sanitize fuzz clean

demo: $(VENV)/.built
	$(VENV)/bin/agmh-fast demo

test: $(VENV)/.built $(VENV)/.oldest-triton
	$(PARALLEL) $(PY) -m pytest -q $(DIVIDED)

lint: $(VENV)/.built
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

format: $(VENV)/.built
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES)

# The C++ tests under the address, undefined-behaviour and thread sanitizers; `make test` leaves the last one out.
sanitize: $(VENV)/.built
	AGMH_FAST_SANITIZE=1 $(PY) -m pytest -q tests/csrc tests/cuda_on_cpu

fuzz: $(VENV)/.built
	@echo "agmh-fast: starting from FUZZ_SEED=$(FUZZ_SEED)"
	AGMH_FAST_FUZZ_SECONDS=$(FUZZ_SECONDS) AGMH_FAST_FUZZ_SEED=$(FUZZ_SEED) $(PY) -m pytest -q \
	  tests/csrc/test_engine.py::test_random_lives_of_an_index tests/search/test_index_fuzz.py

bench: $(VENV)/.bench
	$(PY) -m pytest bench/ --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# The documentation, from pages and docstrings; every warning is an error.
docs: $(VENV)/.docs
	$(PY) -m sphinx -a -W --keep-going -q -c docs -d build/doctrees . build/site
	@echo "agmh-fast: open build/site/index.html"

pictures: $(VENV)/.built
	$(PY) docs/draw.py

# The tables of README and docs/performance.md from bench/results.
readme: $(VENV)/.built
	$(PY) bench/readme.py
	$(PY) bench/performance.py

# An environment that has all it takes is used as it is, and the network not at all; any other is set up in .venv.
gpu:
	@if ! [ -e $(VENV)/.bench ] && $(PYTHON) -c 'import torch, pytest, pytest_benchmark, setuptools, ninja, pybind11' 2>/dev/null; \
	then $(PYTHON) bench/gpu.py; else $(MAKE) --no-print-directory $(VENV)/.bench && $(PY) bench/gpu.py; fi

# Random lives of an index on a GPU, one after the other; `make gpu` has some seconds of them.
soak:
	AGMH_FAST_SOAK_SECONDS=$(SOAK_SECONDS) $(if $(wildcard $(VENV)/.built),$(PY),$(PYTHON)) -m pytest -q -m gpu tests/search/test_soak.py

# Source distribution and wheel, for every GPU architecture where a CUDA toolkit is found; release/README.md says more.
wheel: $(VENV)/.release
	env -u TORCH_CUDA_ARCH_LIST $(PY) release/distributions.py

clean:
	rm -rf $(VENV) build dist *.egg-info agmh_fast/*.so

# Each requirement that is missing is one line that says what to install.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	  || { echo "agmh-fast: Python 3.10 or newer is needed: install python3, or name one with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "agmh-fast: Python's venv module is missing: install python3-venv" >&2; exit 2; }
	@command -v $(CXX) >/dev/null 2>&1 \
	  || { echo "agmh-fast: no C++ compiler: install g++ (or name one with make CXX=...)" >&2; exit 2; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "agmh-fast: Python.h is missing: install python3-dev" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(PY)
	$(PY) -m pip install -q --upgrade 'pip>=24' 'setuptools>=77' wheel ninja 'pybind11>=2.13'
	$(PY) -c 'import torch, torchvision' 2>/dev/null \
	  || $(PY) -m pip install -q $(TORCH) || $(PY) -m pip install -q 'torch>=2.11' torchvision
	touch $@

$(VENV)/.built: $(VENV)/.torch pyproject.toml setup.py $(SOURCES)
	$(QUICKLY) $(PY) -m pip install -q --no-build-isolation -e '.[dev]'
	touch $@

# Of the package that is installed already, so that only what the extra asks for is added and nothing compiled again.
$(VENV)/.bench $(VENV)/.docs $(VENV)/.release: $(VENV)/.%: $(VENV)/.built
	$(PY) -m pip install -q 'agmh-fast[$*]'
	touch $@

# In a folder of its own. Where it cannot be had the tests go on, say so, and the next `make test` tries again.
$(VENV)/.oldest-triton: $(VENV)/.torch
	@rm -rf $(VENV)/triton-3.6
	@if [ "$$(uname -sm)" != "Linux x86_64" ] \
	  || $(PY) -c 'import sys, triton; sys.exit(not triton.__version__.startswith("3.6."))' 2>/dev/null \
	  || $(PY) -m pip install -q --no-deps --target $(VENV)/triton-3.6 'triton==$(OLDEST_TRITON)'; \
	then touch $@; \
	else echo "agmh-fast: no triton $(OLDEST_TRITON) to be had here: the tests go on without it" >&2; fi
