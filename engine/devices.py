"""Devices: which torch device computes, and the proof that it computes right.

Owns the table of torch plug-ins, their import, the probe of a device, and the variables that
libraries read when they are imported. Must not know models, settings or the batcher, and never
selects, resets or tunes a device. Torch is imported inside functions only, because
`prepare_environment` and `prepare_autoload` have to run before torch is imported anywhere.
Invariant: a `Device` other than the CPU is returned only after a product computed there was right.
"""

import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points

AUTOLOAD_VARIABLE = "TORCH_DEVICE_BACKEND_AUTOLOAD"
AUTOLOAD_GROUP = "torch.backends"
# The probe's product is exact in float16 and a multiple of 1/64: one wrong value is above this.
MAX_DIFFERENCE = 0.01
MAX_REASON_CHARS = 300

logger = logging.getLogger("embedding.devices")


class DeviceError(Exception):
    """A device that was asked for cannot be used; the message says what was tried and why not."""


@dataclass(frozen=True, slots=True)
class Device:
    name: str  # what torch calls it: "cpu", "vacc:1", "cuda:0"
    kind: str  # the name without the index
    dtype: str  # default dtype of weights there
    layout: str  # default layout of a batch there: "unpadded" or "padded"


@dataclass(frozen=True, slots=True)
class Backend:
    kind: str
    module: str | None  # the plug-in to import; None where nothing is left to import
    visible_variable: str | None  # the environment variable that hides devices
    is_float16_safe: bool


CPU_NAMES = ("cpu", "cpu:0")
CPU = Device(name="cpu", kind="cpu", dtype="float32", layout="unpadded")

# In the order of `auto`: a plug-in is installed on purpose, so it goes before what torch brings.
# bfloat16 is no default anywhere: its 8 bits of precision cost vectors more than float16's 11.
BACKENDS = (
    Backend("vacc", "torch_vacc", "VACC_VISIBLE_DEVICES", is_float16_safe=True),
    Backend("npu", "torch_npu", "ASCEND_RT_VISIBLE_DEVICES", is_float16_safe=True),
    Backend("mlu", "torch_mlu", "MLU_VISIBLE_DEVICES", is_float16_safe=True),
    Backend("musa", "torch_musa", "MUSA_VISIBLE_DEVICES", is_float16_safe=True),
    Backend("gcu", "torch_gcu", "TOPS_VISIBLE_DEVICES", is_float16_safe=True),
    Backend("sdaa", "torch_sdaa", "SDAA_VISIBLE_DEVICES", is_float16_safe=False),
    Backend("cuda", None, "CUDA_VISIBLE_DEVICES", is_float16_safe=True),
    Backend("xpu", None, "ZE_AFFINITY_MASK", is_float16_safe=True),
    Backend("mps", None, None, is_float16_safe=True),
)


def prepare_autoload(requested: str, environ: MutableMapping[str, str]) -> None:
    """Keep `import torch` from importing plug-ins by itself; call it before torch is imported.

    Torch imports every entry point of the group `torch.backends`, and one that is broken makes
    `import torch` raise. `choose_device` imports the one plug-in that it needs, so that a broken
    one costs a warning. A value that the user set stays, except that "cpu" must always start.
    """
    if "torch" in sys.modules:
        return
    if _plain(requested) in CPU_NAMES or AUTOLOAD_VARIABLE not in environ:
        environ[AUTOLOAD_VARIABLE] = "0"


def choose_device(requested: str) -> Device:
    """The device for "auto", "cpu", a kind ("vacc") or a kind and index ("vacc:1").

    "auto" takes the first kind that works and logs one warning if a present one does not.
    Raises DeviceError if a device that was named cannot be used. Call it before transformers is
    imported: see `_hide_unused_plug_ins`.
    """
    import torch  # noqa: F401  # plug-ins expect it to be there, and must not be blamed for it

    _reveal_plug_ins()
    name = _plain(requested)
    if name in CPU_NAMES:
        device = CPU
    elif name == "auto":
        device = _first_working()
    else:
        try:
            device = _named(name)
        except DeviceError as failure:
            raise DeviceError(f"device {requested!r}: {failure}") from failure.__cause__
    _hide_unused_plug_ins()
    return device


def _plain(requested: str) -> str:
    return requested.strip().lower()


def _named(name: str) -> Device:
    kind, colon, index = name.partition(":")
    if kind in ("auto", "cpu"):
        raise DeviceError(f"{kind!r} takes no index")
    if colon and not re.fullmatch(r"[0-9]{1,4}", index):
        raise DeviceError(f"the index {index!r} is not a number from 0 to 9999")
    known = {backend.kind: backend for backend in BACKENDS}
    return _probe(known.get(kind) or _third_party(kind), int(index or 0))


def _first_working() -> Device:
    failures: list[str] = []
    device = CPU
    for backend in BACKENDS:
        try:
            if _is_present(backend):
                device = _probe(backend, index=0)
                break
        except DeviceError as failure:
            failures.append(f"{backend.kind}: {failure}")
    if failures:
        logger.warning("device 'auto' uses %s, because %s", device.name, "; ".join(failures))
    return device


def _is_present(backend: Backend) -> bool:
    """A plug-in is there once installed, also without its hardware: `auto` must say so then."""
    if backend.module is not None:
        return importlib.util.find_spec(backend.module) is not None
    return _is_available(backend.kind)


