# Sets up and runs everything from a fresh checkout: needs Python 3.11 or later, git and make; no root, nothing activated.
#
#   make demo    the main job, with what each cell cost     make test    every test (as root: also as an ordinary user)
#   make bench   the numbers, on this machine               make check   format, lint, types, layers, unit tests
#   make soak    half an hour of a server under load, with faults on purpose; nothing may be lost or left
#   make endurance  10,000 one-shots and 500 sessions with every violent end; then nothing may be left
#   make endurance-tools  minutes of random programs with tools on a server that is killed every few seconds
#   make bench-tools  forty tasks with tools: a loop of calls beside one program; the model is simulated
#   make env     only set up                                make clean   remove what make made
#   make vm-test  what touches control groups, in a virtual machine that has version 2 only: root, Debian, half an hour (docs/vm-test.md)
#   make attacks, make corpus    the suites in ../shared (or where ONETRIP_SHARED says): some minutes each; the corpus'
#                packages need Python 3.11.5 or later: make corpus CORPUS_PYTHON=/path/to/python3.11 where .venv's is older
#
# PYTHON=/path/to/python3 chooses the interpreter for a new .venv.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: demo test check bench bench-tools endurance endurance-tools soak env clean attacks corpus vm-test

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt
MADE := $(VENV)/.made
DATA := $(VENV)/share/onetrip
SHARED := $(if $(ONETRIP_SHARED),$(abspath $(ONETRIP_SHARED)),$(abspath ../shared))
RECIPE := src/onetrip/environments/default.toml src/onetrip/environments/default.txt

# Everything that is made must be readable for the sandbox's user, whatever the caller's umask is; and no variable
# of the caller's may point Python or Onetrip elsewhere.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV ONETRIP_HOME
SETUP := umask 022; set -eu;

demo: $(MADE)-env
	@$(BIN)/onetrip demo

test: $(MADE)-test $(MADE)-env
	@.ci/test $(BIN)/python

check: $(MADE)-check $(MADE)-test
	$(BIN)/ruff format --check src tests bench/tools
	$(BIN)/ruff check src tests bench/tools
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests/unit tests/spec

bench: $(MADE)-env
	@$(BIN)/onetrip bench

# a simulated model; some two minutes
bench-tools: $(MADE)-env
	@$(BIN)/python bench/tools/run.py

# ten thousand one-shots and five hundred sessions with every violent end: some ten minutes
endurance: $(MADE)-env
	@$(BIN)/python bench/endurance.py

# three minutes of random programs with tools, the server killed every few seconds
endurance-tools: $(MADE)-test $(MADE)-env
	@$(BIN)/python bench/tool_pauses.py

# half an hour: a server at 80 % load with faults
soak: $(MADE)-env
	@$(BIN)/python bench/soak.py

attacks: $(MADE)-test $(MADE)-env
	@ONETRIP_ATTACKS=1 ONETRIP_SHARED="$(SHARED)" .ci/test $(BIN)/python tests/security

corpus: $(MADE)-test $(MADE)-env
	@$(SETUP) $(BIN)/onetrip env list --json | grep -q '"name": "corpus"' || \
		$(BIN)/onetrip env build corpus --requirements "$(SHARED)/corpus/packages.txt" $(if $(CORPUS_PYTHON),--python "$(CORPUS_PYTHON)")
	@ONETRIP_CORPUS=1 ONETRIP_SHARED="$(SHARED)" $(BIN)/python -m pytest -o faulthandler_timeout=0 -rP tests/corpus

# VM_TESTS="files" runs others; tests/vm/run names the other variables
vm-test: $(MADE)-test $(MADE)-env
	@tests/vm/run $(VM_TESTS)

env: $(MADE)-env

clean:
	rm -rf $(VENV) .hypothesis .ruff_cache dist demo-output vm-test.log
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that was moved, or whose interpreter is gone, is made anew: its scripts hold absolute paths.
ifneq ($(wildcard $(MADE)-run),)
ifneq ($(shell $(BIN)/python -c '' 2>&1 && grep -qF '$(CURDIR)/$(BIN)/python' $(BIN)/onetrip && echo works),works)
$(info $(VENV) does not work any more: it is made anew)
$(shell rm -rf $(VENV))
endif
endif

$(MADE)-run: pyproject.toml constraints.txt
	@$(SETUP) if ! test -e $@; then \
		python=$$(.ci/find-python); echo "making $(VENV) with $$python" >&2; "$$python" -m venv --clear $(VENV); fi
	@$(SETUP) echo "installing Onetrip and its dependencies" >&2; $(PIP) -e '.[serve,otel]'; mkdir -p $(DATA); touch $@

$(MADE)-test: $(MADE)-run
	@$(SETUP) echo "installing what the tests need" >&2; $(PIP) -e '.[test]'; touch $@

$(MADE)-check: $(MADE)-run
	@$(SETUP) echo "installing what the checks need" >&2; $(PIP) -e '.[check]'; touch $@

$(MADE)-env: $(RECIPE) | $(MADE)-run
	@$(SETUP) echo "building the default environment (about a minute, 1 GB)" >&2; $(BIN)/onetrip env build default; touch $@
