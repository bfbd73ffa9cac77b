# `make` alone lists what there is. Everything runs in .venv, made from the pinned constraints.txt on first use.

# The first of these that is 3.11 or newer; set PYTHON=... to choose another.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3 python,$(shell \
	$(python) -c 'import sys; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint venv lock clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(STAMP) ## search, gate, register, serve and predict on built-in data; serves until Ctrl-C (ONCE=1: ends)
	@exec $(BIN)/python -m ray_jobs.quickstart

test: $(STAMP) ## the tests that are not marked slow (8 minutes on 2 fast cores)
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP) ## all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

venv: $(STAMP) ## the virtual environment that all of these use

# torch comes first and alone: whatever build of it the package index in use prefers then satisfies all that follow.
# PIP_CONSTRAINT (not -c) because it also pins what builds the project.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Trialgate needs Python 3.11 or newer; none found. Set it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) from constraints.txt; this takes 1 to 5 minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@echo "  1/2 torch"
	@PIP_CONSTRAINT=constraints.txt $(PIP) install torch
	@echo "  2/2 Ray, MLflow, transformers and the rest"
	@PIP_CONSTRAINT=constraints.txt $(PIP) install -e '.[dev]'
	@touch $@

# Resolves pyproject.toml anew in a fresh environment. Local version parts (+cpu, +cu130) are dropped, and so are the
# libraries that only some builds of torch bring: the build is the index's choice.
lock: ## resolve the dependencies anew and write constraints.txt
	@test -n "$(PYTHON)" || { echo "Trialgate needs Python 3.11 or newer; set it with: make PYTHON=..."; exit 1; }
	@echo "Resolving in .venv-lock; this takes 2 to 10 minutes."
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip --disable-pip-version-check -qq install '.[dev,s3,bench,postgresql,ship]'
	@{ sed '/^[^#]/,$$d' constraints.txt; .venv-lock/bin/python -m pip freeze --all --exclude trialgate --exclude pip \
		| sed -E 's/\+[A-Za-z0-9.]+$$//' | grep -Ev '^(nvidia|cuda|triton)[-_=]'; } > constraints.txt.new
	@! grep -nE ' @ |file:|^-' constraints.txt.new
	@mv constraints.txt.new constraints.txt && rm -rf .venv-lock build trialgate.egg-info
	@echo "constraints.txt: $$(grep -c '==' constraints.txt) packages."

clean: ## remove what quickstart and the tests write (its registry too), and caches
	rm -rf .trialgate build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find configs gate ray_jobs serve_app tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and the virtual environment
	rm -rf $(VENV) .venv-lock
