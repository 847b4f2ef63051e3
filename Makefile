# Every target does all of its own set-up: a virtual environment in .venv, what it needs installed in it, nothing else.
.DEFAULT_GOAL := help
.PHONY: help demo serve test lint lock pocket clean

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
POCKET := deploy/pocket/cascade.yaml
# A CUDA machine keeps its own PyTorch: make demo TORCH="torch==2.11.0"
TORCH  ?= torch==2.13.0

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.run ## ask the pocket cascade 48 held-out questions over HTTP; no GPU, no model hub
	$(BIN)/confgate demo

serve: $(VENV)/.run ## keep the pocket cascade running; prints a curl line to try
	$(BIN)/confgate serve --config $(POCKET)

test: $(VENV)/.test ## the whole suite
	$(BIN)/python -m pytest

lint: $(VENV)/.test ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pocket: $(VENV)/.test ## collect again on the shipped models and fit the shipped artefacts anew (about 20 minutes on 2 cores)
	$(BIN)/python -m eval.pocket.rebuild

lock: $(VENV)/.test ## resolve the test environment anew and pin it with hashes
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile pyproject.toml --extra cli --extra calibrate --extra eval --extra local --extra demo --extra dev \
	  --generate-hashes --no-emit-package torch --python-version 3.11 --no-header --no-emit-index-url \
	  --no-emit-find-links --quiet --output-file requirements/test.lock

# PyTorch goes in first: with no torch installed, other packages would pull a build with gigabytes of CUDA libraries.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -e '.[cli,eval,local,demo,calibrate]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml requirements/test.lock
	$(BIN)/python -m pip install -q --require-hashes -r requirements/test.lock
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@ $(VENV)/.run

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
