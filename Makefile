# The environment is made once, from constraints.txt; everything else runs in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PROFILE ?= quick
PARAMS ?=
NAME ?=
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help environment book test unit chapter handout slides serve print bench pairs paper image readme clean

help:  ## Show this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

environment: $(STAMP)  ## Create the environment in .venv.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) ci/environment.py $(VENV)
	@touch $@

book: $(STAMP)  ## Execute what is out of date and render the site to _build/html.
	@$(BIN)/python ci/build.py

test: $(STAMP)  ## Everything: lint, types, imports, tests, chapters, the site in a browser.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python ci/check_chapters.py
	$(BIN)/python -m pytest -n auto --dist worksteal --durations 20 --ignore tests/site
	$(BIN)/python ci/build.py
	$(BIN)/python -m pytest -n auto --dist loadfile --durations 20 tests/site

unit: $(STAMP)  ## Only the unit tests.
	$(BIN)/python -m pytest -n auto -m "not long" --ignore tests/site --ignore tests/pipeline

chapter: $(STAMP)  ## One chapter: make chapter NAME=spherical_kd PROFILE=cpu PARAMS="-p n_seeds=10".
	@test -n "$(NAME)" || (echo "error: say which chapter, e.g. make chapter NAME=spherical_kd" >&2; exit 1)
	@$(BIN)/python ci/execute.py $(NAME) --profile $(PROFILE) $(if $(filter quick,$(PROFILE)),,--results-dir book/records) $(PARAMS)

handout: $(STAMP)  ## A chapter as an assignment, for students and teacher: make handout NAME=spherical_kd.
	@$(BIN)/python ci/handout.py "$(NAME)"

slides: $(STAMP)  ## A chapter as slides, after `make book`: make slides NAME=kd.
	@$(BIN)/python ci/slides.py "$(NAME)"

serve: book  ## Build the book and serve it on this machine.
	@echo "http://127.0.0.1:$(PORT)/"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

print: $(STAMP)  ## The built book as one page and, with Chromium, as a PDF in _build/print.
	@$(BIN)/python ci/print_book.py _build

bench: $(STAMP)  ## Measure the training loop and the losses, as ratios.
	@$(BIN)/python ci/bench.py

pairs: $(STAMP)  ## Write each chapter's .ipynb anew from its .md.
	@$(BIN)/python ci/check_chapters.py --fix

paper: $(STAMP)  ## Lay out a new paper: make paper NAME=my_method PART=logits TITLE="My method".
	@$(BIN)/python ci/new_paper.py "$(NAME)" "$(PART)" "$(TITLE)"

image:  ## The Docker images kdcore:cpu and kdcore:cuda.
	@docker info > /dev/null 2>&1 || (echo "error: no Docker engine is running on this machine" >&2; exit 1)
	docker build --target cpu --tag kdcore:cpu .
	docker build --target cuda --tag kdcore:cuda .

readme: $(STAMP)  ## Write the README's table anew from the records.
	@$(BIN)/python ci/readme.py

clean:  ## Remove what was built; the environment and downloaded data stay.
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
