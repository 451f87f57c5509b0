# Everything a person or CI does here. `make serve` on a fresh clone needs Python 3.11, g++, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find src/smelt/native -name '*.cpp' -o -name '*.h' -o -name '*.inl') CMakeLists.txt
# An editable install remembers where each module lies: it is made anew when one comes, goes or moves.
MODULES := $(shell find src/smelt -name '*.py' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
SERVE := $(VENV)/.serve-$(MODULES)
.PHONY: setup setup-train serve test check bench clean

setup: $(SERVE)  ## .venv with what serving needs, native core built

setup-train: $(VENV)/.train  ## the same with PyTorch and the data libraries, for smelt train and smelt data

serve: setup  ## serve the shipped model on http://127.0.0.1:8000
	@$(BIN)/smelt serve $(ARGS)

test: $(VENV)/.dev  ## the whole suite but what is marked slow or gpu
	$(BIN)/pytest $(ARGS)

check: $(VENV)/.dev  ## format, lint, types, rooms, size budget
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/size_budget.py

bench: $(VENV)/.bench  ## measurements; each prints a card and one JSON line
	$(BIN)/python bench/serve.py

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(SERVE): $(BIN)/python pyproject.toml $(NATIVE_SOURCES)
	$(BIN)/pip install --quiet --editable .
	@rm -f $(VENV)/.serve* && touch $@

$(VENV)/.train: $(SERVE)
	$(BIN)/pip install --quiet --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(SERVE)
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/pip install --quiet --editable '.[train,dev,bench]'
	@touch $@
