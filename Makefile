# make demo | make test | make check | make run
VENV ?= .venv
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: demo test check run catalogue clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## a simulated night of a real patch of sky becomes a mosaic
	$(VENV)/bin/zemosaicd demo

test: $(STAMP)  ## the whole test suite
	$(VENV)/bin/python -m pytest

check: $(STAMP)  ## style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

run: $(STAMP)  ## the daemon, in this folder
	$(VENV)/bin/zemosaicd run --config zemosaicd.toml

catalogue:  ## rebuild the shipped star catalogue from Debian's package astrometry-data-tycho2-07
	$(VENV)/bin/python scripts/build_catalogue.py

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
