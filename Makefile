# From nothing but python3, pip and make: `make demo` runs the main job, `make test` the fast tests.
# Three tiers of tests: `make test` (minutes), `make slow` (with it in .ci/run), `make nightly`.
# TORCH_INDEX takes PyTorch from another index, for instance its CPU-only builds (README).
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet

.PHONY: demo test avx2 slow nightly check constraints dist docs clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The numerical tests as a processor with AVX2 only computes them; nothing where this one is such.
avx2: .venv/installed-dev
	$(BIN)/python -c 'import sys, torch; sys.exit("AVX512" not in torch.backends.cpu.get_cpu_capability())' \
	|| exit 0; ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n 2 $(addprefix tests/,analysis evaluation models ops)

# Two at a time with a thread each: the small networks of most tests have no use for a second thread.
slow: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

nightly: .venv/installed-dev
	$(BIN)/python -m pytest -m nightly

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/count_lines.py

# Renews the versions that hosted CI installs, for every extra, system and Python of pyproject.toml.
# UV_ARGS="--upgrade-package torch" or "--upgrade" takes newer ones; without it only what is new or gone changes.
UV_ARGS ?=
constraints: .venv/installed-dev
	$(INSTALL) uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 $(UV_ARGS) \
	  --no-annotate --no-emit-index-url --custom-compile-command "make constraints" --quiet --output-file constraints.txt

# The sdist, and the wheel from it.
dist: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build

# The site, in build/site: every warning is an error, no network is needed.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E docs build/site

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(INSTALL) --index-url $(TORCH_INDEX) torch torchvision)
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist runs .pytest_cache .mypy_cache .ruff_cache
