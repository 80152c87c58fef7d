# Everything sets itself up: the first target that needs it makes .venv, later ones reuse it.
#
#   PYTHON=python3.12        the Python that makes .venv (3.11 to 3.13; default python3)
#   TORCH_INDEX=URL          where to take torch from, for example
#                            https://download.pytorch.org/whl/cpu for a build without CUDA

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

# Tests run side by side, one thread each: tiny models gain nothing from more.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest
FAST := -m "not slow and not gpu and not network" -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench reproduce clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## make .venv (every other target does it when needed)

demo: export OMP_NUM_THREADS = $(DEMO_THREADS)
demo: $(READY) ## the main job in a few minutes: a hybrid on real text and its report
	$(BIN)/manticore run recipes/hybrids/quickstart.yaml --out runs/quickstart

test: $(READY) ## the fast tests
	$(PYTEST) $(FAST) $(TESTS)

test-slow: $(READY) ## the long proofs
	$(PYTEST) -m "slow and not gpu and not network" -n $(WORKERS) $(TESTS)

check: $(READY) ## lint, types, the order of rooms, the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) $(FAST) $(TESTS)

bench: $(READY) ## speed and memory, against the sum of the components
	$(BIN)/python -m benchmarks

reproduce: export OMP_NUM_THREADS = $(DEMO_THREADS)
reproduce: $(READY) ## the tables of hybrids: three seeds, every rate (an hour); recipes/*/README.md name the others
	$(BIN)/manticore run recipes/hybrids/quickstart.yaml compare.row_lr={} compare.lr_factors=0.5,1,2 \
	  --seeds 0,1,2 --out runs/reproduce/quickstart
	$(BIN)/manticore run recipes/hybrids/ablation.yaml --seeds 0 --out runs/reproduce/ablation
	$(BIN)/manticore run recipes/hybrids/stories.yaml --seeds 0 --out runs/reproduce/stories

clean: ## remove caches and .venv; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Long runs use every core unless told otherwise.
DEMO_THREADS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=..."; \
	  exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version). Manticore needs Python 3.11, 3.12 or 3.13:" \
	       "make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python could not make a virtual environment. On Debian: apt install python3-venv"; exit 2; }
	@echo "Setting up $(VENV), once: torch first, then the rest (a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e ".[dev,eval]"
	@touch $@
