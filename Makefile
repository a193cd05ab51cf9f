# Each target makes its own environment in .venv; nothing but Python 3.10+ and make is needed
# (a Debian without the venv module also needs apt, as root or through sudo).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
#: How many tests run side by side: more than cores, for most of them wait for a worker.
JOBS ?= 6
SPREAD = --numprocesses $(JOBS) --dist worksteal
#: What pytest runs, e.g. make test TESTS="tests/unit -k protocol"
TESTS ?=
#: How long each target of the fuzzer runs, in seconds.
FUZZ_SECONDS ?= 60
#: Arguments of the simulation, e.g. make simulate SIMULATE="--seeds 1000", "--seed 7" for a timeline
SIMULATE ?=
#: Arguments of a chaos run, e.g. make chaos CHAOS="--seconds 600 --seed 7"
CHAOS ?=
#: Arguments of a soak, e.g. make soak SOAK="--minutes 60 --broker redis --store redis"
SOAK ?=
#: Celery's test files, e.g. make upstream UPSTREAM=t/integration/test_canvas.py
UPSTREAM ?=
#: Arguments of the benchmarks.
BENCH ?=
#: What the proof takes, e.g. make proof PROOF="--store redis --operations 10000 --seed 7"
PROOF ?=
CONSTRAINTS := tests/constraints.txt
PACKAGE := pyproject.toml $(CONSTRAINTS)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

#: The supported versions of Celery, the oldest first; each is tested with kombu and redis-py of its
#: time.
CELERIES := 5.4 5.5 5.6 5.7
OLDEST := .venv-celery-$(firstword $(CELERIES))

#: Debian packages of what the tests start for themselves: servers, and the checker of the model.
SERVERS := redis-server postgresql pgbouncer rabbitmq-server spin gcc libc6-dev
#: No server of the system's own is started by installing it.
APT := env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get

# A thousand workers are started: each would compile the package and the tests again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-needs test-oldest test-versions proof simulate chaos chaos-peers soak upstream lint format fuzz bench bench-quick numbers docs servers clean
.DELETE_ON_ERROR:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Kill a worker in mid-task and watch another take over (under two minutes)
	@$(BIN)/python examples/quickstart/demo.py

test:  ## Lint, then run all tests and show the slowest
	@$(MAKE) --no-print-directory --jobs=3 test-needs
	$(BIN)/python -m pytest $(SPREAD) $(TESTS)
	$(if $(TESTS),,@$(MAKE) --no-print-directory test-oldest)

# What the tests need is made side by side: most of it waits for downloads.
test-needs: lint servers $(if $(TESTS),,$(OLDEST)/.dev)

test-oldest: $(OLDEST)/.dev  ## Try what is worn thinnest on the oldest supported Celery
	$(OLDEST)/bin/python -m pytest $(SPREAD) -m oldest tests/unit tests/worker

test-versions: servers $(CELERIES:%=test-celery-%)  ## Run all tests on each supported Celery (half an hour)

test-celery-%: .venv-celery-%/.dev
	.venv-celery-$*/bin/python -m pytest $(SPREAD) $(TESTS)

proof: servers $(VENV)/.dev  ## Prove every store linearizable while everything breaks (half an hour)
	$(BIN)/python -m tests.proof.run $(PROOF)
	$(if $(PROOF),,HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest $(SPREAD) --timeout 0 tests/stores -k AgainstTheModel)

simulate: $(VENV)/.dev  ## Simulate workers through 5,000 seeds of faults (two minutes)
	$(BIN)/python -m tests.simulation $(SIMULATE)

chaos: servers $(VENV)/.dev  ## Kill, freeze and cut off real workers, and count what is lost (minutes)
	$(BIN)/python -m tests.chaos --broker redis $(CHAOS)
	$(BIN)/python -m tests.chaos --broker rabbitmq --store postgresql $(CHAOS)

chaos-peers: servers $(VENV)/.peers  ## The same without claims, and with packages that lock, in one table
	$(BIN)/python -m tests.chaos --all --seconds 60 --rest 60 $(CHAOS)

soak: servers $(VENV)/.dev  ## Keep workers busy for an hour, and see whether anything grows
	$(BIN)/python -m tests.soak $(SOAK)

upstream: servers $(VENV)/.upstream  ## Run Celery's own integration tests, with every task claimed and without
	$(BIN)/python -m tests.upstream $(UPSTREAM)

lint: $(VENV)/.dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(VENV)/.fuzz  ## Look for input that breaks it, ten minutes long (FUZZ_SECONDS=60 for each target)
	@mkdir -p .fuzz; for target in messages settings options urls commands \
	  rows finished sqlite_rows postgres_rows cursors; do \
	  echo "== $$target"; \
	  $(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) -verbosity=0 \
	    -print_final_stats=1 -artifact_prefix=.fuzz/$$target- || exit 1; \
	done

bench: $(VENV)/.bench servers  ## Measure what claims cost, as ratios (BENCH="--only redis --pairs 9")
	@mkdir -p .bench
	$(BIN)/python -m benchmarks --json .bench/figures.json --plots .bench $(BENCH)

bench-quick: $(VENV)/.bench servers  ## See that every measurement works; its figures say little
	$(BIN)/python -m benchmarks --quick $(BENCH)

numbers: $(VENV)/.dev servers  ## Count runs and overlaps on Redis and RabbitMQ, with claims and without
	$(BIN)/python -m benchmarks.promises

docs: $(VENV)/.docs  ## Build the documentation; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Without apt the tests of what is missing are left out, and fail in CI.
# After the environment, which may need apt as well: of two at once, one fails.
servers: | $(BIN)/python  ## Install the servers that the tests start, where apt can
	@command -v dpkg-query >/dev/null || exit 0; missing=; \
	for each in $(SERVERS); do \
	  dpkg-query -W -f '$${Status}' $$each 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$each"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	sudo=; [ "$$(id -u)" -eq 0 ] || sudo=sudo; \
	$$sudo $(APT) update -qq && \
	$$sudo $(APT) install -y -qq --no-install-recommends $$missing >/dev/null

clean:  ## Remove what the other targets made
	rm -rf $(VENV) .venv-celery-* docs/_build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz .bench

# ensurepip is what Debian leaves out of its python3; asking for it first avoids a half-made .venv.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  command -v apt-get >/dev/null || { echo "$(PYTHON) has no venv module: install it" >&2; exit 1; }; \
	  sudo=; [ "$$(id -u)" -eq 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(PACKAGE) | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(PACKAGE) | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@

.PRECIOUS: .venv-celery-%/.dev
.venv-celery-%/.dev: $(PACKAGE) | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	grep -vE '^(celery|kombu|redis)==' $(CONSTRAINTS) > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(@D)/constraints.txt --editable '.[dev]' 'celery[redis]==$*.*' 'kombu[redis]==$*.*'
	@touch $@

$(VENV)/.fuzz: $(PACKAGE) | $(BIN)/python
	$(PIP) --editable '.[fuzz]'
	@touch $@

# What claims are compared with; installed for nothing else.
$(VENV)/.peers: benchmarks/peers.txt $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

$(VENV)/.upstream: tests/upstream/requirements.txt $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/upstream/requirements.txt
	@touch $@

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@touch $@

$(VENV)/.docs: $(PACKAGE) | $(BIN)/python
	$(PIP) --editable '.[docs]'
	@touch $@
