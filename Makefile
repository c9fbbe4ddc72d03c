# make demo    see it work: one command on a bare machine, no key, no bill
# make up      keep it running here; log in with the link it prints
# make test    every test; installs and starts what they need
# make check   what CI checks before the tests, in seconds
# make fix     what of that a program can mend
# make bench   the figures, each beside this machine's own floor (ONLY=name runs one)
# make chaos   runs while parts are killed, stopped and cut off; counts what was lost (RUNS, MINUTES, SEED, DATABASE, ENGINE=1)
# make image   the sandbox image (BASE_IMAGE=debian:bookworm-slim names a base from a registry)

BIN := .venv/bin
# Compiled once, not by each of the hundreds of processes that the tests start, also where the environment forbids it.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := help
.PHONY: help setup venv image demo up down test check fix bench chaos

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

venv:
	@.ci/machine venv

image: venv
	@.ci/machine engine image

setup: venv image

demo: setup
	@$(BIN)/python examples/demo.py

up: setup
	@$(BIN)/agentfleet up

down:
	@$(BIN)/agentfleet down

test: setup
	@.ci/machine services browser
	@$(BIN)/python -m tests.run $(ARGS)

check: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .
	@$(BIN)/lint-imports
	@AGENTFLEET_HOME=$$(mktemp -d) $(BIN)/python manage.py makemigrations --check --dry-run

fix: venv
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup
	@.ci/machine services browser
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY))

chaos: setup
	@.ci/machine services
	@$(BIN)/python -m chaos --runs $(or $(RUNS),500) --minutes $(or $(MINUTES),5) --seed $(or $(SEED),1) \
		--database $(or $(DATABASE),sqlite) --fault-every $(or $(FAULT_EVERY),5) $(if $(ENGINE),--engine)
