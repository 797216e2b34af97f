# Everything runs in .venv; `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/numbers

.PHONY: help install demo test test-slow contract docs check format types clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: .venv/installed  ## create .venv and install the package with its development tools

.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,clients,demo,docs,engines]'
	touch $@

demo: install  ## train on the embedded data, evaluate, translate, and show where the results lie
	$(BIN)/trivium train numbers training.output_dir=$(DEMO) --overwrite
	$(BIN)/trivium evaluate $(DEMO)
	$(BIN)/trivium translate $(DEMO) "three hundred and forty-two" "half past seven" \
		"the twenty-first of May nineteen eighty-four"
	@echo "The model, its tokenizer, scores and translations are in $(DEMO)."
	@echo "Its learning curves: $(BIN)/tensorboard --logdir $(DEMO)"

# Models in tests are tiny: a second thread costs more than it gives, most of all while it waits for work.
test test-slow contract: export OMP_NUM_THREADS = 1
test test-slow contract: export OMP_WAIT_POLICY = passive
test test-slow contract: export HF_HUB_OFFLINE = 1
# Two processes, each with consecutive tests, so that few of them share a fixture.
PARALLEL := --numprocesses 2 --dist worksteal

test: install check  ## lint, type checks and the default test suite
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: install  ## the longer tests
	$(BIN)/python -m pytest -m slow $(PARALLEL)

TRANSFORMERS_TESTS ?= build/transformers

contract: install $(TRANSFORMERS_TESTS)  ## transformers' own common tests on our classes
	RUN_SLOW=1 PYTHONPATH=$(TRANSFORMERS_TESTS) $(BIN)/python -m pytest \
		-m slow -o strict=false -W default --disable-warnings -rs tests/contract

build/transformers: | install  # the source of the installed transformers, for its tests; delete it after an upgrade
	rm -rf build/sdist
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest build/sdist \
		transformers==$$($(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")
	mkdir -p $@
	tar --extract --gzip --strip-components 1 --directory $@ --file build/sdist/transformers-*.tar.gz
	touch $@/tests/__init__.py

docs: install  ## build the documentation, with its links checked, in build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo "Open build/docs/index.html."

check: install types  ## lint and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:  ## lay out the root folders as the package `trivium` for type checkers (symlinks, ignored by git)
	rm -rf typings && mkdir -p typings/trivium
	for path in trivium/* configuration modeling recipes tokenization; do ln -s "../../$$path" typings/trivium/; done

clean:  ## remove what the other targets made
	rm -rf .venv typings runs build dist *.egg-info
