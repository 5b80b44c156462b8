# make train   set up and train on drawn faces      make test   set up and test
# make slow    the long tests as well               make check  lint and types
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: train test slow check setup
train: setup
	$(BIN)/python train.py experiment=quickstart

test: setup
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
