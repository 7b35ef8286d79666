# Each command does its own set-up: a virtual environment in .venv, the install, then the work.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
SETUP := settings.ini setup.py constraints.txt tools/setup_env.py
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: demo bench lab test test-slow docs readme prepare clean help

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed ## run the quickstart from images to masks; leaves everything in one folder under runs/
	@$(PY) -m bgcs notebook nbs/tutorials/quickstart.ipynb --runs runs

bench: $(VENV)/.installed ## measure how fast it is on this machine; writes bench.json
	@$(PY) tools/bench.py

lab: $(VENV)/.installed ## open the quickstart in JupyterLab
	@$(PY) -m jupyter lab nbs/tutorials/quickstart.ipynb

test: $(VENV)/.installed-dev ## ruff, notebooks and package in sync, the notebooks' tests, pytest
	ruff check --quiet
	@$(PY) tools/check_sync.py
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 nbdev_test --n_workers 2  # one thread each: two notebooks at once would fight over the cores
	BGCS_CHROMIUM="$$(tools/ensure_browser.sh $(PY))"; export BGCS_CHROMIUM; \
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PY) -m pytest -q tests -n 2 --dist loadfile --no-loadscope-reorder  # two files at once

test-slow: $(VENV)/.installed-dev ## the long checks too: the quickstart's full training with three seeds, the benchmark notebooks
	$(PY) -m pytest -q tests -m slow

docs: $(VENV)/.installed-dev ## render the documentation with Quarto, or check all that can be checked without it
	@$(PY) tools/docs.py

prepare: $(VENV)/.installed-dev ## after editing notebooks: export the package, clean the notebooks, make README.md
	$(PY) tools/strip_widgets.py
	nbdev_export
	nbdev_clean
	$(PY) tools/readme.py

clean: ## remove what was generated (not the runs)
	rm -rf _proc _docs nbs/_quarto.yml .pytest_cache build dist

$(VENV)/.installed: $(SETUP)
	@$(PYTHON) tools/setup_env.py $(VENV) all
	@touch $@

$(VENV)/.installed-dev: $(SETUP)
	@$(PYTHON) tools/setup_env.py $(VENV) dev
	@touch $@ $(VENV)/.installed
