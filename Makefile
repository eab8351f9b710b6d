# Two commands on a fresh clone: `make train` trains a network, `make test` runs the tests.
VENV := .venv
BIN := $(VENV)/bin
# MXNet 1.9.1 works with these; the first one present makes the environment. Override with `make PYTHON=...`.
CANDIDATES := python3.11 python3.10 python3.12 python3.9 python3.8 python3 python
PYTHON := $(shell for name in $(CANDIDATES); do \
	if $$name -c 'import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 13))' 2>/dev/null; \
	then echo $$name; break; fi; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: train test lint types build clean

train: $(VENV)/trains
	$(BIN)/gluon-aa train --config cpu/digits $(FLAGS)

test: $(VENV)/tests
	$(BIN)/tox run -m test
	$(BIN)/tox run -m check

lint types: $(VENV)/tests
	$(BIN)/tox run -e $@

build: $(VENV)/tests
	$(PIP) install --quiet --constraint constraints.txt build
	$(BIN)/python -m build

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo 'No Python 3.8 to 3.12 found (tried $(CANDIDATES)): install one, or say make PYTHON=...'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/trains: $(VENV)/bin/python setup.cfg constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

$(VENV)/tests: $(VENV)/bin/python constraints.txt
	$(PIP) install --quiet --constraint constraints.txt tox virtualenv
	touch $@

clean:
	rm -rf $(VENV) .tox build dist *.egg-info
