# Nothing here needs an activated environment: the first target that needs Python packages makes $(VENV).
# SIZE    smoke (seconds a page), laptop (two CPU cores, the default), paper (one GPU)
# MODE    all (compute what is missing), recompute (take no records), scratch (train anew), book (only draw)
# SHARE   the fraction of the recorded rollouts that `make check` makes again: 0.05; 1 is all of them
# PYTHON  the Python, 3.11 or newer, that the environment is made from
# TORCH_INDEX  one more package index, for a Linux machine without a GPU (PyPI's torch brings several GB of CUDA):
#              make TORCH_INDEX=https://download.pytorch.org/whl/cpu all
# EXECUTOR  where `make sweep` runs its jobs: inline, processes (the default), ray (a cluster, see page 15)
# ARGS    more arguments: make hopper ARGS="-p seeds=2", make test ARGS="-k tokens"
PYTHON ?= python3
SIZE ?= laptop
MODE ?= all
EXECUTOR ?= processes
SHARE ?= 0.05
TORCH_INDEX ?=
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
BUILD := notebooks/_build

# glibc gives freed memory back to the system, which hands it out again page by page: 5 to 10% of a decision. These two
# make it keep up to 1 GiB, in blocks of up to 32 MiB.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 33554432

# What a user's shell sets for other Pythons: it would remove the pages' checks, or bring other packages.
unexport PYTHONOPTIMIZE PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONWARNINGS
# Files are UTF-8 whatever the locale is.
export PYTHONUTF8 := 1

# $(call quoted,TEXT): one word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
override size = $(call quoted,$(SIZE))
override mode = $(call quoted,$(MODE))
override python = $(call quoted,$(PYTHON))

# uv is used where there is one; `make UV= all` uses pip all the same.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
# uv does not read pip's settings: where pip has a folder of wheels, uv gets it too.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

# The stamp's name carries the content of the two files, so touching them or changing branches reinstalls nothing.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml requirements.lock | cksum | cut -d ' ' -f 1)

PAGES := tokens model search four_rooms hopper datasets own speed one_step horizon attention offline imitation ablations cluster ledger start
RUN = --size $(size) --mode $(mode) $(ARGS)
start_PAGE := 00_start_here
tokens_PAGE := 01_tokens
model_PAGE := 02_model_and_training
search_PAGE := 03_search
four_rooms_PAGE := 04_four_rooms
hopper_PAGE := 05_hopper
datasets_PAGE := 06_data
own_PAGE := 07_your_own_data
speed_PAGE := 08_speed
one_step_PAGE := 09_one_step
horizon_PAGE := 10_long_horizon
attention_PAGE := 11_attention
offline_PAGE := 12_offline_rl
imitation_PAGE := 13_imitation
ablations_PAGE := 14_ablations
cluster_PAGE := 15_cluster
ledger_PAGE := 16_claims

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help all recompute scratch book estimate data check pages html $(PAGES) fig1 fig2 fig3 fig4 fig5 table1 sweep lab test test-slow test-cluster gpu-check lint bench tune curve policies claims ship lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo SIZE=$(size) "(smoke, laptop, paper), MODE="$(mode)" (all, scratch, book); more at the top of the Makefile"

# The sweep keeps every core busy with rollouts (and training) that the pages would wait for one after the other.
all: estimate $(if $(filter-out book,$(MODE)),sweep check) pages html ## every page and the book, from records; computes only what is missing

recompute: ## the same without records: all results anew from the shipped models
recompute: override MODE = recompute
recompute: estimate data sweep pages html

scratch: ## the same, training every model anew
scratch: override MODE = scratch
scratch: estimate data sweep pages html

book: ## the pages from results that are already there, as HTML: notebooks/_build/html/index.html
book: override MODE = book
book: pages html

estimate: $(STAMP) ## what is still to be computed, and how long it takes here
	$(BIN)/python -m ttlib.commands estimate --size $(size) --mode $(mode)

data: $(STAMP) ## make or fetch the datasets
	$(BIN)/python -m ttlib.commands data --size $(size)

check: $(STAMP) ## make a sample of the recorded rollouts again, and compare: make check SHARE=1: all of them
	$(BIN)/python -m ttlib.commands check --size $(size) --share $(call quoted,$(SHARE))

# The ledger comes after all that it judges, the first page last, since it lists what the others cost.
pages: $(STAMP) ## run every page, two at a time
	$(BIN)/python notebooks/run.py $(foreach page,$(filter-out ledger start,$(PAGES)),$($(page)_PAGE)) $(RUN) --at-once 2
	$(BIN)/python notebooks/run.py $(ledger_PAGE) $(start_PAGE) $(RUN)

html: $(STAMP) ## the HTML book from the pages as they were last run
	$(BIN)/python notebooks/book.py --size $(size)

start: ## page 00: start here
tokens: ## page 01: a trajectory as a sequence of tokens
model: ## page 02: the model and its training
search: ## page 03: beam search as planning
four_rooms: ## page 04: reaching goals in four rooms
hopper: ## page 05: offline reinforcement learning on hopper
datasets: ## page 06: the data
own: ## page 07: your own data
speed: ## page 08: the speed of planning and training
one_step: ## page 09: one step ahead
horizon: ## page 10: long-horizon prediction
attention: ## page 11: attention maps, their scores, a viewer
offline: ## page 12: nine datasets
imitation: ## page 13: imitation
ablations: ## page 14: one change at a time
cluster: ## page 15: the sweep on a cluster, and what it costs
ledger: ## page 16: the paper's claims, and whether they hold

