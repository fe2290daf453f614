# Every target works on a fresh machine: .venv is made when missing and refreshed when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-peers test-triton bench lint clean
.DEFAULT_GOAL := help

$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,download]'
	touch $(STAMP)

.PHONY: help
help:
	@echo "make demo       train and audit a stochastic classifier on real digits; ends with a report"
	@echo "make test       the test-suite (minutes)"
	@echo "make test-slow  statistical checks over hundreds of seeds"
	@echo "make test-peers neurons and adapters against the libraries they follow, in an environment of their own"
	@echo "make test-triton the Triton kernels on an interpreter and through their compiler, without a GPU"
	@echo "make bench      cost against the floor, and the peers where their environment exists"
	@echo "make lint       ruff and pyright"

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/stochade audit digits-gated --workers 2 --out runs/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

PEERS := .venv-peers-spiking
$(PEERS)/.installed: constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" spikingjelly==2.0.0
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps snntorch==1.0.0 norse==1.1.0 nir==1.0.8 nirtorch==2.6
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(PEERS)/spikingjelly-0.0.0.0.14 spikingjelly==0.0.0.0.14
	touch $@

test-peers: $(STAMP) $(PEERS)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/peers

TRITON := .venv-triton
$(TRITON)/.installed: constraints.txt
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" numpy triton==3.9.0
	touch $@

test-triton: $(STAMP) $(TRITON)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/peers/test_lif_triton.py

bench: $(STAMP)
	$(BIN)/python benchmarks/pgd_cost.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) runs build dist
