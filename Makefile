# Every target works in .venv, which is made here on first use; no other environment is read.
# Needed beforehand: Python 3.11 or newer with venv and pip, and make.

PYTHON = $(shell command -v python3 || command -v python3.11)
BIN = .venv/bin
GPU_PYTHON = .venv-gpu/bin/python
SPHINX = $(BIN)/python -m sphinx -E -W -n --keep-going
ARGS =

unexport VIRTUAL_ENV
unexport PYTHONPATH
unexport PYTHONHOME
unexport MYPYPATH

.DEFAULT_GOAL = help
.PHONY: help demo test test-oldest newcomer lint docs screens bench bench-quick reproduce gpu clean

help:
	@echo 'make demo   optimize the latent codes of a small equilibrium decoder, write pictures'
	@echo 'make test   lint, then all tests'
	@echo 'make test-oldest  some tests, on the oldest releases that are supported'
	@echo 'make newcomer  the first hour of someone new: wheel, installation, README, messages'
	@echo 'make lint   style, types and the import contracts'
	@echo 'make docs   the documentation, and its examples'
	@echo 'make screens  every page of it in a browser, wide and narrow: needs Chromium'
	@echo 'make bench  the benchmarks'
	@echo 'make bench-quick  the overhead alone, beside what was recorded'
	@echo "make reproduce  the paper on real data, in hours; ARGS='--data FOLDER'"
	@echo 'make gpu    the tests and benchmarks that need a GPU, in an environment of their own'
	@echo 'make clean  remove what these targets made, .venv included'
	@echo "ARGS='...' is passed on by demo, test, test-oldest, bench, reproduce and gpu."

.venv/.made:
	@echo 'making .venv'
	@$(PYTHON) -m venv .venv
	@touch $@

# What a target needs, and not what the others do.
.venv/.demo: EXTRAS = models
.venv/.ready: EXTRAS = all,test
.venv/.docs: EXTRAS = all,docs
.venv/.bench: EXTRAS = all,bench
.venv/.demo .venv/.ready .venv/.docs .venv/.bench: .venv/.made pyproject.toml constraints.txt
	@echo 'installing fixedpoint-solvers[$(EXTRAS)] in .venv: minutes, the first time'
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# The compiled steps, where there is a compiler: all works without them, and more slowly.
.venv/.native: .venv/.made $(shell find backends/native -type f -not -path '*/__pycache__/*')
	@if command -v c++ > /dev/null && $(BIN)/pip install -q --no-deps ./backends/native; \
	then echo 'compiled steps: installed'; else echo 'compiled steps: left out'; fi
	@touch $@

demo: .venv/.demo
	@$(BIN)/python -m fixedpoint_models demo $(ARGS)

test: lint .venv/.ready .venv/.native
	$(BIN)/python -m pytest -n auto $(ARGS)

# TORCH='torch==...' chooses that of Torch too: it is what pip is given for it.
test-oldest:
	$(PYTHON) tests/oldest.py .venv-oldest -n auto $(ARGS)

# PYTHONS='python3.12 python3.13' names other interpreters.
newcomer:
	$(PYTHON) tests/newcomer.py $(PYTHONS)

lint: .venv/.ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

docs: .venv/.docs
	$(SPHINX) -b html docs docs/_build/html
	$(SPHINX) -b doctest docs docs/_build/doctest

# Needs Chromium, which pip does not have.
screens: docs
	@$(BIN)/pip install -q --disable-pip-version-check playwright
	$(BIN)/python docs/screens.py docs/_build/html $(ARGS)

bench: .venv/.bench .venv/.native
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/input_optimization.py
	$(BIN)/python benchmarks/tolerance.py
	$(BIN)/python benchmarks/robustness.py $(ARGS)

bench-quick: .venv/.bench .venv/.native
	$(BIN)/python benchmarks/run.py --quick

reproduce: .venv/.bench .venv/.native
	$(BIN)/python benchmarks/reproduce.py $(ARGS)
	$(BIN)/python benchmarks/pictures.py

# Without the pins: the plain name of Torch stands for its CUDA build. GPU_PYTHON names another
# environment, which must have all that is installed here.
.venv-gpu/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install -e '.[all,test,bench]' 'jax[cuda12]'
	touch $@

gpu: $(if $(filter .venv-gpu/%,$(GPU_PYTHON)),.venv-gpu/.ready)
	$(GPU_PYTHON) -m pytest -m gpu
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(GPU_PYTHON) benchmarks/accelerator.py $(ARGS)

clean:
	rm -rf .venv .venv-gpu .venv-oldest build dist demo-output examples-output docs/_build docs/api/generated docs/drawn docs/tutorials
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find fixedpoint backends models tests benchmarks examples docs -name __pycache__ -prune -exec rm -rf {} +
