# `make demo` and `make test` install what they need into .venv first.

PYTHON ?= python3
BIN := .venv/bin
DEMO := benchmarks/demo
OUT := build/demo
PHOTOS := benchmarks/photos
OUT_PHOTOS := build/photos

EVERYTHING := cpu,fast,ray,embed,photos,heif,tables,export,report,review,train,tensorrt-rtx,dev,docs
LOWEST := build/lowest
AXE := 4.14.1
QUICK := $(addprefix tests/,clustering data deploy engine graph systems trials test_demo.py)

.PHONY: install demo photos test test-slow test-properties test-faults test-ray test-lowest test-wheel test-browser test-tools check clean docs docs-pictures gpu-carry

install: .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EVERYTHING)]'
	touch $@

# What the demo needs, and no more: no TensorRT, no development tools.
.venv/installed-demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,report]'
	touch $@

# As little, and Pillow.
.venv/installed-photos: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,photos]'
	touch $@

demo: .venv/installed-demo
	mkdir -p $(OUT)
	$(BIN)/fcdeploy export --ckpt $(DEMO)/pse-gcn-128.pth --recipe export/pse-gcn-demo.toml -o $(OUT)/pse.onnx
	$(BIN)/fcdeploy cluster $(DEMO)/features.bin --engine $(OUT)/pse.onnx --run-dir $(OUT)/run -o $(OUT)/pred_labels.meta
	$(BIN)/fcdeploy evaluate $(OUT)/pred_labels.meta $(DEMO)/labels.meta
	$(BIN)/fcdeploy export --ckpt $(DEMO)/lce-128.pth --ckpt $(DEMO)/pce-128.pth --recipe export/lce-pcenet-demo.toml -o $(OUT)/lce-pcenet.onnx
	$(BIN)/fcdeploy cluster $(DEMO)/features.bin --engine $(OUT)/lce-pcenet.onnx -o $(OUT)/lce-pcenet.meta
	$(BIN)/python benchmarks/compare_cosine.py $(DEMO)/features.bin $(DEMO)/labels.meta --dim 128 --pred PSE-GCN=$(OUT)/pred_labels.meta --pred LCE-PCENet=$(OUT)/lce-pcenet.meta
	$(BIN)/fcdeploy report $(OUT)/run --labels $(DEMO)/labels.meta -o $(OUT)/report

photos: .venv/installed-photos
	mkdir -p $(OUT_PHOTOS)
	$(BIN)/fcdeploy export --ckpt $(PHOTOS)/pse-gcn-64.pth -o $(OUT_PHOTOS)/pse.onnx
	$(BIN)/fcdeploy cluster $(PHOTOS)/album --detector $(PHOTOS)/yunet.onnx --embedder $(PHOTOS)/embedder.onnx --engine $(OUT_PHOTOS)/pse.onnx --run-dir $(OUT_PHOTOS)/run -o $(OUT_PHOTOS)/clusters.csv
	cat $(OUT_PHOTOS)/clusters.csv

test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-faults: .venv/installed
	$(BIN)/python -m pytest -m faults --numprocesses auto --maxprocesses 2 --dist worksteal

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 2 --dist worksteal

# The properties, on examples that no run had before.
test-properties: .venv/installed
	$(BIN)/python -m pytest -m 'hypothesis and not gpu' --hypothesis-profile new --numprocesses auto --maxprocesses 2 --dist loadfile

test-ray: .venv/installed
	$(BIN)/python -m pytest -m ray

# The quick tests with the lowest version of every package that pyproject.toml allows.
test-lowest:
	mkdir -p build
	$(PYTHON) tests/lowest.py > $(LOWEST).txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST).txt --editable '.[$(EVERYTHING)]'
	$(LOWEST)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(QUICK)

# The pages of reports and reviews in Chromium (`apt-get install chromium`), and what axe-core, from npm, finds in them.
test-browser: .venv/installed build/axe/package/axe.min.js
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'playwright>=1.49'
	$(BIN)/python -m pytest -m browser tests/report

# Exports opened in FiftyOne, Embedding Atlas and Spotlight, each in an environment of its own (2 GB).
test-tools: .venv/installed
	$(BIN)/python -m pytest -m tools tests/report

build/axe/package/axe.min.js:
	mkdir -p build/axe
	cd build/axe && npm pack --silent axe-core@$(AXE) && tar -xzf axe-core-$(AXE).tgz

# The wheel, built from the source distribution, in an empty environment.
test-wheel: .venv/installed
	$(BIN)/python -m pytest -m wheel

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site: any warning is an error, and nothing is loaded from elsewhere.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

# The pages that are made of the code and the results of benchmarks.
docs-pictures: .venv/installed
	$(BIN)/python docs/pictures/make.py
	$(BIN)/python docs/pictures/screenshots.py
	$(BIN)/python -m fcdeploy.cli.reference > docs/reference/cli.md
	$(BIN)/python docs/site/recipe_keys.py > docs/reference/recipe-keys.md

# What benchmarks/gpu_check.sh needs on a machine with a GPU and without a network, in build/gpu: wheels for its Python
# and CUDA, but for the packages that it has, and an engine.
GPU_PYTHON ?= 3.12
GPU_CUDA ?= 13
GPU_HAS ?= torch numpy
gpu-carry: .venv/installed
	$(BIN)/python benchmarks/gpu_carry.py --python $(GPU_PYTHON) --cuda $(GPU_CUDA) $(addprefix --there ,$(GPU_HAS))

clean:
	rm -rf .venv build
