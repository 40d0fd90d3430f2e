# make demo | test | check | serve | bench | image | clean — each sets up what it needs and reuses what is there.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEVICE ?= cpu

.DEFAULT_GOAL := help
.PHONY: help demo serve test check format bench image clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(READY)  ## explain photographs through a live TorchServe; writes demo/report.html and demo/explorer
	$(BIN)/convlens demo

serve: $(READY)  ## run TorchServe on 127.0.0.1 and print curl commands to try
	$(BIN)/convlens serve

test: $(READY)  ## the whole test suite, on two cores
	$(BIN)/python -m pytest -n 2

check: $(READY)  ## check style, types and layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## run every benchmark (DEVICE=cpu or cuda) and update the tables in README and docs
	$(BIN)/python benchmarks/relu_rules.py --device $(DEVICE)
	$(BIN)/python benchmarks/occlusion.py --device $(DEVICE)
	$(BIN)/python benchmarks/python_api.py --device $(DEVICE)
	$(BIN)/python benchmarks/incremental.py --device $(DEVICE)
	$(BIN)/python benchmarks/explanation_graphs.py --device $(DEVICE)
	$(BIN)/python benchmarks/features.py --device $(DEVICE)
	$(BIN)/python benchmarks/gallery.py
	$(BIN)/python benchmarks/synthesis.py --device $(DEVICE)
	$(BIN)/python benchmarks/ascent_transfer.py --device $(DEVICE)
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/serving.py --device $(DEVICE)
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/slow_neighbours.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/mixed_load.py
	$(BIN)/python benchmarks/readme.py

image:  ## build a container image with docker, podman or buildah; see scripts/image.sh
	scripts/image.sh

clean:  ## remove built files, but not the environment
	rm -rf .convlens demo/report.html demo/explorer model_store/*.mar .pytest_cache .mypy_cache .ruff_cache

# The environment, from the pinned requirements; updated when they change.
$(READY): pyproject.toml $(wildcard requirements/*.txt)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ConvLens needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --editable .
	@# Without npm's registry all but the explorer works, and it and the tests of accessibility say what they lack.
	-$(BIN)/python -m convlens.explorer.browser_runtime
	-$(BIN)/python tests/support/axe_core.py
	@touch $@
