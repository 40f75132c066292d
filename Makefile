# make demo | make test | make check | make bench | make run | sudo make install
VENV ?= .venv
PYTHON ?= python3
STAMP := $(VENV)/.installed
# Where `make install` puts the program. The unit names it: another PREFIX needs another ExecStart.
PREFIX ?= /opt/zemosaicd
CONFIG := /etc/zemosaicd.toml

.PHONY: demo test check bench run install install-program install-service uninstall catalogue clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## a simulated night of a real patch of sky becomes a mosaic
	$(VENV)/bin/zemosaicd demo

test: $(STAMP)  ## the whole test suite
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(STAMP)  ## style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Peers are measured where they are there: siril-cli, SWarp, Montage; REPROJECT_PYTHON names a Python with reproject.
bench: $(STAMP)  ## speed, memory and quality, beside the programs that people use (about half an hour)
	$(VENV)/bin/python benchmarks/bench_stars.py
	$(VENV)/bin/python benchmarks/bench_kernels.py
	$(VENV)/bin/python benchmarks/bench_registration.py
	$(VENV)/bin/python benchmarks/bench_process.py 1 50 200 1000
	$(VENV)/bin/python benchmarks/bench_mosaic.py 2
	$(VENV)/bin/python benchmarks/bench_mosaic.py 4 1
	$(VENV)/bin/python benchmarks/bench_area.py
	$(VENV)/bin/python benchmarks/bench_limit.py

run: $(STAMP)  ## the daemon, in this folder
	$(VENV)/bin/zemosaicd run --config zemosaicd.toml

install: install-program install-service  ## as a systemd service (as root); systemd/README.md says what comes next

# The unit's sandbox hides all homes, and an interpreter that lies in one.
install-program:
	@$(PYTHON) -c 'import sys; at = sys.base_prefix; sys.exit(at.startswith(("/home/", "/root/")) and \
		at + " lies in a home: name another Python, such as PYTHON=/usr/bin/python3")'
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/python -m pip install --quiet .

install-service: $(CONFIG)  ## user, folders, unit and configuration, for a program that is already there
	install -D -m 644 systemd/zemosaicd.sysusers /etc/sysusers.d/zemosaicd.conf
	install -D -m 644 systemd/zemosaicd.tmpfiles /etc/tmpfiles.d/zemosaicd.conf
	install -D -m 644 systemd/zemosaicd.service /etc/systemd/system/zemosaicd.service
	systemd-sysusers zemosaicd.conf
	systemd-tmpfiles --create zemosaicd.conf
	systemctl daemon-reload

# Only where there is none yet: a configuration is never overwritten.
$(CONFIG):
	install -m 644 zemosaicd.toml $@.new
	$(PREFIX)/bin/zemosaicd config set --config $@.new paths.incoming '["/srv/zemosaicd/incoming"]'
	$(PREFIX)/bin/zemosaicd config set --config $@.new paths.output /srv/zemosaicd/output
	$(PREFIX)/bin/zemosaicd config set --config $@.new paths.state /var/lib/zemosaicd/state
	mv $@.new $@

uninstall:  ## the program and its unit; frames, mosaics, state, configuration and user stay
	-systemctl disable --now zemosaicd
	rm -f /etc/sysusers.d/zemosaicd.conf /etc/tmpfiles.d/zemosaicd.conf /etc/systemd/system/zemosaicd.service
	rm -rf $(PREFIX)
	systemctl daemon-reload

catalogue:  ## rebuild the shipped star catalogue from Debian's package astrometry-data-tycho2-07
	$(VENV)/bin/python scripts/build_catalogue.py

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
