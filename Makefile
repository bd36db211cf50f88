# `make demo` and `make test` set everything up in .venv; a second call installs nothing again.
PYTHON ?= python3.11
BIN := .venv/bin
# Small networks are fastest with one thread per worker (see docs/architecture.md); the demo may use all cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup demo test test-slow check docs methods soak clean

setup: .venv/.stamp

.venv/.stamp: pyproject.toml constraints.txt tools/setup.sh
	bash tools/setup.sh $(PYTHON)
	touch $@

demo: .venv/.stamp
	$(BIN)/fewstep demo

test: .venv/.stamp
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not processes"
	$(ONE_THREAD) $(BIN)/python -m pytest -m "processes and not slow"

test-slow: .venv/.stamp
	$(BIN)/python -m pytest -m slow

docs: .venv/.stamp
	$(BIN)/python tools/options.py

methods: .venv/.stamp
	$(BIN)/python benchmarks/methods.py

soak: .venv/.stamp
	$(ONE_THREAD) FEWSTEP_KILLS=100 $(BIN)/python -m pytest tests/training/test_kills.py

check: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/reading.py

clean:
	rm -rf .venv runs
