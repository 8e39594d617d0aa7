# One door for users and developers. Every target works alone on a fresh clone with Python 3.11+, pip and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check smoke format clean

# torch comes first and alone, in the tested version: what follows then finds it and brings no other build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed  ## the main job, end to end, on the CPU: open runs/quickstart/report.html
	$(BIN)/medmvl quickstart

test: $(VENV)/.installed  ## the test suite, offline, on the CPU
	$(BIN)/python -m pytest

check: $(VENV)/.installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

smoke: $(VENV)/.installed  ## the smallest full path: train the tiny recipe
	rm -rf runs/tiny
	$(BIN)/medmvl train recipes/tiny.yaml --out runs/tiny

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
