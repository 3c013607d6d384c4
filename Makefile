# Two commands on a fresh machine: `make demo` and `make test`. Everything goes into .venv.
# TORCH_INDEX=https://… chooses the index that torch is taken from (a CPU build, say).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-quick test test-slow test-triton lint types docs notebooks install peers chromium clean

demo: $(VENV)/.installed
	$(BIN)/efface demo

demo-quick: $(VENV)/.installed
	$(BIN)/efface demo --quick

test: $(VENV)/.installed
	$(BIN)/pytest

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

# Triton's kernels in its interpreter, on the CPU. Not in .venv: other packages would use what they find there.
test-triton: $(VENV)/.installed $(VENV)/triton
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/triton $(BIN)/pytest tests/sae/test_sparse_training.py -k triton

$(VENV)/triton: $(VENV)/.installed
	$(PIP) --no-deps --target $@ triton
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/docs: notebooks are run at their small size and shown with what they draw (kept in build/docs-cache until they change).
docs: $(VENV)/.docs
	EFFACE_NOTEBOOK_SIZE=small EFFACE_DOCS_EXECUTE=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --editable '.[dev,docs]'
	touch $@

# notebooks/*.ipynb anew from the scripts beside them, without outputs.
notebooks: $(VENV)/.installed
	$(BIN)/python docs/make_notebooks.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) --editable '.[dev]'
	touch $@

# The rest of the packages that tests and benchmarks compare with. dictionary-learning brings torchvision, which
# transformers would import wherever it finds it, whether or not it fits the torch that is here.
peers: $(VENV)/.installed
	$(PIP) --editable '.[dev,peers]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio

# The browser that the pages are tested in (Debian's). Where it cannot be installed, those tests say so and are skipped.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { S=; [ "$$(id -u)" = 0 ] || S="sudo -n"; $$S apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$S apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
	|| echo "no Chromium, and it cannot be installed here: the tests of pages in a browser will be skipped"

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info docs/notebooks docs/erasers docs/reference
