# Every target sets up what it needs first. As root or as a normal user.
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help demo test fuzz check format schema bench clean

help:
	@echo "make demo     show a program in a box: what it reached, what was denied, and the record of both"
	@echo "make test     run the tests"
	@echo "make fuzz     look for inputs that break a parser: make fuzz TARGET=client_hello SECONDS=3600"
	@echo "make check    lint, format, types, floors"
	@echo "make format   format the code"
	@echo "make schema   write configs/policy.schema.json anew from the model"
	@echo "make bench    measure"
	@echo "make clean    remove the environment"

$(VENV)/.ready: pyproject.toml scripts/setup tests/clients/node/package-lock.json
	@./scripts/setup $(VENV)

demo: $(VENV)/.ready
	@$(BIN)/python -m tests.lab.demo

test: $(VENV)/.ready
	@$(BIN)/python -m tests.containers.prepare
	@$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests)

fuzz: $(VENV)/.ready
	@$(BIN)/python -m tests.fuzz $(or $(TARGET),--help) --seconds $(or $(SECONDS),60)

check: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_floors.py

format: $(VENV)/.ready
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format .

schema: $(VENV)/.ready
	@$(BIN)/python -c "import json; from box_policy.policy.model import json_schema; print(json.dumps(json_schema(), indent=2))" > configs/policy.schema.json

bench: $(VENV)/.ready
	@$(BIN)/python -m benchmarks.policy
	@$(BIN)/python -m benchmarks.box_start
	@$(BIN)/python -m benchmarks.lane
	@$(BIN)/python -m benchmarks.live
	@$(BIN)/python -m benchmarks.service

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
