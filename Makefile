# make train      set up, train on synthetic faces, evaluate
# make test       set up, run the tests
# make slow       the long tests: minutes of training, TensorBoard, a browser
# make scorecard  kills, full disks, damaged files: the table of docs/trust.md; about 22 minutes
# make check      lint, types, known holes in packages, secrets
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: train test slow scorecard check setup
train: setup
	$(BIN)/python train.py experiment=quickstart

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: setup
	$(BIN)/python -m pytest -m slow

scorecard: setup
	$(BIN)/python -m pytest -m scorecard -n 2 --dist worksteal

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
