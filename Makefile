# make demo        train, evaluate and tag on the bundled corpus: what hanzoo does, in a few minutes
# make test        the tests (no network, no data sets)
# make check       format, lint, types, layers
# make check-data  the tests that need the real data sets: HANZOO_DATA=... HANZOO_VECTORS=... make check-data
# make interop     the tests of what sentence-transformers and pylate make of a matcher's folder; makes .venv-interop first
# make figures     write the tables of figures from recipes/results/
#
# Each of them first makes .venv and installs hanzoo into it, once. With uv where it is there, else with venv and pip.
#   make PYTHON=python3.12 ...           which interpreter .venv is made from
#   make TORCH='torch==2.13.0' ...       a torch of your choice, installed first, with pip (so pip's settings say from where)

VENV := .venv
INSTALLED := $(VENV)/.installed
TORCH ?=

# The first interpreter that is new enough; empty where there is none.
IF_NEW := import sys; sys.version_info >= (3, 11) and print(sys.executable)
CANDIDATES = $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)
PYTHON_FOUND = $(firstword $(foreach candidate,$(CANDIDATES),$(shell $(candidate) -c '$(IF_NEW)' 2>/dev/null)))
UV := $(shell command -v uv 2>/dev/null)
# uv finds or fetches an interpreter by itself, but not one that was named.
USABLE = $(or $(wildcard $(VENV)/bin/python),$(PYTHON_FOUND),$(if $(PYTHON),,$(UV)))
TOO_OLD = hanzoo needs Python 3.11 or newer, but found none among: $(CANDIDATES). Name one: make PYTHON=/path/to/python3.12

.PHONY: help install demo test check check-data interop figures
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//; p' Makefile

install: $(INSTALLED)

# A venv that was cut off while it was made may lack pip; hence ensurepip.
$(INSTALLED): pyproject.toml
	$(if $(USABLE),,$(error $(TOO_OLD)))
	@echo "Installing hanzoo and what it needs into $(VENV): once, a few minutes"
ifneq ($(UV),)
	test -x $(VENV)/bin/python || uv venv --quiet --seed --python '$(or $(PYTHON_FOUND),>=3.11)' $(VENV)
else
	test -x $(VENV)/bin/python || $(PYTHON_FOUND) -m venv $(VENV)
endif
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(VENV)/bin/python -m ensurepip
ifneq ($(TORCH),)
	$(VENV)/bin/python -m pip install '$(TORCH)'
endif
ifneq ($(UV),)
	uv pip install --python $(VENV)/bin/python -e '.[dev]'
else
	$(VENV)/bin/python -m pip install -e '.[dev]'
endif
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/python train.py recipes/demo_bilstm_crf.yaml --run runs/demo $(if $(wildcard runs/demo),--resume)
	$(VENV)/bin/python evaluate.py runs/demo --split dev
	$(VENV)/bin/python predict.py runs/demo data/corpora/samples.txt

# a process a core, each with one thread: the models of the tests are too small for more
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy -p hanzoo
	$(VENV)/bin/lint-imports

check-data: $(INSTALLED)
	$(if $(HANZOO_DATA),,$(error HANZOO_DATA must be set to the folder with the data sets, but is not. See README.md))
	$(if $(HANZOO_VECTORS),,$(error HANZOO_VECTORS must be set to the folder with the vectors, but is not. See README.md))
	$(VENV)/bin/python -m pytest -m data

# pylate wants versions of its own of sentence-transformers and transformers, and of fast-plaid, which these tests do not need
INTEROP := .venv-interop
PYLATE := $(INTEROP)/pylate

$(INTEROP)/.installed:
	$(if $(PYTHON_FOUND),,$(error $(TOO_OLD)))
	test -x $(INTEROP)/bin/python || $(PYTHON_FOUND) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install '$(or $(TORCH),torch)'
	$(INTEROP)/bin/python -m pip install 'sentence-transformers>=6'
	$(INTEROP)/bin/python -m pip install --target $(PYLATE) 'transformers==5.3.0' 'huggingface_hub<2' datasets pandas ujson
	$(INTEROP)/bin/python -m pip install --target $(PYLATE) --no-deps 'sentence-transformers==5.3.0' 'pylate==1.6.0'
	@touch $@

interop: $(INSTALLED) $(INTEROP)/.installed
	HANZOO_INTEROP='$(abspath $(INTEROP))/bin/python' HANZOO_PYLATE='$(abspath $(PYLATE))' \
		$(VENV)/bin/python -m pytest -m interop -rP tests/interop

figures: $(INSTALLED)
	$(VENV)/bin/python -m hanzoo.recipes.figures
