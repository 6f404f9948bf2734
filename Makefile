# `make quickstart` and `make test` set everything up on a fresh machine; a second run installs nothing.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart atlas test lint bench fuzz audit clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.standard  ## study real encoders on real data: verdicts, report, MLflow
	$(BIN)/tsprobe run configs/quickstart.yaml

atlas: $(VENV)/.dev  ## studies and alignments of all shipped encoders; an hour or two; rewrites docs/ATLAS.md
	$(BIN)/tsprobe atlas configs/atlas.yaml --document docs/ATLAS.md

test: $(VENV)/.dev lint  ## the whole check: style, types, import directions, tests (JOBS processes)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: $(VENV)/.dev  ## all benchmarks for the CPU, one after the other; rewrites benchmarks/results
	for name in compiled pooling extraction probes ridge_statistics study_cpu sweep; do $(BIN)/python benchmarks/$$name.py || exit 1; done

fuzz: $(VENV)/.dev  ## two minutes of processor time for each reader of files, over an hour in all; see SECURITY.md
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds 120

audit:  ## known vulnerabilities of the pinned packages; asks PyPI, and fails where that says nothing of one
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.standard: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.standard

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
