# `make demo` and `make test` work on a bare Debian machine with Python 3.11, its venv module, make and git.
PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
BIN = $(VENV)/bin
SOURCES = quadscape tests workflow_scripts benchmarks

.PHONY: demo gallery tiny test test-long test-slurm lint format docs bench clean install install-dev help

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.runtime: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

install: $(VENV)/.runtime  ## the software and what it needs, in .venv
install-dev: $(VENV)/.dev  ## the same and the tools for tests and lint

demo: install  ## the whole workflow on a small network, to the report
	$(BIN)/snakemake --profile profiles/demo --cores $(CORES)
	$(BIN)/snakemake --profile profiles/demo --cores $(CORES) --report results/demo/report.html
	@echo
	@echo "The report:  results/demo/report.html  (open it in a browser)"
	@echo "The figures: results/demo/figures/"

gallery: install  ## everything that can be measured, with two seeds, and what each section of the report took
tiny: install  ## the same on a network of a few hundred parameters, as a test
gallery tiny:
	$(BIN)/snakemake --profile profiles/local --configfile experiments/$@.yaml --cores $(CORES)
	$(BIN)/snakemake --profile profiles/local --configfile experiments/$@.yaml --cores $(CORES) --report results/$@/report.html
	@echo
	@$(BIN)/quadscape costs logs/$@
	@echo
	@echo "The report: results/$@/report.html"

# Two files of tests at a time, in the order of tests/conftest.py; threads that wait must not spin on the other's core.
test: install-dev  ## every test
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

# What `make test` leaves out for its length, some twenty minutes on two cores, and all tests on SLURM.
test-long: install-dev  ## every network of the zoo, and many more random cases: kills, damaged files and folders
	QUADSCAPE_LONG=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(CORES) -m long
	QUADSCAPE_LONG=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/slurm

# As root; installs Debian's packages of SLURM where they are missing, and is skipped, with the reason, where it cannot.
test-slurm: install-dev  ## the workflow on a real SLURM, which is started and stopped on this machine
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/slurm $(PYTEST_SLURM)

lint: install-dev  ## style, types, workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint --profile profiles/demo

format: install-dev  ## mend what can be mended by a tool
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

docs: install  ## the generated parts of the documentation
	$(BIN)/quadscape reference > docs/configuration.md
	$(BIN)/python docs/architecture.py

bench: $(VENV)/.bench  ## the benchmarks and what they compare with (see docs/performance.md)
	for norm in batch group; do for width in 1 2; do \
	  $(BIN)/python -m benchmarks.hessian --width $$width --norm $$norm || exit 1; done; done
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.topk
	$(BIN)/python -m benchmarks.eigenbasis
	$(BIN)/python -m benchmarks.tiles
	$(BIN)/python -m benchmarks.overlap

clean:  ## remove everything made here but results and what Snakemake knows of them
	if [ -d .snakemake ]; then \
	  find .snakemake -mindepth 1 -maxdepth 1 ! -name metadata ! -name incomplete -exec rm -rf {} +; fi
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
