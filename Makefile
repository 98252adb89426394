# make quickstart   samples -> stores -> a trained, evaluated model, on the CPU, in minutes
# make test         the test suite
# make test-floor   pipeline, train and model on Python 3.12 with the oldest torch, Triton and numpy
# make lint         ruff, mypy, codespell
# make docs         the documentation as a site, build/docs/index.html; a dead link fails
# make soak         the hours-long proofs; logs under benchmarks/results/
# Needs Python >= 3.11, make and a package index. Every target sets itself up.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
DIR    := build/quickstart
SEED   := 0

# Python compiles what it imports once: a process that imports torch starts in a third of the time.
export PYTHONDONTWRITEBYTECODE :=


# pyenv's shim answers for no version but the active one, so its folders come first.
FLOOR        := build/floor
FLOOR_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12) 3.12)

.PHONY: setup quickstart test test-floor lint docs soak clean
.DELETE_ON_ERROR:

setup: $(READY)

# uv installs from constraints.txt; it is used from PATH or brought into the environment itself.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Handloom needs Python >= 3.11, found " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt --editable . --group dev
	@touch $(READY)

# A worker per core: threads of their own would only wait for each other. The tests of a file stay
# together, and with them what they share.
test: $(READY)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist loadfile

test-floor: $(FLOOR)/.ready
	JAXTYPING_DISABLE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest --numprocesses auto --dist loadfile tests/pipeline tests/train tests/model

# Without the pins of constraints.txt that contradict the old versions.
$(FLOOR)/.ready: $(READY) constraints-floor.txt
	$(VENV)/bin/uv venv --quiet --clear --python $(FLOOR_PYTHON) $(FLOOR)
	grep -vE '^(torch|torchvision|triton|numpy|numpy-typing-compat|scipy-stubs|setuptools)==' constraints.txt > $(FLOOR)/constraints.txt
	$(VENV)/bin/uv pip install --quiet --python $(FLOOR)/bin/python --constraint constraints-floor.txt --constraint $(FLOOR)/constraints.txt --editable . --group dev
	@touch $@

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/codespell
	$(PY) -m mypy

quickstart: $(READY)
	rm -rf $(DIR)
	@date +"quickstart begins %T"
	$(PY) -m preprocess make-sample dataset=freihand out=$(DIR)/freihand num=1800 num_eval=300 seed=1
	$(PY) -m preprocess make-sample dataset=interhand26m out=$(DIR)/interhand26m num=48 seed=1
	$(PY) -m preprocess build-cache dataset=freihand root=$(DIR)/freihand out=$(DIR)/freihand.zarr mano=$(DIR)/freihand/mano
	$(PY) -m preprocess build-cache dataset=interhand26m root=$(DIR)/interhand26m out=$(DIR)/interhand26m.zarr mano=$(DIR)/interhand26m/mano
	$(PY) -m preprocess show-cache store=$(DIR)/freihand.zarr out=$(DIR)/freihand.png
	$(PY) -m train run experiment=quickstart store=$(DIR)/freihand.zarr mano=$(DIR)/freihand/mano run_dir=$(DIR)/run pipeline.seed=$(SEED)
	$(PY) -m train evaluate run=$(DIR)/run store=$(DIR)/freihand.zarr split=evaluation mano=$(DIR)/freihand/mano

docs: $(VENV)/.docs
	$(VENV)/bin/zensical build --clean --strict

$(VENV)/.docs: $(READY)
	$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt --group docs
	@touch $@

# Speeds are measured here, so shapes are not checked.
soak: $(READY) test-floor
	JAXTYPING_DISABLE=1 $(PY) -m pytest -m slow --override-ini addopts=-ra --override-ini faulthandler_timeout=0

clean:
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache
