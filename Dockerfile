# Three images of HelixQ, each a target:
#   web          the web, migrations, maintenance, and workers whose engine is elsewhere; without PyTorch
#   worker-cpu   a worker on the CPU, and `helixq up`
#   worker-cuda  a worker on an NVIDIA GPU: needs a driver for CUDA 13.0, which is 580 or newer
# Everything from PyPI is checked against deploy/requirements; to pin Debian too, give its digest:
#   docker build --build-arg DEBIAN=debian:trixie-slim@sha256:… --target web .
ARG DEBIAN=debian:trixie-slim

# hadolint global ignore=DL3006,DL3008,DL3059
# (DL3006: the base is the argument above. DL3008: Debian replaces versions by security updates. DL3059: layers for caches.)

FROM ${DEBIAN} AS python
ENV PATH=/opt/helixq/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_REQUIRE_VIRTUALENV=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/helixq

FROM python AS wheel
WORKDIR /src
COPY deploy/requirements/build.txt deploy/requirements/build.txt
RUN pip install --no-deps --require-hashes -r deploy/requirements/build.txt
COPY . .
RUN python -m hatchling build -t wheel -d /dist

FROM python AS base
ENV HELIXQ_DATA_DIR=/var/lib/helixq \
    HF_HOME=/var/cache/huggingface \
    HOME=/tmp
# A volume that is mounted on one of these folders for the first time takes over its owner.
RUN useradd --user-group --uid 10001 --no-log-init --home-dir /tmp --no-create-home helixq \
    && install -d -m 700 -o helixq -g helixq "$HELIXQ_DATA_DIR" "$HF_HOME"
WORKDIR /var/lib/helixq
EXPOSE 8000
CMD ["helixq", "--help"]

FROM base AS web
COPY deploy/requirements/web.txt /opt/helixq/requirements.txt
RUN pip install --no-deps --require-hashes -r /opt/helixq/requirements.txt
COPY --from=wheel /dist /opt/helixq/dist
RUN pip install --no-deps --no-index --compile /opt/helixq/dist/*.whl
USER 10001:10001

FROM base AS worker-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# For `helixq up`, which starts its own Redis.
RUN apt-get update \
    && apt-get install -y --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/requirements/torch-cpu.txt deploy/requirements/worker-cpu.txt /opt/helixq/
# By far the largest part, in layers that a change of the program leaves alone.
RUN pip install --no-deps --index-url "$TORCH_INDEX" -r /opt/helixq/torch-cpu.txt
RUN pip install --no-deps --require-hashes -r /opt/helixq/worker-cpu.txt
COPY --from=wheel /dist /opt/helixq/dist
RUN pip install --no-deps --no-index --compile /opt/helixq/dist/*.whl
USER 10001:10001

FROM base AS worker-cuda
# The container toolkit reads them: it refuses to start the container with an older driver, and says so.
ENV NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/var/lib/helixq/triton
# Triton builds what launches its kernels with a compiler and Python's headers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/requirements/worker-cuda.txt /opt/helixq/requirements.txt
RUN pip install --no-deps --require-hashes -r /opt/helixq/requirements.txt
COPY --from=wheel /dist /opt/helixq/dist
RUN pip install --no-deps --no-index --compile /opt/helixq/dist/*.whl
USER 10001:10001
