# Every target makes what it needs: `make demo` and `make test` want nothing but Python 3.11 or 3.12 and make.

# The first Python that really is 3.11 or 3.12; another one: make PYTHON=/path/to/python demo
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
LATEST := .venv-latest/bin

.PHONY: setup demo test test-quick test-slow check test-flink test-latest bench clean

setup: .venv/installed

demo: .venv/installed
	$(BIN)/python -m tools.demo_catalogue --output_dir=data
	$(BIN)/python -m pipeline.convert --runner=DirectRunner
	$(BIN)/python -m model.train --flagfile=demo.flags
	$(BIN)/python -m ensemble.combine --rule product --solution=data/solution.csv
	$(BIN)/python -m ensemble.combine --rule all --logits=runs/latest/logits/val
	$(BIN)/python -m ensemble.combine --rule all --logits=runs/latest/logits/test --solution=data/solution.csv
	$(BIN)/python -m tools.report --run_dir=runs/latest
	@echo
	@echo 'Made: data/ (the catalogue), data/shards/, and runs/demo/ with model.keras, history.csv, logits/,'
	@echo '      submission.csv.gz, the tables above (rules-val.csv, rules-test.csv), and the page runs/demo/report-val.html.'

test: .venv/installed
	$(BIN)/python -m pytest

# The same in two parts.
test-quick: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not flink"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The Beam jobs on real Flink: Java 17 and Maven, which downloads 150 MB of jars once.
test-flink: .venv/installed
	tools/flink.sh fetch
	$(BIN)/python -m pytest -m flink

# The newest TensorFlow, for which no tensorflow-io is built.
test-latest: .venv-latest/installed
	$(LATEST)/python -m pytest -m "not slow"

# Fifty-five minutes, 15 GB of disk; nothing else should run meanwhile.
bench: .venv/installed .venv-peers/installed
	$(BIN)/python -m tools.bench convert feed train combine serve --json=bench.json

.venv/installed: constraints.txt setup.cfg pyproject.toml
	$(call install,.venv,constraints.txt)
	touch $@

.venv-latest/installed: constraints-latest.txt setup.cfg pyproject.toml
	$(call install,.venv-latest,constraints-latest.txt)
	$(LATEST)/pip uninstall --quiet --yes tensorflow-io tensorflow-io-gcs-filesystem
	touch $@

# What the feed is held against: packages that the project itself must not need, so in an environment of their own.
.venv-peers/installed: constraints-peers.txt
	$(call environment,.venv-peers)
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --requirement constraints-peers.txt
	touch $@

# $(call install,ENVIRONMENT,CONSTRAINTS): all that demo, reports, tests and checks need, in the versions listed.
define install
	$(call environment,$(1))
	@echo 'installing into $(1): 3.4 GB, some minutes'
	PIP_CONSTRAINT=$(2) $(1)/bin/pip install --quiet --disable-pip-version-check --editable '.[demo,report,test]'
endef

# $(call environment,FOLDER): an empty one.
define environment
	@test -n "$(PYTHON)" || { echo 'error: no Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python'; exit 1; }
	$(PYTHON) -m venv --clear $(1)
endef

clean:
	rm -rf .venv .venv-latest .venv-peers .flink data runs
