# make train   set up and train on drawn faces      make test   set up and test
# make slow    the long tests                       make check  lint, types, known holes in packages, secrets
# make scorecard   kills, failing disks, strangers' files: the figures of trust, half an hour
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: train test slow scorecard check setup
train: setup
	$(BIN)/python train.py experiment=quickstart

test: setup
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow

scorecard: setup
	$(BIN)/python -m pytest -m scorecard

check: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-lines 'fingerprint|identity'
	$(BIN)/pip-audit --skip-editable --progress-spinner off

setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
