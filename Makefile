# Every verb is one line of shell or two; `make` alone lists them. `make check` is the definition of green.
PYTHON ?= python3
BIN := .venv/bin
# What `make fuzz` generates depends on this number alone.
SEED ?= 0
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help venv run test test-pools test-rest test-asterisk test-package fuzz fuzz-1 fuzz-2 check format format-check lint types imports docs docs-check drills bench chaos deb clean

help:              ## Show the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.venv/run: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { echo "On Debian: apt install python3-venv" >&2; exit 1; }
	$(PIP) install --editable .
	@touch $@

.venv/dev: .venv/run
	$(PIP) install --editable '.[dev]'
	@touch $@

venv: .venv/run    ## Make the virtual environment in .venv and install the package into it

run: .venv/run     ## Start the demonstration in the foreground on 127.0.0.1:4577
	@$(BIN)/fastagi-pool run --demo

test: .venv/dev    ## Run the tests, with MariaDB servers of their own: two halves at the same time
	@$(MAKE) --no-print-directory --jobs=2 --output-sync test-pools test-rest

# What runs whole pools, browsers and foreign interpreters mostly waits; the rest mostly computes.
POOLS := chaos drills external integration legacy page precompile

test-pools: .venv/dev
	$(BIN)/pytest -m "not asterisk and not package" $(POOLS:%=tests/%)

test-rest: .venv/dev
	$(BIN)/pytest -m "not asterisk and not package" $(POOLS:%=--ignore=tests/%) tests

test-asterisk: .venv/dev ## Run the tests against a real Asterisk, which is unpacked privately
	$(BIN)/pytest -m asterisk tests/external

test-package: .venv/dev ## Install, upgrade and purge the Debian package in a fresh root folder (as root)
	$(BIN)/pytest -m package tests/package

fuzz: .venv/dev    ## Generate inputs for the parser and arguments for commands at full length
	@$(MAKE) --no-print-directory --jobs=2 --output-sync fuzz-1 fuzz-2

fuzz-1 fuzz-2: fuzz-%: .venv/dev
	$(BIN)/pytest --hypothesis-profile=half --hypothesis-seed=$*$(SEED) tests/fuzz

check: format-check lint types imports docs-check test ## All that must be green

format: .venv/dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: .venv/dev ## Check the format
	$(BIN)/ruff format --check .

lint: .venv/dev    ## Look for likely mistakes
	$(BIN)/ruff check .

types: .venv/dev   ## Check the types
	$(BIN)/mypy

imports: .venv/dev ## Check that imports point one way
	$(BIN)/lint-imports

docs: .venv/dev    ## Generate the references, and build the documentation as a site in build/site
	$(BIN)/python scripts/generate_config_docs.py
	$(BIN)/python scripts/generate_command_docs.py
	$(BIN)/python scripts/generate_signals_docs.py
	$(BIN)/mkdocs build --strict --config-file scripts/mkdocs.yml

docs-check: .venv/dev ## Check that the generated pages are up to date
	$(BIN)/python scripts/generate_config_docs.py --check
	$(BIN)/python scripts/generate_command_docs.py --check
	$(BIN)/python scripts/generate_signals_docs.py --check

bench: .venv/dev   ## Measure, compare with the peers, and write docs/performance.md
	$(BIN)/python scripts/bench/run.py

drills: .venv/dev  ## Have ten things go wrong, and show what the operator sees
	$(BIN)/python scripts/drills/run.py

chaos: .venv/dev   ## Disturb everything under load for ten minutes, and audit what was told (as root)
	$(BIN)/python scripts/chaos/run.py $(CHAOS)

deb: .venv/dev     ## Build the Debian package in dist/
	$(BIN)/python scripts/build_deb.py

clean:             ## Remove what was made
	rm -rf .venv .cache build dist .test-failures .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
