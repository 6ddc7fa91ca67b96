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
# The build asks for it: were it another, or none, in the shell of each call, the kernels' crate would be built each time.
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# Half of what tests do is wait for others, or for their turn: more at a time than there are cores.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
# Kernels are compiled once for all profiles and targets.
export LAMPORT_RS_KERNEL_CACHE ?= $(CURDIR)/target/kernels

.PHONY: help build doctor demo test test-all test-long test-rust test-rust-short test-rust-long test-python \
  test-gpu test-races fuzz bench soak soak-gpu lint format \
  wheel check-wheel clean

help: ## Show the targets, and how long each takes about, on 2 cores once all is built.
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28

build: $(VENV)/.installed ## Build the wheel and install it in .venv (2 min; the first time, 5 and more).

doctor: build ## Say what works on this machine, and what to do about the rest (20 s).
	$(BIN)/python -m lamport_rs doctor

demo: build ## Run the collectives between processes, check them, and print a latency table (20 s).
	$(BIN)/python -m lamport_rs demo

# Checks of minutes, and what assembles every module; `test-rust-short` leaves them out by their names.
LONG_RUST := in_every_execution operations_with_headers headers_are_neither_lost_nor two_ranks_neither_lose \
  what_breaks_one_shot_breaks four_ranks_are_correct_in_two three_ranks_are_correct_in_a_mix \
  kernels_use_no_local_memory planted_defects a_message_is_missed \
  operations::minimax_norms operations::norms_of_sums operations::quantised_sums operations::rows_of_experts \
  construction::any_call processes::the_others_miss every_word_arrives_on_its_own the_newest_compiler
# Tests of the emulator: `test-rust-long` runs all with a seed; `test-rust-short` those that are not left to it, with another.
LEFT_TO_LONG := families disagreements foreign_kernels
SEEDED := $(LEFT_TO_LONG) all_reduce setup limited_residency faults

test: test-rust-short ## What a change needs first: every operation on the host, faults, some of the emulator (5 min).
	$(MAKE) test-python PYTEST_ARGUMENTS='-m "not long"'

test-long: test-rust-long ## What `test` leaves out: models, more of the emulator, long tests, races (13 min).
	$(MAKE) test-races
	$(MAKE) test-python PYTEST_ARGUMENTS='-m long'

test-all: ## All tests: `test`, then `test-long` (18 min).
	$(MAKE) test
	$(MAKE) test-long

test-rust: test-rust-short test-rust-long ## Rust unit tests, property tests and model checks (7 min).

test-rust-short: $(VENV)/.ready
	LAMPORT_RS_EMULATOR_SEEDS=1 LAMPORT_RS_FUZZ_SECONDS=2 \
	  cargo test --workspace --features lamport-rs/cuda -- $(LONG_RUST:%=--skip %) $(LEFT_TO_LONG:%=--skip %)

test-rust-long: $(VENV)/.ready
	cargo test --workspace --features lamport-rs/cuda --tests -- $(LONG_RUST)
	LAMPORT_RS_EMULATOR_SEEDS=1..2 cargo test --workspace --features lamport-rs/cuda --test emulator -- $(SEEDED)

test-races: $(VENV)/.ready ## The host backend under ThreadSanitizer (2 min).
	tests/race_detector.sh

fuzz: $(VENV)/.ready ## Lies of peers and transports, for ten minutes (FUZZ_SECONDS), others every time (FUZZ_SEED).
	LAMPORT_RS_FUZZ_SECONDS=$$(($(FUZZ_SECONDS) * 3 / 4)) LAMPORT_RS_FUZZ_SEED=$(FUZZ_SEED) \
	  cargo test --package lamport-rs-core --features cuda --test fuzz -- --nocapture
	LAMPORT_RS_FUZZ_SECONDS=$$(($(FUZZ_SECONDS) / 4)) LAMPORT_RS_FUZZ_SEED=$(FUZZ_SEED) \
	  cargo test --package lamport-rs --test fuzz -- --nocapture

# Half of what tests do is wait for others, so more at a time than there are cores. Those of a file share ranks.
test-python: build ## The package, with ranks as processes (10 min).
	$(BIN)/python -m pytest -n $(or $(WORKERS),3) --dist loadfile $(PYTEST_ARGUMENTS)

SEEDS ?= 100
.PHONY: test-emulator
test-emulator: $(VENV)/.ready ## The kernels on the emulator, with many seeds (100 take an hour).
	LAMPORT_RS_EMULATOR_SEEDS=$(SEEDS) cargo test -p lamport-rs-kernels --test emulator

test-gpu: build ## The package on GPUs, one per rank; skipped where there are none (minutes).
	$(BIN)/python -m pytest tests -m gpu

.PHONY: test-torch-suite
test-torch-suite: build ## torch's own tests of process groups, on the CPU, on the backend "lamport" (minutes).
	$(BIN)/pip install --quiet 'expecttest>=0.3'
	$(BIN)/python tests/torch_suite.py

bench: build ## Compare all implementations found here; records and draws the run in benchmarks/results (minutes).
	$(BIN)/python -m lamport_rs bench

soak: build ## Ten million operations between processes, each result compared; recorded (minutes).
	$(BIN)/python tests/soak_host.py --out benchmarks/results/$(shell date +%F)-soak-cpu-x2.json

soak-gpu: build ## Likewise on two GPUs, most of them in graphs (minutes).
	$(BIN)/python tests/gpu/soak_gpu.py --out benchmarks/results/$(shell date +%F)-soak-gpu-x2.json

lint: $(VENV)/.ready ## Formatting, lints and types (2 min).
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features lamport-rs/cuda,lamport-rs/core,lamport-rs/protocol,lamport-rs/kernels \
	  -- -D warnings
	cargo clippy --package lamport-rs-core --all-targets -- -D warnings
	cargo clippy --package lamport-rs --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs
