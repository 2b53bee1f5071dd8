"""Variables that libraries read once, when they are imported: set before torch and transformers.

Standard library only. What a user has set stays as it is.
"""

from __future__ import annotations

from collections.abc import MutableMapping

_DEFAULTS = {
    # Nothing that is loaded may ask a hub.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # The tokenizer has one thread; the other cores compute.
    "TOKENIZERS_PARALLELISM": "false",
    # How long a compute thread spins at a barrier before it sleeps. With libgomp's own 300,000
    # rounds (milliseconds) the spinner keeps the very core that the thread it waits for needs.
    # bench/results/contention-bge-small.json and docs/log.md have both sides of it.
    "GOMP_SPINCOUNT": "8000",
    # oneDNN, and PyTorch's layer above it, each keep code for the last 1,024 shapes, and every
    # number of tokens in a step is three new ones at 0.6 ms and 0.5 to 0.9 MB: 128 bound the memory
    # that they take to about 100 MB (docs/log.md).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}


def prepare_environment(environ: MutableMapping[str, str]) -> None:
    """Fill in the defaults above."""
    for name, value in _DEFAULTS.items():
        if name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in environ:
            continue  # the user has chosen how to wait
        environ.setdefault(name, value)
