# From a clean clone to ranks in a notebook: make lab. Runs with GNU make 3.81 (macOS) and newer.

VENV := .venv
QUICKSTART := notebooks/00_quickstart.ipynb

# Where to look for a Python; the first good one is taken. Name your own: make lab PYTHON=/path/to/python
PYTHON = python3.13 python3.12 python3.11 python3.14 python3

# What MLX needs beside itself: nothing on macOS, cuda13 or cpu on Linux.
ifeq ($(shell uname -s),Darwin)
EXTRA =
else
EXTRA = $(shell nvidia-smi >/dev/null 2>&1 && echo cuda13 || echo cpu)
endif

# More options for JupyterLab: make lab LAB_ARGS="--no-browser --port=9000"
LAB_ARGS =

in_venv := $(VENV)/bin/python
kernelspec := mlxbench_kernel/kernel/resources/kernel.json
# What runs in the browser; installing builds it, with the machine's Node or one that pip fetches.
widgets := $(wildcard extensions/*.json extensions/widgets/*.json extensions/widgets/src/*/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help lab demo test clean

help: ## List these targets
	@echo "mlxbench: MLX ranks in a notebook"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

lab: $(VENV)/installed $(VENV)/native ## Set up .venv and open JupyterLab on the quickstart
	$(in_venv) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" $(LAB_ARGS) $(QUICKSTART)

demo: $(VENV)/installed $(VENV)/native ## Run the quickstart without a browser and say what ran
	@$(in_venv) -m mlxbench_kernel.kernel.demo $(QUICKSTART)

test: $(VENV)/installed-test $(VENV)/native ## Lint, type-check and run every test
	$(in_venv) -m ruff check
	$(in_venv) -m ruff format --check
	$(in_venv) -m mypy
	$(in_venv) -m pytest --durations=15

clean: ## Remove .venv and everything that was built
	rm -rf $(VENV) build dist extensions/node_modules mlxbench_kernel/widgets/static .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear, because this also runs when the Python that an older .venv was made of is gone.
$(in_venv):
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import ensurepip, platform, sys, venv; sys.exit(sys.version_info < (3, 11) or (sys.platform, platform.machine()) == ("darwin", "x86_64"))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "mlxbench needs Python 3.11 or newer (on a Mac: for Apple silicon) and none is on PATH;" \
	  "install one, or name yours: make lab PYTHON=/path/to/python" >&2; \
	exit 1

# The stamp says which folder was installed. After the project was moved, or where the Python of
# .venv is gone, everything is installed again.
ifneq ($(shell test -x $(in_venv) && cat $(VENV)/installed 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/installed
endif
$(VENV)/installed: pyproject.toml $(kernelspec) $(widgets) | $(in_venv)
	@echo "Installing mlxbench and what it needs into $(VENV): a few minutes the first time"
	@$(in_venv) -m pip install --quiet --upgrade pip
	$(in_venv) -m pip install --quiet --editable ".$(EXTRA:%=[%])"
	@echo "$(CURDIR)" > $@

$(VENV)/installed-test: $(VENV)/installed
	$(in_venv) -m pip install --quiet --editable ".[$(EXTRA:%=%,)test]"
	@touch $@

$(VENV)/native: $(wildcard mlxbench_kernel/native/*.h) mlxbench_kernel/native/module.cpp $(VENV)/installed
	@$(in_venv) -m mlxbench_kernel.native
	@touch $@
