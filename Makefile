# make demo    install, train on handwritten digits, sample, say where the pictures are
# make test    the test suite
# make check   formatting, lint, types, tests
# make faults  all ways in which machines fail, at random moments of real runs; SEED=1 for others
PYTHON ?= python3
BIN := .venv/bin

SEED ?= 0

.PHONY: setup demo test check faults clean
.DEFAULT_GOAL := check

setup: .venv/.ready

# One call with the constraints, so that no package can pull in another build of torch.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: setup
	$(BIN)/ditwright demo --output runs/digits

test: setup
	$(BIN)/python -m pytest -n auto

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

faults: setup
	$(BIN)/python -W ignore tests/faults/fault_driver.py --seed $(SEED)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
