# Every target sets up what it needs. PYTHON is only used to make .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=

.PHONY: setup demo up test chaos chaos-mutants check bench bench-index ablations lock pythons clean help

help:  ## Show this.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

# What runs is installed from one lock, what tests it from another: a wheel that only tests need stops no user.
$(VENV)/.runtime: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "revln needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

$(VENV)/.installed: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements-dev.lock
	touch $@

setup: $(VENV)/.installed  ## Make .venv with everything in it, the tests' tools too.

demo: $(VENV)/.runtime  ## Run the main job on sample photographs (IMAGES=folder for yours) and write demo.html.
	$(BIN)/revln demo --embedded --out demo.html $(if $(IMAGES),--images "$(IMAGES)")

up: $(VENV)/.runtime  ## Run everything on this machine, data in ./revln-data.
	$(BIN)/revln up

.PHONY: test-fast
PROCESSES := --numprocesses auto --maxprocesses 4

test: setup  ## Run all tests.
	$(BIN)/python -m pytest $(PROCESSES)

test-fast: setup  ## Run the tests that start no worker, on SQLite alone.
	TEST_DATABASES=sqlite $(BIN)/python -m pytest $(PROCESSES) -m "not slow" tests/unit tests/properties tests/contract

chaos: setup  ## Break revln in every way of docs/chaos.md (SEED=1 ONLY=1,7 SET="jobs=100 7.rounds=2"); over two hours.
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(DATABASE),--database $(DATABASE)) $(addprefix --set ,$(SET))

chaos-mutants: setup  ## Take mechanisms out of a copy, one by one: the experiments must see it; about ten minutes.
	$(BIN)/python -m tests.chaos.mutants

check: setup  ## Lint, format check, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## Print the benchmark: each figure beside something bare, run in the same minute; some minutes.
	$(BIN)/python -m bench

ablations: setup  ## Train briefly without one part of revln-tiny at a time (over an hour; needs the data; OPTIONS=--bf16).
	$(BIN)/python -m bench.ablations -- --cache runs/cache $(OPTIONS)

bench-index: setup  ## Its part about a large collection alone (OPTIONS="--rows 100000 --types ivf,hnsw,ivfpq,flat").
	$(BIN)/python -m bench.index $(OPTIONS)

# Of every Python from 3.11 on: where one version of a package serves them all there is one, else one for each.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url
UPGRADE ?= --upgrade

lock: setup  ## Pin every dependency anew, with hashes and without the address of any index (UPGRADE= keeps versions).
	$(COMPILE) $(UPGRADE) --all-extras pyproject.toml --output-file requirements.lock
	$(COMPILE) $(UPGRADE) --group dev --constraint requirements.lock --output-file requirements-dev.lock

PYTHONS ?= $(foreach minor,11 12 13 14,$(shell command -v python3.$(minor)))

pythons:  ## Install requirements.lock and run the demonstration with each Python from 3.11 on that is here (PYTHONS="…").
	@for python in $(PYTHONS); do \
		$$python --version && $(MAKE) --no-print-directory demo PYTHON=$$python \
			VENV=.scratch/venv-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
	done

clean:  ## Remove what the other targets made; data folders stay.
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist *.egg-info demo.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
