# One command for each thing; `make help` lists them. Everything is installed into .venv, nothing needs root.

PYTHON ?= python3
RANKS ?= 4
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
# which measure, or whose ranks outnumber the cores by far
ALONE := tests/comm tests/benchmarks/test_chaos.py tests/mpi/test_pooling.py tests/mpi/test_server.py \
  tests/mpi/test_equal_to_one_rank.py
LONG := tests/envs/test_atari.py tests/trajectories/test_docs_trajectories.py tests/run/test_command.py # first: no long tail
JOBS := tests/mpi tests/slurm # which wait for a third of their time: three at a time, the long ones first
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help install install-test train test check docs format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "RANKS=4    how many ranks make train starts, the server included"
	@echo "ARGS=...   flags for make train and make test: make train ARGS='--env Hopper-v5 --seed 1'"
	@echo "PYTHON=... the Python that .venv is made with, 3.11 or newer"

install: $(INSTALLED) ## make .venv with dppo and an MPI in it

install-test: $(INSTALLED_TEST) ## the same, with what tests and checks need

train: install ## train on RANKS ranks; CartPole-v1 unless ARGS says otherwise
	$(BIN)/mpirun --with-ft ulfm -n $(RANKS) $(BIN)/python -m dppo.run $(ARGS)

# Compiled first: where PYTHONDONTWRITEBYTECODE is set, every rank would compile all that it imports.
test: install-test ## run the tests; a part of them with ARGS=tests/algo
	$(BIN)/python -m compileall -q dppo tests
ifneq ($(ARGS),)
	$(BIN)/python -m pytest -q $(ARGS)
else
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%) $(JOBS:%=--ignore=%) $(LONG) tests
	$(BIN)/python -m pytest -q $(ALONE)
	$(BIN)/python -m pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%) $(JOBS)
endif

check: install-test ## check format, lint and types
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy dppo

docs: install-test ## build the documentation site in build/docs; each warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -j 2 -b html -c docs . build/docs

format: install-test ## rewrite the files in our format, and repair lint where that is safe
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name $(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/pip:
	scripts/venv $(PYTHON) $(VENV)

# pip is always run as a module: the scripts in .venv/bin hold absolute paths and would break in a moved tree.
$(INSTALLED): setup.cfg setup.py dppo/algo/kernels.c pyproject.toml constraints.txt Makefile scripts/mpirun | $(BIN)/pip
	$(PIP_INSTALL) -e '.[mpi]'
	install -m 755 scripts/mpirun $(BIN)/mpirun
	touch $@

$(INSTALLED_TEST): $(INSTALLED)
	$(PIP_INSTALL) -e '.[mpi,test]'
	touch $@
