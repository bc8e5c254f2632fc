# Everything runs from here: `make help` lists it. The first target that needs the environment makes it, in .venv.
# What else a target's commands get: ARGS (pytest), TRAIN and EVALUATE (quickstart), DEGRADATION and SPEED (bench).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help docs setup quickstart photographs test tutorials test-slow test-xla test-installed test-extras golden lint format \
  bench bench-gpu lock lock-xla wheel clean

VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 2
DIST := dist
DATASETS ?= $(or $(RESTORE_LAB_DATASETS),datasets)
INSTALLED := $(VENV)/.installed
XLA := .venv-xla
COMPILE = @$(call index,$(PY)); $(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade --no-header --no-annotate \
  --no-emit-index-url --quiet

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make the environment in .venv from requirements.lock

# A Python of 3.11 or newer, with the venv module.
$(PY) $(XLA)/bin/python: %/bin/python:
	@for name in python3 python3.13 python3.12 python3.11; do \
	  if command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$name; break; fi; done; \
	if [ -z "$$found" ]; then echo "make setup: needs Python 3.11 or newer on the PATH (python3 is missing or older)" >&2; exit 1; fi; \
	$$found -m venv $* || { rm -rf $*; echo "make setup: '$$found -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(INSTALLED): requirements.lock pyproject.toml | $(PY)
	$(call install,$(VENV),requirements.lock)

$(XLA)/.installed: requirements-xla.lock pyproject.toml | $(XLA)/bin/python
	$(call install,$(XLA),requirements-xla.lock)

# uv gets the index that pip ($1's) is set up for.
index = if [ -z "$$UV_DEFAULT_INDEX$$UV_INDEX_URL" ] && index=$$($1 -m pip config get global.index-url 2>/dev/null); \
  then export UV_DEFAULT_INDEX="$$index"; fi

# The packages of a lock ($2) and this one into an environment ($1).
define install
	@$1/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(call index,$1/bin/python); \
	echo "installing $$(grep -c '==' $2) packages (about 3 GB to download the first time)"; \
	$1/bin/python -m uv pip install --quiet --python $1/bin/python -r $2 && \
	$1/bin/python -m uv pip install --quiet --python $1/bin/python --no-deps -e .
	@touch $1/.installed
endef

quickstart: setup ## Train SPIRE and restore real photographs, with a picture and a table at the end
	$(VENV)/bin/restore-lab train experiment=spire/quickstart run_dir=runs/quickstart/adaptor $(TRAIN)
	$(VENV)/bin/restore-lab evaluate experiment=spire/quickstart_photos $(EVALUATE)

photographs: setup ## Fetch free photographs from Debian packages and cut them into tiles to train on (datasets/)
	$(VENV)/bin/restore-lab data photographs output=$(DATASETS)/photographs_free $(ARGS)

test: setup ## Run the unit and contract rings (no network)
	$(PY) -m pytest -m "not slow and not tutorial and not installed" -n $(WORKERS) --dist worksteal $(ARGS)

tutorials: setup ## Follow docs/tutorials/: run what they say, compare with what they show
	$(PY) -m pytest -m tutorial -n $(WORKERS) tests/tutorials $(ARGS)

test-slow: setup ## Run the slow ring: the full product, trained behaviour
	$(PY) -m pytest -m "slow and not installed" $(ARGS)

test-installed: setup ## Build wheel and sdist, install each into a fresh environment, and use it (gets packages)
	@$(call index,$(PY)); $(PY) -m pytest -m "installed and not slow" tests/installed $(ARGS)

test-extras: setup ## Use every extra in the installed wheel, and run the targets that get packages (gets them)
	@$(call index,$(PY)); $(PY) -m pytest -m "installed and slow" tests/installed $(ARGS)

golden: setup ## Compare losses, latents and counts with the committed ones, or bit for bit with those of base=COMMIT
	$(PY) -m tests.golden.net $(if $(base),--base $(base)) $(ARGS)

test-xla: $(XLA)/.installed ## Run the tests of trainer=tpu on XLA's CPU device, in an environment of their own
	PJRT_DEVICE=CPU $(XLA)/bin/python -m pytest tests/xla $(ARGS)

lint: setup ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: setup ## Format the code and sort its imports
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## Time the degradation against BasicSR's, steps against diffusers', at toy size (runs/speed/)
	$(PY) -m benchmarks.degradation $(DEGRADATION)
	$(PY) -m benchmarks.speed $(SPEED)

bench-gpu: setup ## Time steps at the size of SD 1.5, SDXL and SD3 in bfloat16 on a CUDA device, eager and compiled
	$(PY) -m benchmarks.speed --device cuda --scale full --output runs/speed_gpu $(SPEED)
	$(PY) -m benchmarks.speed --device cuda --scale full --compile --parts comparison --output runs/speed_gpu_compiled $(SPEED)

lock: setup ## Write requirements.lock anew from pyproject.toml
	$(COMPILE) --extra iqa --extra systems --extra wandb --extra figures --extra dev --extra quant --extra demo --extra tensorboard \
	  --output-file requirements.lock

lock-xla: setup ## Write requirements-xla.lock, torch-xla with the torch that it wants
	$(COMPILE) --extra tpu --extra dev --output-file requirements-xla.lock

docs: setup ## Build the site into dist/site, in an environment of its own
	@$(call index,$(PY)); test -x .venv-docs/bin/mkdocs || { $(PY) -m venv .venv-docs && $(PY) -m uv pip install --quiet --python .venv-docs/bin/python \
	  'mkdocs-material>=9.6,<10' 'mkdocstrings[python]>=0.29'; }
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

wheel: setup ## Build the wheel and the sdist into dist/
	@$(call index,$(PY)); $(PY) -m uv build --quiet --out-dir '$(DIST)'

clean: ## Remove caches and built files; runs/ and the environments stay
	rm -rf dist build .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
