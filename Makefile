# Every target sets up .venv first when it is missing or older than pyproject.toml.
# GPU=1 make setup: a CUDA install (the fbgemm shim is left out), which the other targets then use.

GPU ?= $(wildcard .venv/.ready-gpu)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready-$(if $(GPU),gpu,cpu)
SHIM := $(if $(GPU),,./docker/fbgemm-shim)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: setup demo test test-slow lint format

setup: $(READY)

$(READY): pyproject.toml docker/fbgemm-shim/pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet torch==2.13.0 $(SHIM) torchrec==1.8.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip check
	touch $@

demo: $(READY)
	$(BIN)/ctrkit quickstart

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
