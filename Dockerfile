# One image for all parts: `helixq web`, `helixq worker`, `helixq migrate`.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/var/cache/huggingface \
    HELIXQ_DATA_DIR=/var/lib/helixq \
    TRITON_CACHE_DIR=/var/lib/helixq/triton

# Triton builds what launches its kernels with it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# A volume mounted on one of these folders takes over its owner.
RUN useradd --system --user-group --uid 10001 --create-home helixq \
    && install -d -o helixq -g helixq "$HELIXQ_DATA_DIR" "$HF_HOME"

WORKDIR /src
COPY constraints.txt ./
# By far the largest part, in a layer that a change of the program leaves alone.
RUN pip install -c constraints.txt torch transformers peft
COPY . .
RUN pip install -c constraints.txt '.[export]'

USER helixq
WORKDIR /var/lib/helixq
EXPOSE 8000
CMD ["helixq", "--help"]
