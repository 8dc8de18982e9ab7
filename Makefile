# `make demo` and `make test` do everything, the environment in .venv/ included; a second run starts at once.

.DEFAULT_GOAL := help
.PHONY: help install models demo test format requirements docs clean
.DELETE_ON_ERROR:

# The first Python that is 3.11 or newer. It is run, as a name on PATH need not work (shims of pyenv do not).
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
INSTALLED := .venv/.installed
TRIALS ?= 24
JOBS ?= 3
UV ?= $(firstword $(wildcard .venv/bin/uv) uv)

help:
	@echo "make demo       set up, fetch a real model and tune it on a real tritonserver (10 minutes on 2 cores);"
	@echo "                TRIALS=... measures at most that many candidates ($(TRIALS))"
	@echo "make test       set up and run every check that CI runs; JOBS=... processes ($(JOBS))"
	@echo "make models     set up and fetch the examples' models"
	@echo "make install    only set up .venv/ (PYTHON=... chooses the interpreter)"
	@echo "make format     put the code into the one format"
	@echo "make docs       write docs/cli.md and docs/knobs.md from the commands' help and the compiler's catalogue"
	@echo "make requirements   pin the dependencies of pyproject.toml anew (needs uv)"
	@echo "make clean      remove .venv/ and the examples' models, trials, locks and repositories"

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on PATH; on Debian or Ubuntu:" \
		"apt install python3.11 python3.11-venv libpython3.11; elsewhere: make PYTHON=/path/to/python3.11"; exit 3; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install" \
		"`$(PYTHON) -c 'import sys; print("python3.%d-venv" % sys.version_info[1])'`"; exit 3; }
	@# --no-deps: all there is is pinned there, and pips before 23.3 resolve an extra (coverage[toml]) past its pin.
	@echo "installing requirements.txt into .venv/ (1.5 GB, about a minute once it is downloaded)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --requirement requirements.txt
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

models: $(INSTALLED)
	@$(BIN)/python examples/fetch_models.py

demo: models
	$(BIN)/tritonc tune examples/ocr/spec.yaml --trials $(TRIALS)
	@echo
	@echo "The repository to serve:   examples/ocr/build/cpu"
	@echo "The lock to review:        examples/ocr/spec.lock.yaml"
	@echo "All trials, in a browser:  $(BIN)/mlflow ui --backend-store-uri sqlite:///examples/ocr/.tritonc/mlflow.db"

test: models
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(JOBS) --dist worksteal --doctest-modules --doctest-ignore-import-errors \
		tests tritonc --cov --cov-report=
	$(BIN)/coverage report --include='schemas/*,compiler/*' --skip-covered --fail-under=95

format: $(INSTALLED)
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python docs/cli_reference.py
	$(BIN)/python docs/knobs.py

requirements:
	$(UV) pip compile --quiet pyproject.toml --group dev --extra tune --extra onnxruntime-openvino --extra openvino \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--output-file requirements.txt

clean:
	rm -rf .venv examples/*/models examples/*/.tritonc examples/*/build examples/*/spec.lock.yaml
