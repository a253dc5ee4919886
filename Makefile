# make train   sets up .venv, then trains the demo (again: goes on, or is done at once)
# make test    sets up .venv, then runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OVERRIDES ?=
FIRST_STAGE ?= committed
FIRST_STAGE_OVERRIDES ?=
WORKERS ?= 2
SIDE_BY_SIDE = --numprocesses=$(WORKERS) --dist=loadgroup --no-loadscope-reorder

.PHONY: train test test-slow lint format benchmarks clean

ifeq ($(FIRST_STAGE),train)
train: $(READY)
	$(BIN)/ldm train experiment=demo_autoencoder $(FIRST_STAGE_OVERRIDES)
	$(BIN)/ldm train experiment=demo first_stage.weights=runs/demo_autoencoder/first_stage.safetensors $(OVERRIDES)
else
train: $(READY)
	$(BIN)/ldm train experiment=demo $(OVERRIDES)
endif

# One thread each: two workers of two threads on two cores take twice the time, waiting for one another.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(TESTS)

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --slow -m slow $(SIDE_BY_SIDE) $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy training data models evaluation slurm

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Installs once for each state of the lock; nothing is resolved, the lock names every version.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-deps -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) runs
