# Everything a person types here; `.ci/run` types the same.
#
#   make demo                 the whole system on this machine, until Ctrl-C
#   make demo SECONDS=60      the same for a minute, then a summary and a verdict
#   make test                 every test, those with the real Kafka included
#   make check                format, lint, import contracts, types
#   make pins [UPGRADE=1]     pin what pyproject.toml asks for now, or the newest of everything; commit the result
#   make clean                back to a fresh clone
#
# Variables:
#   PYTHON=python3.12         the interpreter of the virtual environment (3.11 or newer)
#   TORCH=cpu                 the small torch for machines without a GPU: uv knows where it is published
#   TESTS=tests/stream        only these tests
#
# Packages come from wherever pip or uv is configured to look (PIP_*, UV_*, pip.conf); no address stands in this project.

PYTHON ?= python3
TORCH ?=
SECONDS ?=
TESTS ?=
UPGRADE ?=

venv := .venv
bin := $(venv)/bin
inputs := pyproject.toml requirements/pins.txt requirements/install.py
code := stream model trainer deploy benchmarks

.PHONY: help demo test check pins clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//; /^Packages/q; 2,$$p' Makefile

# `exec`: the shell makes way, so that Ctrl-C and SIGTERM reach the supervisor itself.
demo: $(venv)/.demo
	@exec $(bin)/sasrec-stream up --demo $(if $(SECONDS),--seconds $(SECONDS))

test: $(venv)/.tests
	$(bin)/pytest $(TESTS)

check: $(venv)/.tests
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/lint-imports
	$(bin)/mypy $(code) tests

# Every dependency of every extra, for every platform and Python, each at one version.
pins: $(venv)/.tests
	$(bin)/uv pip compile pyproject.toml requirements/tools.in --all-extras --universal --python-version 3.11 \
		$(if $(UPGRADE),--upgrade) --quiet --no-annotate --no-header --output-file requirements/pins.txt

clean:
	-@test ! -x $(bin)/sasrec-stream || $(bin)/sasrec-stream kafka stop
	rm -rf $(venv) .run .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
	find $(code) tests -name __pycache__ -prune -exec rm -rf {} +

# What is installed is noted in empty files, so that nothing is done again before its inputs change.
$(venv)/.demo: $(inputs) | $(bin)/python
	TORCH=$(TORCH) $(bin)/python requirements/install.py .[local-kafka,http]
	@touch $@

$(venv)/.tests: $(inputs) | $(bin)/python
	TORCH=$(TORCH) $(bin)/python requirements/install.py .[local-kafka,http,schema-registry,dev]
	@touch $@ $(venv)/.demo

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(venv)
