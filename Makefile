# All targets run in .venv, which is created if needed.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/numbers

.PHONY: help install demo test test-slow quantization runtimes contract docs check format types clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: .venv/installed  ## create .venv and install the package with its development tools

.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,clients,demo,docs,engines,sentences,serve,service-clients,tune]'
	touch $@

demo: install  ## train on the embedded data, evaluate, translate, and show where the results are
	$(BIN)/trivium train numbers training.output_dir=$(DEMO) --overwrite
	$(BIN)/trivium evaluate $(DEMO)
	$(BIN)/trivium translate $(DEMO) "three hundred and forty-two" "half past seven" \
		"the twenty-first of May nineteen eighty-four"
	@echo "The model, its tokenizer, scores and translations are in $(DEMO)."
	@echo "Its learning curves: $(BIN)/tensorboard --logdir $(DEMO)"

# Models in tests are tiny, so a second OpenMP thread slows them down, especially when it spins.
test test-slow quantization runtimes contract: export OMP_NUM_THREADS = 1
test test-slow quantization runtimes contract: export OMP_WAIT_POLICY = passive
test test-slow quantization runtimes contract: export HF_HUB_OFFLINE = 1
# Two processes with consecutive tests each, so that few fixtures are built twice.
PARALLEL := --numprocesses 2 --dist worksteal

test: install check  ## lint, type checks and the default test suite
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: install  ## slow tests
	$(BIN)/python -m pytest -m slow $(PARALLEL)

QUANTIZATION := build/quantization

quantization: $(QUANTIZATION)/installed  ## tests of bitsandbytes, quanto and torchao, in an environment of their own
	$(QUANTIZATION)/bin/python -m pytest -m slow tests/clients/test_quantizers.py

$(QUANTIZATION)/installed: pyproject.toml constraints.txt
	test -d $(QUANTIZATION) || $(PYTHON) -m venv $(QUANTIZATION)
	$(QUANTIZATION)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,quantization]'
	touch $@

RUNTIMES := build/runtimes

runtimes: $(RUNTIMES)/installed build/node  ## tests of exported models in llama.cpp, OpenVINO and transformers.js
	$(RUNTIMES)/bin/python -m pytest -m slow tests/clients/test_llama_cpp.py tests/clients/test_openvino.py \
		tests/clients/test_transformers_js.py tests/demo/test_static_page.py

$(RUNTIMES)/installed: pyproject.toml constraints.txt
	test -d $(RUNTIMES) || $(PYTHON) -m venv $(RUNTIMES)
	$(RUNTIMES)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,engines,runtimes]'
	touch $@

build/node:  # the engine's binaries are in the package, so that no script needs to run
	npm install --silent --prefix $@ --ignore-scripts @huggingface/transformers@4.3.2

TRANSFORMERS_TESTS ?= build/transformers

contract: install $(TRANSFORMERS_TESTS)  ## common model tests of transformers on Trivium's classes
	RUN_SLOW=1 PYTHONPATH=$(TRANSFORMERS_TESTS) $(BIN)/python -m pytest \
		-m slow -o strict=false -W default --disable-warnings -rs tests/contract

build/transformers: | install  # tests of the installed transformers version; delete after an upgrade
	rm -rf build/sdist
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest build/sdist \
		transformers==$$($(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")
	mkdir -p $@
	tar --extract --gzip --strip-components 1 --directory $@ --file build/sdist/transformers-*.tar.gz
	touch $@/tests/__init__.py

docs: install  ## build the documentation in build/docs, and check its links
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo "Open build/docs/index.html."

check: install types  ## lint and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## format the code and fix lint errors
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:  ## symlink the root folders as the package `trivium` for type checkers (ignored by git)
	rm -rf typings && mkdir -p typings/trivium
	for path in trivium/* configuration modeling recipes tokenization; do ln -s "../../$$path" typings/trivium/; done

clean:  ## remove the outputs of the other targets
	rm -rf .venv typings runs build dist *.egg-info
