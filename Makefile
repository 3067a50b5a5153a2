# make test, make quickstart: both create .venv, install into it what constraints.txt pins, and run.
# Written for GNU make 3.81 (macOS) and later.

PYTHON ?= python3
VENV ?= .venv
# Not in .venv: it is built from source, and needs what others do not.
ZERO := $(VENV)-deepspeed
# Overrides for `make quickstart`: make quickstart ARGS="training.num_train_epochs=1"
ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4
# Trials of each kind of `make campaign`
TRIALS ?= 20
# What `make bench` runs, for instance make bench BENCH="loss --rounds 3"; with QUICK=1 tiny sizes, into build/
BENCH ?= loss step classification epochs teacher growth
QUICK ?=
# Rows of `make results`, for instance make results ROW=topics/kl, ROW=topics or ROW=sweep/size; all that are missing without it
ROW ?=
# make release VERSION=0.2.0; with COMMIT=1 it commits and makes the tag
VERSION ?=
COMMIT ?=
UV ?= uv

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# There while pip installs: an environment that an interruption left half-filled is made anew.
UNFINISHED := $(VENV)/.unfinished
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One process with all cores, on a machine with GPUs the first of them. Quiet: no traceback of the launcher's own below
# the line that says what is wrong.
LAUNCH := $(BIN)/accelerate launch --quiet --config_file recipes/accelerate/one_process.yaml \
	$(if $(CUDA_VISIBLE_DEVICES),,--gpu_ids 0)
THREADS := $(BIN)/python -c "import torch; print(torch.get_num_threads())"

# The interpreter an old environment was made with may be gone.
ifeq ($(wildcard $(BIN)/python),)
$(shell rm -f $(STAMP))
endif

.PHONY: help install docs test check slow engines parity campaign bench results quickstart examples pictures schema format resolve release clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' Makefile

install: $(STAMP)  ## create .venv and install everything into it

docs: $(STAMP)  ## the site of the documents, into build/docs; fails on a dead link, a page nobody links, a name without docstring
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

test: check  ## ruff, mypy and the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP)  ## ruff, mypy, and which way imports run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-cache

slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

engines: $(STAMP)  ## the tests with DeepSpeed, in an environment of its own that sees the packages of .venv
	$(BIN)/python -m venv --upgrade $(ZERO)
	$(BIN)/python -c "import sysconfig as s; print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
		> $$($(ZERO)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/packages.pth
	$(ZERO)/bin/python -m pip --disable-pip-version-check install -c constraints.txt setuptools wheel hjson einops msgpack ninja py-cpuinfo
	DS_BUILD_OPS=0 $(ZERO)/bin/python -m pip --disable-pip-version-check install --no-build-isolation --no-deps \
		-c constraints.txt deepspeed
	OMP_NUM_THREADS=1 $(ZERO)/bin/python -m pytest -m deepspeed

parity: $(STAMP)  ## loss, gradient, weights and evaluation under every engine beside one process: a table (minutes)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m invariants.engine_table

campaign: $(STAMP)  ## kills, damaged files, power cuts, full disks, 50,000 made-up inputs; what became of each (two hours)
	CAMPAIGN=$(TRIALS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -q tests/campaign

bench: $(STAMP)  ## what a step costs here and elsewhere, into benchmarks/results (hours; QUICK=1: minutes)
	$(BIN)/python -m benchmarks.run $(BENCH) $(if $(QUICK),--quick --into build/benchmarks)

results: $(STAMP)  ## train what is missing of the tables and sweeps of docs/results.md, and write them there (hours; ROW=topics/kl: one row)
	$(BIN)/python -m benchmarks.quality $(ROW)

quickstart: $(STAMP)  ## fetch a real model and real data, distil, report (about 5 minutes on 2 cores)
	$(BIN)/python scripts/fetch_quickstart.py
	$(LAUNCH) --num_cpu_threads_per_process $$($(THREADS)) scripts/distill.py recipes/quickstart.yaml $(ARGS)

examples: $(STAMP)  ## execute the notebooks of examples/ on real data, and write their outputs into them (minutes)
	$(BIN)/python scripts/fetch_quickstart.py
	@test -f outputs/quickstart/report.json || $(MAKE) quickstart
	$(BIN)/python scripts/run_notebooks.py

pictures: $(STAMP)  ## draw docs/pictures anew from what `make quickstart` left in outputs/quickstart
	$(BIN)/python scripts/make_pictures.py

schema: $(STAMP)  ## write recipes/recipe.schema.json and the tables of docs/ anew
	$(BIN)/python -m hf_distill.recipe.json_schema
	$(BIN)/python -m hf_distill.recipe.docs_tables

format: $(STAMP)  ## format, and repair what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

resolve:  ## whether the exact versions go together on every Python (needs uv and the network, installs nothing)
	@for python in 3.10 3.11 3.12 3.13; do \
		$(UV) pip compile -q pyproject.toml --extra dev --python-version $$python -c constraints.txt -o /dev/null \
		&& echo "Python $$python: constraints.txt goes together" || exit 1; done

release: $(STAMP)  ## changelog, version and CITATION.cff to VERSION; wheel and sdist into dist/, checked (COMMIT=1: commit and tag)
	@$(BIN)/python scripts/release.py $(if $(VERSION),$(VERSION),$(error which one? make release VERSION=0.2.0)) $(if $(COMMIT),--commit)

clean:  ## remove caches and build products; .venv, data and outputs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find hf_distill tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "hf_distill needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
		"Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(UNFINISHED)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
	@rm -f $(UNFINISHED)
