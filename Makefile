# The environment is made on first use: every target below works in a fresh clone by itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PROTOS := $(wildcard proto/slos_serve/v1/*.proto)
# Passed on to pytest, for example: make test ARGS="-k hand_over -x"
ARGS ?=
# Processes that run tests beside each other; 0: one, which a debugger can stop.
WORKERS ?= 2
# The revision that the protocol is compared with. Default: the first that has this version of it.
AGAINST ?=

# protoc finds its mypy plugins, and tests find slos-serve, on the path.
export PATH := $(BIN):$(PATH)

.PHONY: help setup demo test test-tools outside check static lint-proto proto breaking bench mutants fuzz docs pictures reference lock clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make the virtual environment (once; says how far it is)
	@deploy/install.sh $(VENV) requirements/dev.lock

demo: setup ## Start a cluster, and show in four acts what its promises are
	@slos-serve demo

test: setup ## Run every test that needs no GPU, in two processes beside each other
	pytest -q -n $(WORKERS) -m "not gpu" $(ARGS)

test-tools: ## Install Chromium and Prometheus for the tests that look for them (root, apt-get)
	@deploy/test-tools.sh

# Tools that want a Python or packages of their own; PYTHON312 names the interpreter.
PYTHON312 ?= python3.12
OUTSIDE := $(abspath $(VENV))-outside

outside: setup ## Install inference-perf and guidellm beside, and run every outside client's test
	test -x $(OUTSIDE)/perf/bin/inference-perf || { uv venv -q -p $(PYTHON312) $(OUTSIDE)/perf; \
		uv pip install -q -p $(OUTSIDE)/perf/bin/python inference-perf==0.7.0; }
	test -x $(OUTSIDE)/llm/bin/guidellm || { uv venv -q -p $(PYTHON312) $(OUTSIDE)/llm; \
		uv pip install -q -p $(OUTSIDE)/llm/bin/python guidellm==0.8.1; }
	INFERENCE_PERF=$(OUTSIDE)/perf/bin/inference-perf GUIDELLM=$(OUTSIDE)/llm/bin/guidellm \
		pytest tests/cluster/test_outside_clients.py tests/cluster/test_real_outside_clients.py $(ARGS)

check: static ## Format, lint, types, imports, protocol, unit tests: what is quick
	pytest -q -n $(WORKERS) -m "not engine and not cluster and not gpu" $(ARGS)

static: setup lint-proto docs ## The part of check that runs no code of ours
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache

lint-proto: setup
	buf lint proto

proto: setup ## Generate slos_serve/v1 from proto/
	python -m grpc_tools.protoc -I proto --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. $(PROTOS)

breaking: setup ## Refuse changes of the protocol that break its users
	@deploy/check-breaking.sh $(AGAINST)

docs: setup ## Build the documentation into .slos-serve/site, without the network
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

reference: setup ## Write the parts of docs/ that are made from code
	python -m cli.reference

# make fuzz N=1000000 SEED=2 goes on where it stopped; findings and progress are in .slos-serve/fuzz-SEED.
N ?= 20000
fuzz: setup ## Send mutated input to everything that reads what others wrote (N=20000: minutes; goes on where it stopped)
	python -m tests.fuzz --messages $(N) --seed $(or $(SEED),1) --directory .slos-serve/fuzz-$(or $(SEED),1)

# make mutants AREA=attainment SAMPLE=40 SEED=2, AGAIN=1 (what survived last time), or LISTED=1: see CONTRIBUTING.md.
mutants: setup ## Change the code in small ways and list the changes no unit test notices (hours; SAMPLE=40: minutes)
	nice python -m tests.mutation $(if $(LISTED),--listed "$(filter-out 1,$(LISTED))") $(AREA:%=--area %) \
		$(SAMPLE:%=--sample %) $(SEED:%=--seed %) $(if $(AGAIN),--again)

bench: setup ## Measure hand-over, idle cost and the performance model's error
	@mkdir -p .slos-serve
	slos-serve bench handover --json .slos-serve/handover.json
	slos-serve bench idle --json .slos-serve/idle.json
	slos-serve bench steps --json .slos-serve/steps.json

pictures: setup ## Take the pictures of docs/images from an emulated cluster and from a demo (eight minutes)
	python -m tests.pictures
	python -m tests.pictures.demo

# Sources beyond the default index come from uv's own environment variables: torch==...+cpu needs UV_FIND_LINKS (a
# directory with its wheel) or UV_TORCH_BACKEND=cpu. UPGRADE=--upgrade takes the newest of everything.
UPGRADE ?=
RESOLVE := uv pip compile pyproject.toml requirements/build.in --quiet --no-header --no-annotate \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 $(UPGRADE)
CPU := --overrides requirements/overrides.txt

lock: setup ## Resolve requirements/*.lock again from pyproject.toml
	$(RESOLVE) $(CPU) --extra router --extra gateway --extra worker-cpu --extra plots --extra load --extra dev -o requirements/dev.lock
	$(RESOLVE) $(CPU) --extra router -c requirements/dev.lock -o requirements/router.lock
	$(RESOLVE) $(CPU) --extra gateway -c requirements/dev.lock -o requirements/gateway.lock
	$(RESOLVE) $(CPU) --extra worker-cpu -c requirements/dev.lock -o requirements/worker-cpu.lock
	env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(RESOLVE) --overrides requirements/overrides-cuda.txt \
		--extra worker-cuda -c requirements/router.lock -o requirements/worker-cuda.lock

clean: ## Remove the environment and everything generated outside of git
	rm -rf $(VENV) $(VENV)-outside .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info slos_serve/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
