# Everything runs in .venv, which is made when it is missing or older than pyproject.toml: each target works alone.
.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := device,video,edge,tracing,train,demo,tensorrt-rtx,plan,scale,triton,ppo,dev
TREE := build/linktree
# The first interpreter that starts and is new enough; give another with: make PYTHON=/path/to/python3 ...
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-gpu test-bench test-ray test-arm64 test-triton soak check fmt lint types arch bench bench-link wheel-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv and install every extra that needs no GPU

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one with: make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV): some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## serve and run the bundle of the zoo on sample photographs, some seconds
	$(BIN)/aecnn-deploy demo

test: $(STAMP) ## all tests but for the targets below (with AECNN_DATA=FOLDER also those on real photographs)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 2

test-fast: $(STAMP) ## the tests that are neither slow nor need photographs or a GPU
	$(BIN)/python -m pytest -m 'not slow and not data and not gpu and not arm64 and not triton and not soak and not ray and not bench'

test-gpu: $(STAMP) ## the tests on an NVIDIA GPU (install the extra tensorrt or cuda first)
	$(BIN)/python -m pytest -m gpu

test-bench: $(STAMP) ## the benchmarks themselves: reduced runs, with real edges, devices, peers and LoadGen
	$(BIN)/python -m pytest -m bench -n 2 --dist loadfile --max-worker-restart 2

test-ray: $(STAMP) ## tails and sweeps on a real Ray cluster of two nodes, on this machine
	$(BIN)/python -m pytest -m ray

test-arm64: $(STAMP) ## the device half on an arm64 Python: AECNN_ARM64_PYTHON, else an emulated Raspberry Pi that is built
	python="$${AECNN_ARM64_PYTHON:-}"; \
	[ -n "$$python" ] || python="$$(PATH="$$PWD/$(BIN):$$PATH" tools/arm64_python.sh build/arm64)" || exit 1; \
	AECNN_ARM64_PYTHON="$$python" $(BIN)/python -m pytest -o faulthandler_timeout=0 -m arm64

test-triton: $(STAMP) ## tails on a real Triton server: AECNN_TRITON_PYTHON, else an environment that is made, a minute
	python="$${AECNN_TRITON_PYTHON:-}"; \
	[ -n "$$python" ] || python="$$(tools/triton_python.sh build/triton)" || exit 1; \
	AECNN_TRITON_PYTHON="$$python" $(BIN)/python -m pytest -m triton tests/test_*triton*.py

soak: $(STAMP) ## an edge and 32 devices under load and faults, 10 minutes (or SOAK_SECONDS=60)
	$(BIN)/python -m pytest -o faulthandler_timeout=0 -m soak tests/test_soak.py

check: lint types arch ## ruff, mypy and the import layers: what CI runs before the tests

lint: $(STAMP) ## ruff, without changing a file
	$(BIN)/ruff check
	$(BIN)/ruff format --check

fmt: $(STAMP) ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(STAMP) ## mypy, strict
	$(BIN)/python tools/linktree.py
	MYPYPATH=$(TREE) $(BIN)/mypy

# From inside the tree: import-linter looks in the current folder first.
arch: $(STAMP) ## the import layers
	$(BIN)/python tools/linktree.py
	cd $(TREE) && ../../$(BIN)/lint-imports --config ../../pyproject.toml

bench: $(STAMP) ## what our own code costs one image; results in benchmarks/results
	$(BIN)/python -m benchmarks.overhead

bench-link: $(STAMP) ## Fig. 5 and a drive through a tunnel over shaped links; needs root (BENCH_DATA=FOLDER, FIG5=…, DRIVE=…)
	status=0; \
	$(BIN)/python -m benchmarks.link_fig5 $(if $(BENCH_DATA),--data '$(BENCH_DATA)') $(FIG5) || status=1; \
	for trace in stairs wall; do \
		$(BIN)/python -m benchmarks.link_drive --trace $$trace $(if $(BENCH_DATA),--data '$(BENCH_DATA)') $(DRIVE) || status=1; \
	done; \
	exit $$status

wheel-check: $(STAMP) ## build the wheel and compare its content with what is expected
	$(BIN)/python -m pytest tests/test_packaging.py

clean: ## remove all that was made here, the environment included
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	rm -rf .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
