# Every target does all of its own set-up: a virtual environment in .venv, what it needs installed in it, nothing else.
.DEFAULT_GOAL := help
.PHONY: help demo serve test test-clients lint lock sbom pocket rehearsal test-cluster bench bench-instructions bench-offline soak drill pictures clean

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
POCKET := deploy/pocket/cascade.yaml
KEY    := deploy/pocket/state/admin.key
SHIFTS := more_steps,larger_numbers,new_names,reworded,extra_clause
# Every extra but ray, which has an environment of its own.
LOCKED := $(foreach extra,cli calibrate eval report local demo sign postgres otel dev,--extra $(extra))
# README, "Other platforms", says what to put here on a machine that is not Linux with Python 3.11.
TORCH  ?= torch==2.13.0

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.run ## ask the pocket cascade 48 held-out questions over HTTP; no GPU, no model hub
	$(BIN)/confgate demo

serve: $(VENV)/.run $(KEY) ## keep the pocket cascade running, with console, labels and monitors; prints a curl line to try
	@echo 'the admin key stands in $(KEY)'
	$(BIN)/confgate serve --config deploy/pocket/live.yaml

$(KEY): | $(VENV)/bin/python
	@mkdir -p $(@D)
	@umask 077 && $(BIN)/python -c 'import secrets; print(secrets.token_hex(16))' > $@

test: $(VENV)/.test ## the whole suite
	$(BIN)/python -m pytest

test-clients: $(VENV)/.test ## foreign clients, each in an environment of its own; CLIENTS="langchain litellm" for some
	TORCH='$(TORCH)' $(BIN)/python tests/clients/run.py $(CLIENTS)

lint: $(VENV)/.test ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pocket: $(VENV)/.test ## ask the shipped models anew and rebuild all figures and artefacts (about 20 minutes)
	$(BIN)/confgate collect -c $(POCKET) --split calibration --n 1500 --out runs/pocket/calibration
	$(BIN)/confgate collect -c $(POCKET) --split validation --n 1000 --out runs/pocket/validation
	$(BIN)/confgate collect -c $(POCKET) --split test --n 1000 --out runs/pocket/test
	$(BIN)/confgate collect -c $(POCKET) --split $(SHIFTS) --n 300 --out runs/pocket/shifted
	$(BIN)/python -m eval.pocket.card runs/pocket/test runs/pocket/shifted
	$(BIN)/confgate fit -r runs/pocket/calibration --no-expiry --out deploy/pocket/calibrators
	for k in 16 24 32 48 64; do $(BIN)/confgate fit -r runs/pocket/calibration --no-expiry --prefix $$k \
	  --tiers pocket-nano,pocket-micro,pocket-small --out runs/pocket/first-tokens || exit 1; done
	cp runs/pocket/first-tokens/*-prefix-64.json deploy/pocket/calibrators/
	$(BIN)/confgate sweep -r runs/pocket/validation -r runs/pocket/test -c $(POCKET) \
	  --choose-on validation --test-on test --write $(POCKET) --policy parity | tee docs/results/pocket-sweep.txt
	$(BIN)/python -m eval.stream_study -c $(POCKET) --calibrators runs/pocket/first-tokens \
	  --choose-on runs/pocket/validation --test-on runs/pocket/test --live 100 --out docs/results/streams.md
	$(BIN)/confgate monitors -c $(POCKET) -r runs/pocket/validation -r runs/pocket/test -r runs/pocket/shifted \
	  --prompt-tokens 70 --out docs/results/monitors.md --write deploy/pocket/reference.npz
	$(BIN)/confgate report -r runs/pocket/validation -r runs/pocket/test -c $(POCKET) \
	  --choose-on validation --test-on test --out docs/results/pocket-report
	$(BIN)/confgate objectives -r runs/pocket/calibration -r runs/pocket/test -r runs/pocket/shifted --out docs/results
	$(BIN)/confgate card -c $(POCKET) -r runs/pocket/test -r runs/pocket/shifted --out docs/results/pocket-card

rehearsal: $(VENV)/.test ## the commands of docs/gsm8k.md against stand-ins for the six model servers (minutes)
	$(BIN)/python -m pytest tests/eval/test_rehearsal.py -m rehearsal

# Ray and what it brings live in an environment of their own. On a machine whose cores are all busy its nodes do not start.
test-cluster: ## collect on a Ray cluster of two nodes and kill one
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install -q -e '.[cli,calibrate,eval,ray]' pytest pytest-timeout hypothesis
	.venv-cluster/bin/python -m pytest tests/cluster

bench: $(VENV)/.test .bench/.done ## what a decision costs beside other gateways (10 minutes, 1 GB; writes docs/results/bench.md)
	$(BIN)/python -m tests.bench.bench --peers .bench --out docs/results

bench-instructions: $(VENV)/.test ## the same in instructions, which a busy machine does not change (five minutes; needs valgrind)
	$(BIN)/python -m tests.bench.instructions --out docs/results

bench-offline: $(VENV)/.test ## how fast fits, predictions, grades and sweeps are (half a minute; writes docs/results/offline.md)
	$(BIN)/python -m tests.bench.offline --out docs/results

SOAK_SECONDS ?= 600
soak: $(VENV)/.test ## ten minutes of flapping upstreams and clients who leave (SOAK_SECONDS=... for another time)
	$(BIN)/python -m tests.soak.soak --seconds $(SOAK_SECONDS)

drill: $(VENV)/.test ## a calibrator is replaced under load, and a bad one rolled back; exits with 1 when a step fails (minutes)
	$(BIN)/python -m tests.drill.drill

pictures: $(VENV)/.test ## the console's pictures in docs/, of a pocket gateway that answers 300 questions (Chromium; minutes)
	$(BIN)/python -m tests.console.picture

lock: $(VENV)/.test ## resolve the test environment anew and pin it with hashes
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q pyproject.toml requirements/torch.in --override requirements/without-torch.txt $(LOCKED) \
	  --generate-hashes --python-version 3.11 --universal --no-header --no-emit-index-url --output-file requirements/test.lock
	$(BIN)/uv pip compile -q pyproject.toml requirements/serve.in --constraint requirements/test.lock --no-annotate \
	  --generate-hashes --python-version 3.11 --universal --no-header --no-emit-index-url --output-file requirements/serve.lock

sbom: requirements/serve.lock ## list what serving is made of as CycloneDX (requirements/sbom.json)
	$(PYTHON) -m venv $(VENV)-sbom
	$(VENV)-sbom/bin/python -m pip install -q 'cyclonedx-bom>=7,<8'
	$(VENV)-sbom/bin/cyclonedx-py requirements requirements/serve.lock --pyproject pyproject.toml --short-PURLs \
	  --index-url https://pypi.org/simple --output-reproducible --output-file requirements/sbom.json
	rm -rf $(VENV)-sbom

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# PyTorch goes in by its exact version: left to itself pip takes a build with gigabytes of CUDA libraries.
$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e '.[cli,calibrate,eval,local,demo]'
	@touch $@

$(VENV)/.test: pyproject.toml requirements/test.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --require-hashes -r requirements/test.lock
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@ $(VENV)/.run

# The others have an environment of their own: what they bring shall never be beside what we serve with.
.bench/.done: tests/bench/requirements.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install -q -r tests/bench/requirements.txt
	@touch $@

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .venv-cluster .bench .clients .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis .import_linter_cache *.egg-info
