# make demo · make test are the two commands; both set everything up first.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-deep check protos bench clean

setup: $(VENV)/.installed

# torch first and alone: any later resolution then finds it satisfied and fetches no second copy.
$(VENV)/.installed: pyproject.toml
	@echo "== setup: making $(VENV) and installing Dure (torch is a 200 MB wheel; about a minute)"
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@echo "== setup: torch 2.13.0 (CPU)"
	@$(BIN)/pip install -q "torch==2.13.0"
	@echo "== setup: dure[coordinator,participant,demo,dev]"
	@$(BIN)/pip install -q -e ".[coordinator,participant,demo,dev]"
	@touch $@

demo: setup
	@$(BIN)/dure demo

test: setup
	@$(BIN)/python -m pytest -n 2 -m "not deep" tests

test-deep: setup
	@$(BIN)/python -m pytest -n 2 tests

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint protos
	@$(MAKE) -s protos && git diff --exit-code protos

protos: setup
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos --grpc_python_out=protos protos/dure_pb/v1/*.proto

clean:
	rm -rf $(VENV) .demo
