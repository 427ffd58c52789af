# The developer interface; `make help` lists it. Every target installs what it needs, once.

PYTHON ?=
ARGS ?=
# More than the cores, because tests often wait.
WORKERS ?= 4

# PYTHON selects a Python for the tests, which get their own virtual environment. Otherwise .venv is used.
VENV := $(if $(PYTHON),.venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null),.venv)
PIP := bin/python -m pip --disable-pip-version-check --quiet install

.PHONY: help run test torture tools screenshots check bench bench-page eta pdf format clean

help:
	@echo 'make run      start the daemon on http://127.0.0.1:8080/ and convert a scan (ARGS="--port 8081")'
	@echo 'make test     run the tests (ARGS="-k name"; WORKERS=0: one by one; PYTHON=/usr/bin/python3: another Python)'
	@echo 'make torture  run the tests that take minutes (ARGS="tests/torture --rounds 1000 --seed 1")'
	@echo 'make tools    run rsync, tar, ffmpeg and other tools with and without progressd; write the table in docs/commands.md'
	@echo 'make screenshots  take pictures of the page in its states into screenshots/, and the picture of the README'
	@echo 'make check    check format, lint, types and layers'
	@echo 'make bench    measure against other servers (ARGS="--help")'
	@echo 'make bench-page  measure the page over 10,000 running jobs in Chromium (ARGS="--help")'
	@echo 'make eta      measure the estimates of the remaining time with recorded runs (ARGS="--write")'
	@echo 'make pdf      compare the PDF pipeline with OCRmyPDF (ARGS="--write")'
	@echo 'make format   format the code'
	@echo 'make clean    remove what these made, except the jobs in progressd-data'

run: .venv/.daemon
	@.venv/bin/python scripts/run.py $(ARGS)

# Empty, so that the many processes of the tests do not compile the sources each time.
test torture tools screenshots: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.tests
	@scripts/system-packages.sh
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

torture: $(VENV)/.tests
	@scripts/system-packages.sh
	$(VENV)/bin/python -m pytest -m torture $(ARGS)

tools: $(VENV)/.tests
	@scripts/system-packages.sh tools
	@$(VENV)/$(PIP) --group tools
	$(VENV)/bin/python -m pytest -m tools $(ARGS)

screenshots: $(VENV)/.tests
	@scripts/system-packages.sh
	$(VENV)/bin/python -m pytest -m screenshots $(ARGS)

check: .venv/.checks .venv/.tests
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/python -m pytest --quiet tests/core/test_layers.py

bench: .venv/.daemon
	@.venv/bin/python -m benchmarks $(ARGS)

eta: .venv/.daemon
	@.venv/bin/python -m benchmarks.eta $(ARGS)

bench-page: .venv/.tests
	@scripts/system-packages.sh bench-page
	@.venv/bin/python -m benchmarks.page $(ARGS)

pdf: .venv/.tests
	@scripts/system-packages.sh
	@.venv/bin/python -m benchmarks.pdf $(ARGS)

format: .venv/.checks
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean:
	rm -rf .venv .venv-* benchmarks/.venv benchmarks/.build .hypothesis .mypy_cache .pytest_cache .ruff_cache dist
	find daemon tests scripts -name __pycache__ -prune -exec rm -rf {} +

%/.daemon: pyproject.toml
	@scripts/venv.sh $* $(PYTHON)
	@echo 'Installing progressd into $* …'
	@$*/$(PIP) --editable '.[pdf]'
	@touch $@

%/.tests: %/.daemon
	@echo 'Installing what the tests need into $* …'
	@$*/$(PIP) 'pip>=25.1'
	@$*/$(PIP) --group test
	@touch $@

%/.checks: %/.daemon
	@echo 'Installing what the checks need into $* …'
	@$*/$(PIP) 'pip>=25.1'
	@$*/$(PIP) --group check
	@touch $@

.PRECIOUS: %/.daemon %/.tests %/.checks
