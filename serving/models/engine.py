"""What of the engine the server calls, bound to one device: loading, measuring, running a batch.

The one file of this folder that imports torch, and only when the engine is opened.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from batcher.batches import Preempt
from engine import memory
from engine.cpus import count_cpus
from engine.devices import prepare_autoload
from engine.devices import prepare_environment
from engine.errors import NotFinite
from engine.folder.recipe import Overrides
from engine.folder.store import ModelFolder
from engine.outputs import Outputs
from engine.forward.preemption import preemptible
from serving.models.resident import Resident
from settings import Settings

log = logging.getLogger("embedding")


@dataclass(frozen=True, slots=True)
class Engine:
    """All of it blocks. `may_preempt`: its forwards can be interrupted, and should be."""

    load: Callable[[ModelFolder], Any]
    measure: Callable[[ModelFolder], int]
    release: Callable[[], None]
    on_worker_start: Callable[[], None]
    is_out_of_memory: Callable[[BaseException], bool]
    may_preempt: bool


def open_engine(settings: Settings) -> Engine:
    """Blocking: imports torch and chooses the device. Raises DeviceError."""
    prepare_environment(os.environ)
    prepare_autoload(settings.device, os.environ)
    from engine import devices, fitting, loading  # torch and transformers come with these

    threads = count_cpus() if settings.threads == "auto" else settings.threads
    device = devices.choose_device(settings.device)
    log.info("device %s, %d threads", device.name, threads)
    options = fitting.LoadOptions(
        dtype=settings.dtype,
        layout=settings.layout,
        linear=settings.linear,
        overrides=overrides_of(settings),
    )

    def load(folder: ModelFolder) -> Any:
        loading.set_threads(threads)  # each thread has its own count
        return loading.load_model(folder.name, folder.path, device, options)

    preemption, on_cpu = settings.preemption, device.kind == "cpu"
    return Engine(
        load=load,
        measure=lambda folder: loading.bytes_needed(folder.path, device, options),
        release=lambda: memory.release(device.kind),
        on_worker_start=lambda: loading.set_threads(threads),
        is_out_of_memory=loading.is_out_of_memory,
        may_preempt=preemption == "on" or (preemption == "auto" and on_cpu),
    )


def overrides_of(settings: Settings) -> Overrides:
    return Overrides(settings.pooling, settings.max_length, settings.prompts)


def run_batch(group: Hashable, payloads: list[Any], preempt: Preempt | None) -> Any:
    """What the worker runs: a batch of one resident model, the scheduler's group. In place of a
    row that is not finite there is an exception."""
    assert isinstance(group, Resident)
    group.num_running += 1
    try:
        model = group.model
        if model is None:  # every job of the batch was cancelled just now, and its lease ended
            return [None] * len(payloads)
        with preemptible(preempt):
            rows = model.run(payloads)
    finally:
        group.num_running -= 1
        if not group.num_running and group.on_rest is not None:
            group.on_rest()
    return [row if _is_finite(row) else NotFinite() for row in rows]


def _is_finite(row: Any) -> bool:
    """Of a text's outputs, or of a pair's score."""
    if not isinstance(row, Outputs):
        return bool(np.isfinite(row))
    arrays = [row.dense, row.colbert, row.tokens, row.sparse.weights if row.sparse else None]
    return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)
