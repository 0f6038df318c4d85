# make demo   a land-cover map of the demo world: results/maps/demo.tif and results/reports/demo.html
# make test   the quick suite; make test-all the long one
# make servers  the STAC API that some tests talk to, in .venv-servers; it needs Debian's postgresql-15-postgis-3
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup servers demo test test-all lint bench clean-demo

setup: .venv/.ready

.venv/.ready: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

servers: .venv-servers/.ready

.venv-servers/.ready: tests/servers/requirements.txt
	test -x .venv-servers/bin/python || $(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

demo: setup
	$(BIN)/python -m covermap.lock
	$(BIN)/snakemake --cores all results/maps/demo.tif results/reports/demo.html

test: setup
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "not long"

test-all: setup
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check covermap tests benchmarks
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

bench: setup
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

clean-demo:
	rm -rf results resources/demo resources/scenes
