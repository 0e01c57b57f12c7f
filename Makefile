# `make demo` and `make test` do all the set-up; both need only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
unexport PYTHONDONTWRITEBYTECODE # or each of the tests' processes compiles the package anew
STAMP := $(VENV)/.installed

.PHONY: demo test fuzz lint study study-small clean

demo: $(STAMP)
	$(BIN)/vaeaudit attack --mode latent --pairs 10

test: $(STAMP) lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# Bytes that nobody wrote, for every parser. atheris lies apart, as it has wheels for some versions of Python alone.
fuzz: $(STAMP)
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --upgrade \
		--target $(VENV)/fuzz atheris==3.0.0 2>/dev/null; \
	then PYTHONPATH=$(VENV)/fuzz OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --together --seconds $(or $(SECONDS),30); \
	else echo "No fuzzing: atheris 3.0.0 cannot be installed here; it has wheels for Python 3.11 to 3.13 on Linux"; fi

# DATA is the folder of the images; both go on from where they were ended.
study: $(STAMP)
	$(BIN)/python examples/study/study.py examples/study/findings.toml --data $(or $(DATA),../shared/data) --out study
	$(BIN)/vaeaudit study study/results.csv --against beta --out study/beta
	$(BIN)/python examples/study/findings.py study

study-small: $(STAMP)
	$(BIN)/python examples/study/study.py examples/study/small.toml --out study-small
	$(BIN)/vaeaudit study study-small/results.csv --against beta --out study-small/beta

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The versions that development and CI install stand in constraints.txt; users get the ranges of pyproject.toml.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("vaeaudit needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info vaeaudit-report .mypy_cache .pytest_cache .ruff_cache .hypothesis
