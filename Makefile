# Two commands: `make demo` and `make test`. Each does all its own set-up in .venv.
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
export PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD := 1

.PHONY: help demo test lint format bench screenshots clean

help:
	@echo "make demo         run the demo: two sick trainings in, a diagnosis, a cure and a proof out"
	@echo "make test         run the tests"
	@echo "make lint         ruff, pyright and the import contracts"
	@echo "make bench        overhead, detection and forecast benchmarks (an hour)"
	@echo "make screenshots  pictures of the demo's report and of the rules, in docs/images (needs chromium)"

# the core only: what a user installs
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.core

demo: $(VENV)/.core
	$(VENV)/bin/gradiometer demo

# one process a core, and one thread in each: the networks of the tests are too small for more
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev
	$(PY) benchmarks/detection.py
	$(PY) benchmarks/overhead.py
	$(PY) benchmarks/forecast.py

screenshots: $(VENV)/.dev
	$(PY) docs/screenshots.py
	$(PY) docs/rule_pictures.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
