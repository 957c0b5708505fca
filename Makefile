# Two commands on a fresh machine do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PRESET ?= tiny

.PHONY: help demo test lint audit up down clean
help:  ## list the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "full-pipeline needs Python 3.11 or newer; set PYTHON=python3.x")'
	@echo "installing into .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.ready-dev: .venv/.ready
	@echo "installing what the tests need"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.ready  ## make a small bilingual model from raw text, on this machine, and talk to it (PRESET=tiny)
	$(BIN)/pipeline run $(PRESET)

test: .venv/.ready-dev  ## run all tests (real Prefect, MLflow, torchrun, DeepSpeed processes)
	$(BIN)/pip check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # tests/conftest.py puts the long files first

lint: .venv/.ready-dev  ## check format, style, file sizes and types; nothing is changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python .ci/file_sizes.py
	$(BIN)/pyright

audit: .venv/.ready  ## look the pinned dependencies up among known vulnerabilities (needs the network)
	@test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install -qq pip-audit; }
	.venv/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

up: .venv/.ready  ## start Prefect, MLflow and a worker here, and deploy the flow
	$(BIN)/pipeline up

down: .venv/.ready  ## stop what `up` or a run started
	$(BIN)/pipeline down

clean:  ## delete the environment, and everything the pipeline wrote here
	@test ! -x $(BIN)/pipeline || $(BIN)/pipeline down
	rm -rf .venv .pipeline .pytest_cache .ruff_cache *.egg-info
