# Everything sets itself up: on a machine with Python 3.11 or newer and nothing else, each target works as it is.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
# Quiet workers: spinning threads of a library that waits would slow down the others.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-slow lint format bench presets-small clean

demo: $(VENV)/.base  ## train and map the digits grid, and say where the phase figure is
	$(BIN)/lossatlas run digits --out runs/digits

test: lint  ## style, types, and all tests but the slow ones
	$(BIN)/pytest -m "not slow" --numprocesses $(JOBS) --dist loadfile

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## the benchmarks; their tables go to benchmarks/results/
	$(BIN)/python benchmarks/training.py

presets-small: $(VENV)/.dev  ## every preset at a small scale, from data to figures, in runs/small; run again, it continues
	$(BIN)/python benchmarks/presets_small.py

$(VENV)/.base: pyproject.toml constraints/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lossatlas needs Python 3.11 or newer; $(PYTHON) is older. Give one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints/dev.txt)
	$(BIN)/pip install --quiet --constraint constraints/dev.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --constraint constraints/dev.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
