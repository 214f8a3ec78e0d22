# make demo | test | test-fast | docs-check | test-bounds | templates | lint | bench | bench-gpu | front-end. The first call creates .venv; later calls only check it.
PYTHON ?= python3
PYTEST_ARGS ?=
# Two processes of one thread each suit the two cores of a small machine; files stay together (servers are per process).
TEST_WORKERS ?= 2
BENCH_ARGS ?=
KIND ?= sd15
YES ?=

ifeq ($(OS),Windows_NT)
VENV_PYTHON := .venv/Scripts/python.exe
else
VENV_PYTHON := .venv/bin/python
endif

.PHONY: env demo test test-fast docs-check test-bounds templates lint bench bench-gpu front-end clean

env:
	@$(PYTHON) tools/environment.py

demo: env
	@$(VENV_PYTHON) -m testtime demo

test: export OMP_NUM_THREADS := 1
test: env
	@$(VENV_PYTHON) tools/run_tests.py -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# What one wants to know between two edits: no ComfyUI, no browser, nothing that takes long.
test-fast: export OMP_NUM_THREADS := 1
test-fast: env
	@$(VENV_PYTHON) -m pytest tests/unit -m "not slow and not docs and not host and not browser" -q --durations=10 --durations-min=2 \
		-n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Prose and generated files: README, help pages, workflows, tables. `make test` runs them, too.
docs-check: export OMP_NUM_THREADS := 1
docs-check: env
	@$(VENV_PYTHON) -m pytest -m docs -q $(PYTEST_ARGS)

# The fast tests at both ends of the bounds in pyproject.toml; large downloads. Its table goes to CONTRIBUTING.md.
test-bounds: env
	@$(VENV_PYTHON) tools/bounds.py

# Our conversion of workflows against the front end's, on the official templates; its table goes to docs/conversion.md.
templates: env
	@$(VENV_PYTHON) tools/templates.py --fetch --write

lint: env
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) tools/check_types.py
	@$(VENV_PYTHON) tools/lint_web.py

bench: env
	@$(VENV_PYTHON) -m testtime bench shapes --out out/bench/shapes.json $(BENCH_ARGS)

# Published tables on a GPU: says what it will cost, asks, then runs. MODEL=folder KIND=sd15|sdxl|infinity-2b [YES=--yes]
bench-gpu: env
	@$(VENV_PYTHON) -m testtime bench gpu $(MODEL) --kind $(KIND) $(YES) $(BENCH_ARGS)

# The newest front end beside the one that ComfyUI pins; host tests then run in both.
front-end: env
	@$(VENV_PYTHON) tools/front_end.py

clean:
	rm -rf out build *.egg-info .pytest_cache .ruff_cache
