# `make demo` and `make test` are all the set-up there is: both build .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where torch comes from: with PyTorch's index of CPU builds here (or PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) no CUDA package is downloaded.
TORCH_INDEX ?=
PROTOS := $(wildcard protos/triptych/v1/*.proto)
# The floor of what the checked-in stubs run on: generated code refuses an older protobuf runtime (see CONTRIBUTING.md).
GRPCIO_TOOLS := grpcio-tools==1.76.0

.PHONY: demo test test-failed-again check format protos clean

demo: $(READY)
	$(BIN)/triptych demo

test: $(READY)
	$(BIN)/python -m pytest

# The tests that failed in the last run, by themselves.
test-failed-again: $(READY)
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

# What CI and pre-commit look at beside the tests.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(READY)
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

# constraints.txt is the exact known-good set. grpcio-tools goes in without its dependencies: it wants an older protobuf only to be installed beside.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Triptych needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,video,bench]'
	$(BIN)/python -m pip install --quiet --no-deps $(GRPCIO_TOOLS)
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info
