# The verbs of the project; `make` alone explains them. Everything runs in .venv, which the first verb makes.

PYTHON := $(firstword $(shell for p in python3.11 python3.12 python3; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p; done))
READY := .venv/.ready
RUN := .venv/bin/python

help:
	@echo 'make demo     the whole loop on real servers, from an empty machine to recommendations; ends by itself'
	@echo 'make up       start Kafka, Cassandra and the job, and leave them running'
	@echo 'make status   what runs, and where to look'
	@echo 'make down     stop it; the data stays (python -m deploy.local down --wipe removes it)'
	@echo 'make test     style, types, and every test on real servers of its own'
	@echo 'make faults   every fault on real servers: processes, disks, networks, clocks; a table (an hour)'
	@echo 'make check    style and types'
	@echo 'make bench    every benchmark beside its peers, on real servers of its own: tables, JSON, plots'
	@echo 'make bench-quick  the main ones, in some minutes'
	@echo
	@echo 'Needed: Python 3.11 or 3.12, a JDK 17, Maven, 10 GB of disk. The first call makes .venv (minutes).'

# The lock names every package with its digest, so this machine gets what every other one got.
$(READY): requirements.lock
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 or 3.12 was found; install one of them' >&2; exit 4; }
	@echo 'making .venv with $(PYTHON): some minutes, 7 GB'
	@$(PYTHON) -m venv --clear .venv || \
	    { echo 'error: $(PYTHON) makes no virtual environment; install its venv module' >&2; exit 4; }
	$(RUN) -m pip install --quiet --require-hashes -r requirements.lock
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@# Seconds now, which the first micro-batch, test or command would wait for.
	@$(RUN) -c 'from schemas import features; from streaming import stamps; from schemas.compiled import prepare; prepare()'
	@touch $@

demo up status down: $(READY)
	@$(RUN) -m deploy.local $@

test: check
	@$(RUN) -m pytest -m 'not long'

faults: $(READY)
	@KEEP_FAULT_TABLE=yes $(RUN) -m pytest tests/faults tests/flow/test_secure.py

check: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

bench: $(READY)
	@$(RUN) -m tests.bench all

bench-quick: $(READY)
	@$(RUN) -m tests.bench all --quick

.PHONY: help demo up status down test faults check bench bench-quick
