# Every target makes what it needs: the virtual environment in .venv, the wheel in dist, and the rest.

PYTHON ?= python3
# Those that `check-wheel` chooses the oldest and the newest of; without any it looks for them.
PYTHONS ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find rust kernels python -type f -not -name '*.pyc') Cargo.toml Cargo.lock pyproject.toml \
  README.md LICENSE
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= $(shell date +%s)
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

.PHONY: help build doctor demo test test-rust test-python test-gpu test-races fuzz bench soak soak-gpu lint format \
  wheel check-wheel clean

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

build: $(VENV)/.installed ## Build the wheel and install it in .venv.

doctor: build ## Say what works on this machine, and what to do about the rest.
	$(BIN)/python -m lamport_rs doctor

demo: build ## Run the collectives between processes, check them, and print a latency table.
	$(BIN)/python -m lamport_rs demo

test: test-rust test-races test-python ## Run all tests.

test-rust: $(VENV)/.ready ## Rust unit tests, property tests and model checks.
	cargo test --workspace

test-races: $(VENV)/.ready ## The host backend under ThreadSanitizer.
	tests/race_detector.sh

fuzz: $(VENV)/.ready ## Messages of lying peers, for ten minutes (FUZZ_SECONDS), another sequence every time (FUZZ_SEED).
	LAMPORT_RS_FUZZ_SECONDS=$(FUZZ_SECONDS) LAMPORT_RS_FUZZ_SEED=$(FUZZ_SEED) \
	  cargo test --package lamport-rs-core --test fuzz -- --nocapture

test-python: build ## The package, with ranks as processes.
	$(BIN)/python -m pytest

SEEDS ?= 100
.PHONY: test-emulator
test-emulator: $(VENV)/.ready ## The kernels on the emulator, with many seeds; `test-rust` runs a few.
	LAMPORT_RS_EMULATOR_SEEDS=$(SEEDS) cargo test -p lamport-rs-kernels --test emulator

test-gpu: build ## The package on GPUs, one per rank; skipped where there are none.
	$(BIN)/python -m pytest tests/gpu -m gpu

.PHONY: test-torch-suite
test-torch-suite: build ## torch's own tests of process groups, on the CPU, on the backend "lamport".
	$(BIN)/pip install --quiet 'expecttest>=0.3'
	$(BIN)/python tests/torch_suite.py

bench: build ## Compare all implementations found here; records and draws the run in benchmarks/results.
	$(BIN)/python -m lamport_rs bench

soak: build ## Ten million operations between processes, each result compared; recorded.
	$(BIN)/python tests/soak_host.py --out benchmarks/results/$(shell date +%F)-soak-cpu-x2.json

soak-gpu: build ## Likewise on two GPUs, most of them in graphs.
	$(BIN)/python tests/gpu/soak_gpu.py --out benchmarks/results/$(shell date +%F)-soak-gpu-x2.json

lint: $(VENV)/.ready ## Formatting, lints and types.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package lamport-rs-core --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs
docs: build ## Build the site in target/docs; a warning, a broken link or an undocumented name is an error.
	$(BIN)/python -m sphinx --quiet --fail-on-warning --nitpicky --builder html docs target/docs

format: $(VENV)/.ready ## Format all code.
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.ready ## Build the wheel that is published: manylinux_2_28, CPython 3.10 and later.
	$(BIN)/pip install --quiet 'ziglang>=0.13'
	rm -rf dist/manylinux
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" \
	  maturin build --release --locked --zig --compatibility manylinux_2_28 --out dist/manylinux

check-wheel: wheel ## Install the wheel with the oldest and the newest torch, without anything else, and check it.
	$(BIN)/python scripts/check_wheel.py dist/manylinux/*.whl $(PYTHONS)

VLLM_SOURCES ?=
.PHONY: check-vllm
check-vllm: build ## Check the plugin for vLLM against unpacked releases: VLLM_SOURCES="FOLDER ...".
	@[ -n "$(VLLM_SOURCES)" ] || { echo 'name folders that hold the package vllm: VLLM_SOURCES="FOLDER ..."' >&2; exit 1; }
	$(BIN)/python scripts/vllm_hooks.py $(VLLM_SOURCES)
	$(BIN)/python scripts/vllm_on_host.py $(VLLM_SOURCES)
	$(BIN)/python scripts/vllm_layers_on_host.py $(VLLM_SOURCES)

SGLANG_SOURCES ?=
.PHONY: check-sglang
check-sglang: build ## Check the plugin for SGLang against unpacked releases: SGLANG_SOURCES="FOLDER ...".
	@[ -n "$(SGLANG_SOURCES)" ] || \
	  { echo 'name folders that hold the package sglang: SGLANG_SOURCES="FOLDER ..."' >&2; exit 1; }
	$(BIN)/python scripts/sglang_hooks.py $(SGLANG_SOURCES)
	$(BIN)/python scripts/sglang_on_host.py $(SGLANG_SOURCES)

clean: ## Remove what was built, and the virtual environment.
	rm -rf target dist $(VENV)

$(VENV)/.ready: pyproject.toml scripts/check_prerequisites.sh
	scripts/check_prerequisites.sh $(PYTHON)
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the development tools in $(VENV) (the first time, some gigabytes and minutes)"
	$(BIN)/pip install --progress-bar off --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --progress-bar off --quiet --group dev
	touch $@

$(VENV)/.installed: $(VENV)/.ready $(SOURCES)
	rm -rf dist/*.whl
	$(BIN)/maturin build --release --locked --interpreter $(BIN)/python --out dist
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	touch $@
