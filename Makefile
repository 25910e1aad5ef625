# Every verb does its own set-up: a virtual environment in .venv from any python3 >= 3.11 (PYTHON=... picks another).

PYTHON ?= python3
BENCH ?= --rounds 3
BIN := .venv/bin
READY := .venv/ready
# MAKEFLAGS would hand our options to programs that tests start.
unexport MAKEFLAGS

.PHONY: help demo test lint types interop crash bench bench-check docs lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 13

demo: $(READY)  ## start relayd, send 1,000 messages to four kinds of destination, account for each
	$(BIN)/relayd demo

test: $(READY)  ## every test that needs nothing but this repository
	$(BIN)/python -m pytest -n 2 -m "not drill" --ignore tests/interop -rs

lint: $(READY)  ## ruff, the import contracts, the size budget
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --cache-dir .import_linter_cache
	$(BIN)/python -m pytest tests/unit/test_size_budget.py

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

interop: $(READY)  ## relayd with the clients, servers and load tools of others; as root
	tests/interop/install.sh
	$(BIN)/python -m pytest tests/interop -rs

crash: $(READY)  ## the failure drills, the long ones too
	$(BIN)/python -m pytest tests/crash -rs

bench: $(READY)  ## relayd and Postfix side by side; as root; BENCH="--rounds 5" passes arguments
	benchmarks/install.sh
	$(BIN)/python benchmarks/end_to_end.py $(BENCH)

bench-check: $(READY)  ## whether relayd became slower since the recorded results; as root, on an idle machine
	benchmarks/install.sh
	$(BIN)/python benchmarks/check.py $(BENCH)

docs: $(READY)  ## what is generated from the code
	$(BIN)/python -m relayd.config.example
	$(BIN)/python -m relayd.admin.reference

lock: $(READY)  ## requirements.lock, anew from pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --extra dev --generate-hashes --allow-unsafe \
	  --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	  --output-file requirements.lock pyproject.toml

clean:  ## remove what was made here
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "relayd needs python3 >= 3.11: make PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
