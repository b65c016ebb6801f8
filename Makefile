# Everything runs in .venv, which is made on first use: by uv where it is installed, else by venv and pip.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Where the demo scenes are written (see fcn_smp/data/demo.py).
SCENES := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fcn_smp/demo-scenes-v1

.PHONY: demo test kill-test bench encoders docs docs-serve check format constraints clean help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(STAMP) ## Train on drawn scenes, score and predict held-out ones (one minute)
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/fcn-smp train recipes/demo.yaml --output $$run && \
	$(BIN)/fcn-smp eval $$run --split test && \
	$(BIN)/fcn-smp predict $$run "$(SCENES)/JPEGImages/test_*.jpg" --output $$run/predictions && \
	echo && \
	echo "run directory   $$run" && \
	echo "the report      $$run/report.html (opens in any browser)" && \
	echo "while training  $$run/samples/*.png (image, truth, prediction)" && \
	echo "held-out scenes $$run/predictions/*_overlay.jpg, the worst of them $$run/eval/test/worst.png"

test: $(STAMP) ## Run the whole test suite
	$(BIN)/python -m pytest

kill-test: $(STAMP) ## Kill training runs 20 times for each number of processes, and resume them (two minutes)
	FCN_SMP_KILLS=20 $(BIN)/python -m pytest tests/test_resume.py -k killed

check: $(STAMP) ## Check format, style, types and the direction of dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Print the tables of docs/explained/alignment.md (15 minutes; FCN_SMP_DATA has the masks)
	$(BIN)/python benchmarks/upper_bounds.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/alignment.py

encoders: $(STAMP) ## Try every model of timm as an encoder and write docs/reference/encoders.md (hours; goes on if interrupted)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/encoders.py try --shard 0/2 & \
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/encoders.py try --shard 1/2 && wait
	$(BIN)/python benchmarks/encoders.py table

docs: $(STAMP) ## Write the reference from the code and build the site into site/, strictly
	$(BIN)/python docs/reference/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "the site        site/index.html (make docs-serve shows it as it is meant)"

docs-serve: $(STAMP) ## Serve the site at http://127.0.0.1:8000, anew after each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade --generate-hashes \
	    --no-header --no-annotate --no-emit-index-url --output-file constraints.txt

clean: ## Remove the virtual environment and caches; runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12 ..."; exit 2; }
	@if command -v uv >/dev/null; then \
	    set -e; \
	    test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv; \
	    uv pip install --quiet --python $(BIN)/python --require-hashes -r constraints.txt; \
	    uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	else \
	    set -e; \
	    test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	fi
	@touch $@
