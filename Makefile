# One door for users and developers. Every target works alone on a fresh clone with Python 3.11+, pip and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check docs audit smoke format clean

# torch comes first and alone, in the tested version: what follows then finds it and brings no other build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed  ## the main job, end to end, on the CPU: open runs/quickstart/report.html
	$(BIN)/medmvl quickstart

test: $(VENV)/.installed  ## the test suite, offline, on the CPU
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## the docs site in site/: open site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

audit:  ## known vulnerabilities of the tested versions of all dependencies; needs a network
	test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit)
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

smoke: $(VENV)/.installed  ## the smallest full path: train the tiny recipe
	rm -rf runs/tiny
	$(BIN)/medmvl train recipes/tiny.yaml --out runs/tiny

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-audit runs build dist site .cache .pytest_cache .mypy_cache .ruff_cache
