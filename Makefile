# make demo · make test are the two commands; both set everything up first.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup sample-bundle demo test test-deep check protos bench bench-quick clean

setup: $(VENV)/.installed

# torch first and alone: any later resolution then finds it satisfied and fetches no second copy.
# -qq: errors only. Warnings about an index that has not this or that package are many, and none of them is news.
PIP := $(BIN)/pip install -qq --disable-pip-version-check

$(VENV)/.installed: pyproject.toml
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: $$($(PY) --version) is $(PY); Dure needs Python 3.11 or 3.12: make PY=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== setup 1/3: $(VENV), with $$($(PY) --version)"
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@echo "== setup 2/3: torch 2.13.0 (CPU), a wheel of about 200 MB; one copy, seconds to minutes by your line"
	@$(PIP) "torch==2.13.0"
	@echo "== setup 3/3: dure with all its extras, about a minute"
	@$(PIP) -e ".[coordinator,postgres,participant,demo,dev]"
	@touch $@
	@echo "== setup: done; $(BIN)/dure --help"

demo: setup
	@$(BIN)/dure demo

# A file at a time to a process, so that its consortium is founded once; slow files are first, and three processes keep two cores busy.
test: setup
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not deep" tests

test-deep: setup
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint protos
	@$(MAKE) -s protos && git diff --exit-code protos

protos: setup
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos --grpc_python_out=protos protos/dure_pb/v1/*.proto

# The numbers of docs/performance.md: quarter of an hour, on a machine that does nothing else.
sample-bundle: setup
	@$(BIN)/python -m dure_demo.sample

bench: setup
	@$(BIN)/python bench/everything.py

bench-quick: setup
	@$(BIN)/python bench/everything.py --quick

clean:
	rm -rf $(VENV) .demo .bench sample-bundle