$(PAGES): $(STAMP)
	$(BIN)/python notebooks/run.py $($@_PAGE) $(RUN)

fig1 fig2: horizon ## figures 1 and 2 of the paper
fig5: four_rooms ## figure 5 of the paper
fig3: attention ## figure 3 of the paper
fig4: offline ## figure 4 of the paper, and its table 1

# Where Ray is wanted it is installed first.
sweep: $(STAMP)$(if $(filter ray,$(EXECUTOR)),-cluster) ## table 1, imitation, ablations as jobs, also a part of all: make SIZE=paper EXECUTOR=ray sweep
	$(BIN)/python -m ttlib.commands.sweep --size $(size) --executor $(call quoted,$(EXECUTOR)) $(if $(filter recompute scratch,$(MODE)),--mode $(mode)) $(if $(filter sweep,$(MAKECMDGOALS)),$(ARGS))

table1: $(STAMP) ## table 1 of what is finished, and what is missing
	$(BIN)/python -m ttlib.commands table1 --size $(size)

# jupytext shows the pages as notebooks; settings stay in the build folder, away from the user's own.
lab: export JUPYTER_CONFIG_DIR = $(CURDIR)/$(BUILD)/jupyter/config
lab: export JUPYTER_DATA_DIR = $(CURDIR)/$(BUILD)/jupyter/data
lab: export IPYTHONDIR = $(CURDIR)/$(BUILD)/jupyter/ipython
lab: $(STAMP) ## open the pages in JupyterLab
	mkdir -p "$$JUPYTER_CONFIG_DIR/labconfig"
	cp notebooks/lab.json "$$JUPYTER_CONFIG_DIR/labconfig/default_setting_overrides.json"
	$(BIN)/jupyter-lab --notebook-dir=notebooks $(ARGS)

test: $(STAMP) ## the tests
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(STAMP) ## the tests that train models for minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-cluster: $(STAMP)-cluster ## the tests that start a Ray cluster on this machine
	$(BIN)/python -m pytest -m cluster $(ARGS)

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .

gpu-check: $(STAMP) ## try size paper on a GPU for some minutes: speed, hours of a training, decisions beside the CPU's
	$(BIN)/python -m ttlib.commands.gpu_check

bench: $(STAMP) ## speed of planning and training on this machine, memory; make bench ARGS=--all: every row
	$(BIN)/python -m ttlib.commands.bench --size $(size) $(ARGS)
	$(BIN)/python -m ttlib.commands.bench_memory

tune: $(STAMP) ## search for settings on hopper; make tune ARGS=training, ARGS=ensemble, ARGS=levers: the other searches
	$(BIN)/python -m ttlib.commands.tuning $(or $(ARGS),hopper) --size $(size)

curve: $(STAMP) ## the scaling curve: models on more data and more tokens, hours each
	$(BIN)/python -m ttlib.commands curve --size $(size)

policies: $(STAMP)-policies ## train the behaviour policies anew, hours each: make policies ARGS="--task hopper"
	$(BIN)/python -m ttlib.commands.policies $(ARGS)

claims: $(STAMP) ## judge the paper's claims anew from the results: data/claims.toml and README.md
	$(BIN)/python -m ttlib.commands claims

ship: $(STAMP) ## put trained models and results where git keeps them
	$(BIN)/python -m ttlib.commands ship --size $(size) $(ARGS)

# One version of each package for every system and every Python from 3.11.0 on; this alone needs uv.
lock: ## write requirements.lock and environment.yml anew, with the newest versions
	uv pip compile -q --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate \
	--extra book --extra test --extra cluster --extra policies pyproject.toml | $(python) ttlib/commands/environment.py lock
	$(python) ttlib/commands/environment.py

clean: ## remove executed pages, the book and caches; data, models, figures and the environment stay
	rm -rf $(BUILD) .pytest_cache .ruff_cache .hypothesis
	find ttlib tests notebooks -name __pycache__ -prune -exec rm -rf {} +

INDEX = $(if $(TORCH_INDEX),--extra-index-url $(call quoted,$(TORCH_INDEX)))
ifneq ($(UV),)
new_venv = uv venv --python "$$(command -v $(python))" $(1)
install = uv pip install --python $(1)/bin/python $(INDEX) $(if $(INDEX),--index-strategy unsafe-best-match)
else
new_venv = @$(python) -c 'import ensurepip, venv' || { echo $(python) "cannot make environments: \
install its venv module (Debian, Ubuntu: apt install python3-venv) or uv, or name another with PYTHON=..."; exit 1; }; \
$(python) -m venv $(1)
install = $(1)/bin/python -m pip install --disable-pip-version-check $(INDEX)
endif

$(BIN)/python:
	@$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo $(python) "is missing or older than 3.11: name another, make PYTHON=python3.12 ..."; exit 1; }
	$(call new_venv,$(VENV))

# d4rl comes second and alone: see [tool.ttlib] in pyproject.toml. Its version is in the lock.
$(STAMP): | $(BIN)/python
	$(call install,$(VENV)) -c requirements.lock -e ".[book,test]"
	$(call install,$(VENV)) -c requirements.lock --no-deps d4rl
	@rm -f $(VENV)/.installed-*
	@touch $@

# Only `make policies`, and a sweep on Ray, need these. Names begin as the other's, so that new versions install all again.
$(STAMP)-policies $(STAMP)-cluster: $(STAMP)
	$(call install,$(VENV)) -c requirements.lock -e ".[$(lastword $(subst -, ,$@))]"
	@touch $@
