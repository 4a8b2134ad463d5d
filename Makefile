# `make demo` and `make test` install what they need into .venv first.

PYTHON ?= python3
BIN := .venv/bin
DEMO := benchmarks/demo
OUT := build/demo

.PHONY: install demo test test-faults check clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,embed,export,train,tensorrt-rtx,dev]'
	touch $@

demo: .venv/installed
	mkdir -p $(OUT)
	$(BIN)/fcdeploy export --ckpt $(DEMO)/pse-gcn-128.pth --recipe export/pse-gcn-demo.toml -o $(OUT)/pse.onnx
	$(BIN)/fcdeploy cluster $(DEMO)/features.bin --engine $(OUT)/pse.onnx -o $(OUT)/pred_labels.meta
	$(BIN)/fcdeploy evaluate $(OUT)/pred_labels.meta $(DEMO)/labels.meta
	$(BIN)/fcdeploy export --ckpt $(DEMO)/lce-128.pth --ckpt $(DEMO)/pce-128.pth --recipe export/lce-pcenet-demo.toml -o $(OUT)/lce-pcenet.onnx
	$(BIN)/fcdeploy cluster $(DEMO)/features.bin --engine $(OUT)/lce-pcenet.onnx -o $(OUT)/lce-pcenet.meta
	$(BIN)/python benchmarks/compare_cosine.py $(DEMO)/features.bin $(DEMO)/labels.meta --dim 128 --pred PSE-GCN=$(OUT)/pred_labels.meta --pred LCE-PCENet=$(OUT)/lce-pcenet.meta

test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-faults: .venv/installed
	$(BIN)/python -m pytest -m faults --numprocesses auto --maxprocesses 2 --dist worksteal

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build
