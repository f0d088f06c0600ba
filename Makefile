# Everything starts from nothing but Python 3 (3.10 or later) and make; each target sets up what it needs in .venv.
#
#     make demo          the agent on a real program that really deadlocks
#     make test          all tests that need no other program
#     make test-python-core  the contract and the random programs on the Python core, where the C core is built
#     make lint          ruff, mypy --strict, C warnings as errors
#     make test-servers  the tests that need a real Prometheus, Alertmanager, Redis, gunicorn under load ...
#     make matrix        unit, contract and acceptance tests on the other interpreters
#     make sanitize      the C core under ASan, UBSan and TSan, failed allocations, leaks (minutes)
#     make coverage      branch coverage of the agent
#     make bench         all benchmarks, beside their goals: benchmarks/RESULTS.md (a quiet machine)
#
# PYTHON=/path/to/python chooses the interpreter of .venv; PYTHONS="python3.10 python3.13" those of the matrix and of bench.

VENV ?= .venv
BIN := $(VENV)/bin
# Six processes, also on two cores: the acceptance tests spend their time waiting for child processes.
WORKERS ?= 6
PYTEST_ARGS ?=
QUICK := tests/unit tests/contract tests/acceptance
# No clock, no state, no I/O: nothing in them may go untested.
PURE := agent/config.py,agent/errors.py,agent/explain.py,agent/graph.py,agent/ledger.py,agent/lockorder.py,agent/model.py,agent/optiontypes.py,agent/recovery.py,agent/suppressions.py,agent/detectors/*
# Only folders that are there: pytest takes a missing one for an error.
ALL := $(wildcard tests/unit tests/contract tests/acceptance tests/integration)

.PHONY: demo test test-python-core lint lint-c types test-servers matrix sanitize coverage bench bench-check clean

demo:
	@.ci/venv $(VENV) -e . $(if $(wildcard examples/requirements.txt),-r examples/requirements.txt)
	$(BIN)/python examples/demo.py

# The script, not `python -m pytest`: that one would make a second copy of hooks/ importable.
test:
	@.ci/venv $(VENV) -e '.[test]'
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m 'not server' $(PYTEST_ARGS) $(ALL)

# `make test` runs on the C core where there is a compiler; the twin must pass the same contract and the same random programs.
# The acceptance tests are not among them: they start their programs with the core that a user would get.
test-python-core:
	@.ci/venv $(VENV) -e '.[test]'
	CONCAGENT_CORE=python $(BIN)/pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS) tests/contract tests/integration/test_random_programs.py

test-servers:
	@.ci/venv $(VENV) -e '.[test,servers]' || { \
	  echo 'test-servers: gunicorn, Celery ... cannot be installed here; their tests are skipped' >&2; .ci/venv $(VENV) -e '.[test]'; }
	$(BIN)/pytest -q -m server $(PYTEST_ARGS) $(wildcard tests/integration tests/acceptance)

lint: types lint-c
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Headers of CPython are not ours to judge; clang-format comes from PyPI.
lint-c:
	@.ci/venv $(VENV) -e '.[test,lint]'
	$(BIN)/clang-format --dry-run -Werror agent/_core*.c agent/_core*.h
	@if command -v $(CC) >/dev/null; then for file in agent/_core*.c; do \
	  $(CC) -std=c11 -O2 -Wall -Wextra -Werror -fsyntax-only -I$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))') $$file || exit 1; \
	done; else echo 'no C compiler: C warnings not looked at'; fi

# mypy finds packages by folders, and ours are named differently: show it the house as it is imported.
types:
	@.ci/venv $(VENV) -e '.[test,lint]'
	@rm -rf build/types && mkdir -p build/types/concagent
	@ln -s $(addprefix $(CURDIR)/,$(wildcard agent/*.py agent/*.pyi agent/py.typed agent/detectors hooks exporters)) build/types/concagent/
	MYPYPATH=build/types $(BIN)/mypy --strict -p concagent

matrix:
	@PYTEST_ARGS='$(PYTEST_ARGS)' WORKERS=$(WORKERS) .ci/matrix $(wildcard $(QUICK))

sanitize:
	@.ci/venv $(VENV) -e '.[test]'
	PYTHON=$(BIN)/python .ci/sanitize

coverage:
	@.ci/venv $(VENV) -e '.[test]'
	rm -f build/.coverage*
	COVERAGE_FILE=build/.coverage $(BIN)/pytest -q -n $(WORKERS) -m 'not server' --cov --cov-report=term-missing $(PYTEST_ARGS) $(ALL)
	COVERAGE_FILE=build/.coverage $(BIN)/coverage report --include=$(PURE) --fail-under=100

# By hand and at night, on a quiet machine, on each interpreter of PYTHONS; benchmarks/README.md has the commands.
BENCH_ARGS ?=

bench:
	@PYTHONS='$(PYTHONS)' .ci/bench $(BENCH_ARGS)

bench-check:
	@PYTHONS='$(PYTHONS)' .ci/bench --check $(BENCH_ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis $(VENV) .venv-*
