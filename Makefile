# make demo    set everything up, merge four real adapters, show the result at work
# make test    set everything up, run the tests
# make test-slow         the tests that take many seconds each: several processes, GPU code, whole examples
# make test-browser      the page of a report, and `samerge ui`, in a real browser; needs Chromium (apt-get install chromium)
# make test-oldest       the tests beside the oldest versions that pyproject.toml admits, in an environment of its own;
#                        PYTHON=python3.10 for the oldest Python, too
# make test-benchmarks   the tests of the benchmarks' own code, and of the tables that they write
# make check   lint, format and types, as CI does
# make docs    these pages as a site, in site/; a link that leads nowhere fails
# make notebooks   run the notebooks, and keep what they show
# make dist    the sdist and the wheel, checked as the package index checks them, and the wheel installed and run
# make clean   remove what the above have made
#
# PYTHON=python3.12          another interpreter (3.10 or later)
# JOBS=2                     processes that share the tests; 0 for none beside pytest itself
# VENV=../env               another place for the environment
# CONSTRAINTS=               plain torch, with CUDA on Linux, instead of the CPU build

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
CONSTRAINTS ?= constraints-cpu.txt
TORCH_CPU ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A file stays whole, for its fixtures; files in order, so that the many short ones of src/ fill up what is left.
SHARED := -n $(JOBS) --dist loadfile --no-loadscope-reorder
PINNED := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo test test-slow test-browser test-oldest test-benchmarks check docs notebooks dist clean

demo: $(VENV)/.demo-ready
	$(BIN)/python examples/demo.py

test: $(VENV)/.test-ready
	$(BIN)/python -m pytest $(SHARED)

test-slow: $(VENV)/.test-ready
	$(BIN)/python -m pytest $(SHARED) -m slow

test-browser: $(VENV)/.test-ready
	$(BIN)/python -m pytest $(SHARED) -rs -m browser tests/browser

# Of what the packages warn of one another, nothing is an error here.
test-oldest: $(VENV)-oldest/.ready
	$(VENV)-oldest/bin/python -m pytest $(SHARED) -W default

test-benchmarks: $(VENV)/.test-ready
	$(BIN)/python -m pytest $(SHARED) benchmarks/tests

check: $(VENV)/.check-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.docs-ready
	$(BIN)/mkdocs build --strict --quiet

notebooks: $(VENV)/.test-ready $(VENV)/.docs-ready
	$(BIN)/python notebooks/run.py

# The wheel is run from an environment of its own, which sees the dependencies of this one and nothing of this folder.
dist: $(VENV)/.check-ready
	@$(PIP) $(PINNED) -e '.[release]'
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python examples/try_wheel.py dist/*.whl

clean:
	rm -rf .venv .venv-oldest .demo build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An index that is not reached is passed over, and the CUDA build of torch comes from where pip looks anyway.
$(VENV)-oldest/.ready: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-oldest
	@echo "installing samerge[test], with the oldest versions"
	@$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_CPU),--extra-index-url $(TORCH_CPU)) -c constraints-oldest.txt -e '.[test]'
	@touch $@

# The CPU build first from where pip looks anyway (a mirror may have it), then from PyTorch's own index.
$(VENV)/.torch-ready: constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "samerge needs Python 3.10 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch$(if $(CONSTRAINTS), (CPU build))"
	@$(if $(CONSTRAINTS),$(PIP) $(PINNED) torch 2>/dev/null || $(PIP) $(PINNED) --extra-index-url $(TORCH_CPU) torch,$(PIP) torch)
	@touch $@

$(VENV)/.demo-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing samerge[demo]"
	@$(PIP) $(PINNED) -e '.[demo]'
	@touch $@

$(VENV)/.test-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing samerge[test]"
	@$(PIP) $(PINNED) -e '.[test]'
	@touch $@

$(VENV)/.docs-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing samerge[docs]"
	@$(PIP) $(PINNED) -e '.[docs]'
	@touch $@

$(VENV)/.check-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing samerge[dev]"
	@$(PIP) $(PINNED) -e '.[dev]'
	@touch $@
