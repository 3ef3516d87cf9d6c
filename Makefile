# make demo and make test set up by themselves what they need in .venv, and leave nothing outside the checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output
# caches of the libraries stay in the checkout too
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export HF_HOME := $(CURDIR)/.cache/huggingface
export TORCH_HOME := $(CURDIR)/.cache/torch
export XDG_CACHE_HOME := $(CURDIR)/.cache
export TMPDIR := $(CURDIR)/.cache/tmp
$(shell mkdir -p $(CURDIR)/.cache/tmp)
# a file's tests stay in one process, which makes its fixtures once; a process takes up to 2 GB
# in the order of tests/conftest.py, long files first; pytest-xdist's own is by the number of tests
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test slow bench docs lint types clean

demo: $(VENV)/.demo
	$(BIN)/edgeadv demo --out $(OUT)

test: $(VENV)/.dev
	$(BIN)/pytest $(PARALLEL) $(ARGS)

slow: $(VENV)/.dev
	$(BIN)/pytest -m slow $(PARALLEL) $(ARGS)

# ARGS="--accept" takes the figures and writes the tables
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py --work build/bench $(ARGS)

# the site, in build/site; in an environment of its own: torchattacks wants a requests that MkDocs does not
docs: build/docs-venv/.done
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --strict --quiet --site-dir build/site

build/docs-venv/.done: pyproject.toml
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -e ".[docs]"
	@touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# dev holds all that demo needs: whichever comes second installs only what is missing
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -e ".[dev]"
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build/bench .cache .mypy_cache .pytest_cache .ruff_cache dist $(OUT)