def _third_party(kind: str) -> Backend:
    """A plug-in that the table does not know, started as torch would have started it."""
    import torch

    for entry_point in entry_points(group=AUTOLOAD_GROUP):
        if entry_point.name in (kind, f"torch_{kind}"):
            if not hasattr(torch, kind):  # else torch ran it: most must not run twice
                with _explained(f"the torch plug-in {entry_point.value}"):
                    entry_point.load()()
            return Backend(kind, None, None, is_float16_safe=False)
    known = ", ".join(["auto", "cpu", *(backend.kind for backend in BACKENDS)])
    raise DeviceError(
        f"unknown; known are {known}, and any torch plug-in installed with an entry point of "
        f"that name in the group {AUTOLOAD_GROUP}"
    )


def _probe(backend: Backend, index: int) -> Device:
    if backend.module is not None:
        with _explained(f"import {backend.module}"):
            importlib.import_module(backend.module)
    _check_visible(backend, index)
    device = Device(
        name=f"{backend.kind}:{index}",
        kind=backend.kind,
        dtype="float16" if backend.is_float16_safe else "float32",
        layout="padded",
    )
    _check_product(device.name, "float32")
    if device.dtype != "float32":
        _check_product(device.name, device.dtype)
    return device


def _check_visible(backend: Backend, index: int) -> None:
    import torch

    # Torch's version says what it was built for: "2.13.0+cpu" explains why there is no cuda.
    source, visible = backend.module or f"torch {torch.__version__}", _visible(backend)
    if not _is_available(backend.kind):
        raise DeviceError(f"{source} finds no usable device{visible}")
    with _explained(f"torch.{backend.kind}.device_count()"):
        count = int(getattr(torch, backend.kind).device_count())
    if count == 0:
        raise DeviceError(f"{source} sees no device{visible}")
    if index >= count:
        devices = "1 device is" if count == 1 else f"{count} devices are"
        raise DeviceError(f"only {devices} visible{visible}")


def _is_available(kind: str) -> bool:
    import torch

    with _explained(f"torch.{kind}.is_available()"):
        module = torch.backends.mps if kind == "mps" else getattr(torch, kind)
        return bool(module.is_available())


def _visible(backend: Backend) -> str:
    if backend.visible_variable is None:
        return ""
    value = os.environ.get(backend.visible_variable)
    return f" ({backend.visible_variable}{' is not set' if value is None else f'={value}'})"


def _check_product(name: str, dtype: str) -> None:
    """Compare a small product computed there with the CPU's: some drivers compute garbage."""
    import torch

    # Named device and dtype everywhere, because a plug-in may have changed torch's defaults.
    values = torch.arange(128, dtype=torch.float32, device="cpu")
    left = ((values * 5 % 13 - 6) / 8).reshape(8, 16)
    right = ((values * 7 % 11 - 5) / 8).reshape(16, 8)
    precision = getattr(torch, dtype)
    with _explained(f"round trip in {dtype}"):
        product = left.to(precision).to(name) @ right.to(precision).to(name)
        difference = float((product.to("cpu").to(torch.float32) - left @ right).abs().max())
    if not difference <= MAX_DIFFERENCE:  # written so that NaN fails
        raise DeviceError(
            f"round trip in {dtype} failed: a product on {name} is off by {difference:g}"
        )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what a plug-in raises into a DeviceError; SystemExit too, KeyboardInterrupt not."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or ["no message"]
        reason = f"{type(error).__name__}: {lines[0]}"[:MAX_REASON_CHARS]
        raise DeviceError(f"{what} failed: {reason}") from error


def _hide_unused_plug_ins() -> None:
    """Make plug-ins that are not in use look absent, by Python's own way: None in sys.modules.

    Transformers imports torch_npu, torch_mlu and torch_musa wherever it finds them, and does not
    survive a broken one.
    """
    for backend in BACKENDS:
        if backend.module is not None:
            sys.modules.setdefault(backend.module, None)  # type: ignore[arg-type]


def _reveal_plug_ins() -> None:
    for backend in BACKENDS:
        if backend.module is not None and sys.modules.get(backend.module, backend) is None:
            del sys.modules[backend.module]


_DEFAULTS = {
    # Nothing that is loaded may ask a hub.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # The tokenizer has one thread; the other cores compute.
    "TOKENIZERS_PARALLELISM": "false",
    # How long a compute thread spins at a barrier before it sleeps. With libgomp's own 300,000
    # rounds (milliseconds) it occupies the core that the thread it waits for needs.
    # bench/results/contention-bge-small.json and docs/log.md have the figures for both.
    "GOMP_SPINCOUNT": "8000",
    # oneDNN, and PyTorch's layer above it, each keep code for the last 1,024 shapes. Every number
    # of tokens in a batch brings three new ones at 0.6 ms and 0.5 to 0.9 MB. With 128 they take
    # about 100 MB at most (docs/log.md).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}


def prepare_environment(environ: MutableMapping[str, str]) -> None:
    """Fill in the defaults above; what the user has set stays as it is."""
    for name, value in _DEFAULTS.items():
        if name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in environ:
            continue  # the user has chosen how to wait
        environ.setdefault(name, value)
