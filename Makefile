# GNU make and Python >= 3.11 are all that this presumes, but for faults and soak (docs/reliability.md); no target needs an activated environment.
#   make PYTHON=/usr/bin/python3.12 setup    another interpreter for .venv (the default is python3)
#   make demo POSTS=posts.txt                your own posts, one a line
#   make bench BENCH=pipeline                one benchmark of bench/ by name

PYTHON ?= python3
BENCH ?= pipeline
ONLY ?=
SEED ?=
POSTS ?=
MINUTES ?= 60

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := schemas/public.proto schemas/internal.proto
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := check
.NOTPARALLEL:
.PHONY: help setup check lint types fast format test demo bench faults soak proto constraints clean

check: lint types fast ## the fast checks: format, lint, types, and the tests that need no broker (bare `make`)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## create .venv with the manyray command in it; does nothing when it is up to date

# One pip call for everything: faust-streaming caps click, and only a resolver that sees all of it gets that right.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: no $(PYTHON) here: install Python 3.11 or later, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Manyray needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1): install one, or name it: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "make: $(PYTHON) cannot create $(VENV): on Debian and Ubuntu install the package python3-venv, elsewhere Python's venv and ensurepip" >&2; exit 1; }
	@echo "installing into $(VENV); the first time takes a few minutes (torch is large)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

lint: $(STAMP) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## pyright, strict
	$(BIN)/pyright

fast: $(STAMP) ## the tests that need no broker
	$(PYTEST) -m "not broker"

format: $(STAMP) ## rewrite the code in the project's format, and fix what lint can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Three files at a time, as tests of pipelines mostly wait; each of the three processes has a broker of its own.
test: lint types ## everything: lint, types and all tests, those on real Kafka too
	$(PYTEST) --numprocesses 3 --durations 12 --dist loadfile --no-loadscope-reorder

demo: $(STAMP) ## the whole pipeline on this machine, live, with a summary [POSTS=file]
	@$(BIN)/manyray demo $(if $(POSTS),--posts '$(POSTS)')

bench: $(STAMP) ## a benchmark with its baseline in the same run [BENCH=name]
	@$(BIN)/python -m bench.$(BENCH)

faults: $(STAMP) ## every fault three times, into docs/reliability.md: hours [ONLY=name] [SEED=number]
	@$(BIN)/python -m faults --report docs/reliability.md $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED))

soak: $(STAMP) ## everything fails together for an hour, into docs/reliability.md [MINUTES=60] [SEED=number]
	@$(BIN)/python -m faults.soak --report docs/reliability.md --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

proto: $(STAMP) ## regenerate schemas/*_pb2.py from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(PROTOS)

# Resolved afresh and without installing, so that nothing that merely lies in .venv is pinned.
constraints: $(STAMP) ## renew constraints.txt: the newest versions that pyproject.toml allows
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --dry-run --ignore-installed --report build/resolved.json '.[dev]'
	@{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/python -c 'import json, re; \
	  found = [item["metadata"] for item in json.load(open("build/resolved.json"))["install"]]; \
	  pins = {re.sub("[-_.]+", "-", item["name"]).lower(): item["version"] for item in found}; \
	  print("\n".join(f"{name}=={pins[name]}" for name in sorted(pins.keys() - {"manyray", "setuptools"})))'; \
	} > build/constraints.txt
	@mv build/constraints.txt constraints.txt

clean: ## remove caches and build outputs (.venv and manyray-data stay)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name .venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
