# Tasks with vLLM for the CPU: make image-vllm [BASE=...] [ARGS="..."]
#
# BASE    a Debian image with Python 3.11 and its venv module
# WHEELS  an image that holds wheels at its root, which pip takes beside an index's; torch's CPU build, say:
#             tar -C FOLDER -c . | docker import - wheels     and    ARGS="--build-arg WHEELS=wheels"
#         or name an index that has it: ARGS="--build-arg PIP_EXTRA_INDEX_URL=..."
#
# An argument stays readable in the image's history. So an index with a password goes into a pip.conf, given as a
# secret, and so does a certificate authority (that pip.conf says: cert = /run/secrets/ca.crt):
#             ARGS="--secret id=pip.conf,src=FILE --secret id=ca.crt,src=FILE"
#
# There is no compiler in it: tasks run vLLM eagerly on a CPU, in one process.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG WHEELS=scratch

FROM ${WHEELS} AS wheels

FROM scratch AS source
COPY pyproject.toml README.md /
COPY tasks /tasks

FROM ${BASE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates libnuma1 \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/tomograph/bin:$PATH DO_NOT_TRACK=1
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CONFIG_FILE=/run/secrets/pip.conf
ARG PIP_FIND_LINKS=/wheels

# The steps of the Makefile's environment, in its order.
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,source=images/vllm.requirements.txt,target=/vllm.requirements.txt \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf \
    --mount=type=secret,id=ca.crt \
    python3.11 -m venv /opt/tomograph \
    && python -m pip install --quiet --upgrade "pip>=25" \
    && python -m pip install --quiet $(grep ^torch== /vllm.requirements.txt) \
    && python -m pip install --quiet $(grep ^vllm /vllm.requirements.txt) \
    && python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec \
    && grep -v -e ^torch== -e ^vllm /vllm.requirements.txt | python -m pip install --quiet -r /dev/stdin

RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=source,target=/source,rw \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf \
    --mount=type=secret,id=ca.crt \
    python -m pip install --quiet --no-deps /source

RUN useradd --uid 10001 --create-home tomograph
USER 10001
WORKDIR /home/tomograph
ENTRYPOINT ["python", "-m", "tasks"]

ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="tomograph tasks with vLLM (CPU)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