docs: build ## Build the site in target/docs; a warning, a broken link or an undocumented name is an error (30 s).
	$(BIN)/python -m sphinx --quiet --fail-on-warning --nitpicky --builder html docs target/docs
	# As docs.rs does, without the kernels: in a folder of its own, since other builds have them.
	DOCS_RS=1 RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --package lamport-rs --features cuda --target-dir target/rustdoc
	rm -rf target/docs/rust
	cp -r target/rustdoc/doc target/docs/rust

format: $(VENV)/.ready ## Format all code (10 s).
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is published: manylinux_2_28, CPython 3.10 and later. $(1): the target, $(2): the folder.
build_wheel = $(BIN)/pip install --quiet 'ziglang>=0.13' && rm -rf $(2) && PATH="$(CURDIR)/$(BIN):$$PATH" \
  maturin build --release --locked --zig --compatibility manylinux_2_28 \
  --target $(1)-unknown-linux-gnu --out $(2)

wheel: $(VENV)/.ready ## Build the wheel for x86-64 that is published: manylinux_2_28, CPython 3.10 and later (2 min).
	$(call build_wheel,x86_64,dist/manylinux)

.PHONY: wheel-aarch64 check-wheel-aarch64
wheel-aarch64: $(VENV)/.ready ## Build the wheel for aarch64 likewise, on any machine (3 min).
	@[ -d "$$(rustc --print target-libdir --target aarch64-unknown-linux-gnu)" ] || \
	  { echo 'missing: Rust for aarch64: rustup target add aarch64-unknown-linux-gnu' >&2; exit 1; }
	$(call build_wheel,aarch64,dist/aarch64)

check-wheel-aarch64: wheel-aarch64 ## Install and run that wheel in qemu-user-static (15 min at most).
	$(BIN)/python scripts/check_wheel_aarch64.py dist/aarch64/*.whl

check-wheel: wheel ## Build from the sdist; run the wheel alone with the oldest and the newest torch (6 min).
	$(BIN)/python scripts/third_party.py --check
	rm -rf dist/sdist
	$(BIN)/maturin sdist --out dist/sdist
	$(BIN)/python scripts/check_artefacts.py dist/manylinux/*.whl dist/sdist/*.tar.gz
	$(BIN)/python scripts/check_sdist.py dist/sdist/*.tar.gz
	$(BIN)/python scripts/check_wheel.py dist/manylinux/*.whl $(PYTHONS)

VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
SITE := dist/site/lamport-rs-$(VERSION)-site.tar.gz
CRATES := lamport-rs-protocol lamport-rs-kernels lamport-rs-core lamport-rs
PACKAGES := dist/manylinux/*.whl dist/aarch64/*.whl dist/sdist/*.tar.gz
RELEASED := $(PACKAGES) $(CRATES:%=target/package/%-$(VERSION).crate) $(SITE)

.PHONY: site
site: docs ## Pack the site as it is published, in dist/site (30 s).
	mkdir -p $(dir $(SITE))
	tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$$(git log -1 --format=%ct)" --exclude=.doctrees \
	  --transform='s,^docs,lamport-rs-$(VERSION)-site,' -C target -czf $(SITE) docs

.PHONY: release
release: $(VENV)/.ready ## Build and check all artefacts in dist/release, from a clean tree; publish nothing (30 min).
	$(BIN)/python scripts/release.py check
	$(BIN)/pip install --quiet 'twine>=6.1'
	$(MAKE) LAMPORT_RS_KERNEL_CACHE= check-crates check-wheel check-wheel-aarch64
	$(MAKE) site
	$(BIN)/python scripts/check_artefacts.py $(RELEASED)
	$(BIN)/twine check --strict $(PACKAGES)
	$(BIN)/python scripts/release.py check
	$(BIN)/python scripts/release.py gather dist/release $(RELEASED)

.PHONY: check-msrv
check-msrv: $(VENV)/.ready ## Check that the oldest Rust of Cargo.toml compiles all crates (3 min).
	cargo +$$(sed -n 's/^rust-version = "\(.*\)"$$/\1/p' Cargo.toml) check --workspace --locked --features lamport-rs/cuda

.PHONY: check-crates
check-crates: $(VENV)/.ready ## Build the crates as published, each alone, and programs with them; publish nothing (4 min).
	scripts/check_crates.sh

VLLM_SOURCES ?=
.PHONY: check-vllm
check-vllm: build ## Check the plugin for vLLM against releases: VLLM_SOURCES="FOLDER ..." (a minute a release).
	@[ -n "$(VLLM_SOURCES)" ] || { echo 'name folders that hold the package vllm: VLLM_SOURCES="FOLDER ..."' >&2; exit 1; }
	$(BIN)/python scripts/vllm_hooks.py $(VLLM_SOURCES)
	$(BIN)/python scripts/vllm_on_host.py $(VLLM_SOURCES)
	$(BIN)/python scripts/vllm_layers_on_host.py $(VLLM_SOURCES)

SGLANG_SOURCES ?=
.PHONY: check-sglang
check-sglang: build ## Check the plugin for SGLang against releases: SGLANG_SOURCES="FOLDER ..." (a minute a release).
	@[ -n "$(SGLANG_SOURCES)" ] || \
	  { echo 'name folders that hold the package sglang: SGLANG_SOURCES="FOLDER ..."' >&2; exit 1; }
	$(BIN)/python scripts/sglang_hooks.py $(SGLANG_SOURCES)
	$(BIN)/python scripts/sglang_on_host.py $(SGLANG_SOURCES)

clean: ## Remove what was built, and the virtual environment (seconds).
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
