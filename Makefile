# make demo: distil a student on handwritten digits.  make test: run all checks.
PYTHON ?= python3
VENV ?= .venv
# Processes that run tests; those that start Ray are left to one of them (tests/conftest.py).
JOBS ?= 2
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint format types clean

help:
	@echo "make demo    install into $(VENV) and distil a student on real digits (2 minutes)"
	@echo "make test    install, lint, type-check, run every test"
	@echo "make format  rewrite the sources in the project's format"
	@echo "make clean   remove $(VENV) and caches; runs and MLflow data stay"

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "==> installing into $(VENV): a few minutes, mostly for downloading PyTorch"
	@started=$$SECONDS; $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .; \
	touch $@; echo "    took $$((SECONDS - started)) s"

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "==> installing what the tests need"
	@started=$$SECONDS; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'; \
	touch $@; echo "    took $$((SECONDS - started)) s"

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: lint types
	@echo "==> tests"
	@$(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.installed-test
	@echo "==> format and lint"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(VENV)/.installed-test
	@echo "==> types"
	@$(BIN)/mypy

format: $(VENV)/.installed-test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist
