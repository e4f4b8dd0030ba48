# make install   the environment in .venv
# make demo      audit the phantom cohort; ends at the report
# make test      lint, types, import rules, tests; make test-slow the slow ones, coverage counts lines
# make docs      docs/experiments.md anew from docstrings, parameters and words
# make site      the documentation as a site, in site/
# make viz       explore the lineage in the browser
# make pictures  the README's pictures, from the phantom's report and lineage (needs Chromium)
# make bench     the benchmarks whose figures the README gives
# make calibrate  docs/error_rates.md anew from simulated cohorts: wrong verdicts, power, coverage; three hours on two cores
# make power     docs/power.md anew: how often each check passes and fails by number of patients; half an hour

VENV := .venv
BIN := $(VENV)/bin
# Any Python from 3.11 on: make install PYTHON=python3.12
PYTHON ?= python3
INSTALLED := $(VENV)/.installed
TESTING := $(VENV)/.installed-test
DEMO := data/phantom/.demo-done
SOURCES := $(shell find src conf -type f ! -name '*.pyc' ! -path 'conf/local/*')

export DO_NOT_TRACK := 1
export KEDRO_DISABLE_TELEMETRY := 1
# A report about the phantom comes from the phantom's folder, whatever the shell says.
export KEDRO_ENV := phantom
# Hundreds of processes would each compile the code, where a container asks for that.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow coverage lint docs site viz pictures bench calibrate power clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# /!q;s/^# //p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: make install PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $(INSTALLED)

# What the tests use beside: their tools, and the extras.
$(TESTING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs,cluster,features,models,adaptation]'
	@touch $(TESTING)

demo: $(DEMO)
	@echo "The report: $$(ls -d data/phantom/08_reporting/report.html/*/report.html | tail -n 1)"

# Nothing is computed again unless code or configuration changed; then slides and vectors whose
# fingerprints are the same are still reused.
$(DEMO): $(INSTALLED) $(SOURCES)
	$(BIN)/kedro run
	@touch $(DEMO)

lint: $(TESTING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# Which lines the tests run; apart, since counting them slows the tests.
coverage: $(TESTING)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder \
	  --cov --cov-report=term:skip-covered

# Audits of the real tile sets, runs that are killed again and again, dvc repro, coverage by simulation: minutes each.
test-slow: $(TESTING)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder tests

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py

site: $(TESTING)
	$(BIN)/python -m mkdocs build --strict

viz: $(INSTALLED)
	$(BIN)/kedro viz run

pictures: $(TESTING)
	$(BIN)/python docs/pictures.py

bench: $(TESTING)
	$(BIN)/python benchmarks/bench_cli.py
	$(BIN)/python benchmarks/bench_embed.py
	$(BIN)/python benchmarks/bench_robustness_index.py
	$(BIN)/python benchmarks/bench_scale.py
	$(BIN)/python benchmarks/bench_memory.py

# Goes on where it was interrupted; data/error_rates holds what was simulated.
calibrate: $(INSTALLED)
	$(BIN)/python benchmarks/error_rates.py

# The same of data/power; one thread.
power: $(INSTALLED)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/python benchmarks/power.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
