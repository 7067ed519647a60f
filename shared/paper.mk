# What every paper's Makefile includes after naming its PAPER (the import name). Each target is one
# Python command, echoed: without make, type it.
ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
FOUND := $(shell python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("$(PAPER)") is None)' 2>/dev/null && echo yes)
# The active environment if the package is installed there, else the workspace's.
RUN := $(if $(FOUND),python,$(ROOT)/.venv/bin/python)

help:
	@echo "make reproduce | reproduce-table1, reproduce-table2, ... | train CONFIG=... | eval | parity | test"

reproduce: $(if $(FOUND),,environment)
	$(RUN) -m papers_shared.tables reproduce --paper $(PAPER) $(if $(BUDGET),--budget $(BUDGET))

reproduce-%: $(if $(FOUND),,environment)
	$(RUN) -m papers_shared.tables reproduce --paper $(PAPER) --table $* $(if $(BUDGET),--budget $(BUDGET))

train: $(if $(FOUND),,environment)
	$(RUN) -m $(PAPER).train $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

eval: $(if $(FOUND),,environment)
	$(RUN) -m $(PAPER).eval $(ARGS)

parity: $(if $(FOUND),,environment)
	$(RUN) -m papers_shared.parity tests/golden

test: $(if $(FOUND),,environment)
	$(RUN) -m pytest -m "not slow" tests

environment:
	$(MAKE) -C $(ROOT) setup

.PHONY: help reproduce train eval parity test environment
.DEFAULT_GOAL := help
