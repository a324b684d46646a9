# make demo      both built-in problems, from training the models to the report
# make test      the tests
# make check     lint, types and import layers
# make install   the environment (.venv) that all of these use; made when it is missing or out of date
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check lint types layers install format clean

demo: install
	$(BIN)/forget demo --out runs/demo

test: install
	$(BIN)/python -m pytest -m "not slow"

test-all: install
	$(BIN)/python -m pytest

check: lint types layers

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,gguf]"
	touch $@

clean:
	rm -rf .venv runs build dist src/*.egg-info
