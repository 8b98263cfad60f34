# `make demo` and `make test` need Python 3.11 and make, nothing else: they set themselves up in .venv.

PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.docs

.PHONY: demo test test-slow check docs setup clean

demo: $(READY)
	$(BIN)/skipway study degradation --out runs/degradation

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check --output-format concise
	$(BIN)/pyright

# Offline: the pages ask the network for nothing, and links that lead nowhere fail.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(READY)

# torch comes first and alone, so that its wheel is chosen before anything else can ask for another one.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
