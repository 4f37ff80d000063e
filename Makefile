# Two commands: `make paper` executes every chapter, `make test` checks everything. Both set up their own environment first.
PYTHON   ?= python3
VENV     ?= .venv
PRESET   ?= auto
CHAPTERS ?=
ONLY     ?=
SEEDS    ?=
DOWNLOAD ?=
CLUSTER  ?=
BIN       = $(VENV)/bin
RUN       = PATH="$(abspath $(BIN)):$$PATH"

.PHONY: paper test attack lab explorer bench readme site clean

paper: $(VENV)/.ready
	$(RUN) python -m pixelreg paper --preset $(PRESET) --chapters "$(CHAPTERS)" $(if $(ONLY),--only "$(ONLY)") $(if $(SEEDS),-p seeds "$(SEEDS)") $(if $(DOWNLOAD),-p download "$(DOWNLOAD)") $(if $(CLUSTER),-p cluster "$(CLUSTER)") $(if $(CHAPTERS)$(ONLY),,--readme README.md)

test: $(VENV)/.site
	$(RUN) OMP_NUM_THREADS=1 PIXELREG_WORKERS=1 nbdev_test --n_workers 2
	$(RUN) ruff format --check nbs
	$(RUN) ruff check nbs pixelreg
	$(RUN) python -m pytest -q -n 2 --dist loadfile --durations=5

attack: $(VENV)/.ready
	$(RUN) OMP_NUM_THREADS=1 PIXELREG_ATTACK=full python -m pytest -q -s nbs/tests/test_attacks.py nbs/tests/test_cluster.py

lab: $(VENV)/.ready
	$(RUN) jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs $(if $(filter 0,$(shell id -u)),--allow-root)

explorer: $(VENV)/.ready
	$(RUN) voila nbs/explorer.ipynb

bench: $(VENV)/.ready
	mkdir -p build
	$(RUN) papermill --cwd nbs nbs/library/benchmarks/bench.ipynb build/bench.ipynb --log-output
	$(RUN) papermill --cwd nbs nbs/library/benchmarks/networks.ipynb build/networks.ipynb --log-output

readme: $(VENV)/.ready
	mkdir -p build
	$(RUN) papermill --cwd nbs nbs/index.ipynb build/README.ipynb --no-progress-bar
	$(RUN) jupyter nbconvert --to markdown --no-input --output-dir . build/README.ipynb

site: $(VENV)/.site
	$(RUN) python -m pixelreg site

clean:
	rm -rf build figures/smoke .pytest_cache .ruff_cache

$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info < (3, 14), 'Python 3.11, 3.12 or 3.13 is needed (make PYTHON=...), this is ' + sys.version"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.site: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	touch $@
