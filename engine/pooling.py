"""From token vectors to one vector a sequence, and which way a model wants it.

Pure functions; must not know batching or HTTP. L2 is not applied here: some dialects want raw
vectors, and cutting to `dimensions` comes first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.forward import Hidden

Pooling = Literal["cls", "mean", "last"]

# sentence-transformers' names in 1_Pooling/config.json -> ours
_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_MODE_NAMES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def pool(hidden: Hidden, pooling: Pooling) -> Tensor:
    """A step's hidden states -> float32 `[n, H]`."""
    if pooling == "cls":
        return hidden.first().float()
    if pooling == "last":
        return hidden.last().float()
    lengths, tokens = hidden.lengths, hidden.tokens()
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    sums = torch.zeros(len(lengths), tokens.shape[1], device=tokens.device)
    return sums.index_add_(0, rows, tokens.float()) / lengths.unsqueeze(1)


def choose_pooling(folder: Path, override: Pooling | None, is_decoder: bool) -> tuple[Pooling, str]:
    """The pooling and where it comes from: setting, the model's own files, or its family.

    Raises ModelError for a mode that this server does not have: a wrong one would answer vectors
    that match no other server's.
    """
    if override is not None:
        return override, "setting EMBEDDING_POOLING"
    path = _pooling_config(folder)
    if path is not None:
        return _read_mode(path), f"{path.parent.name}/{path.name}"
    family: Pooling = "last" if is_decoder else "mean"
    return family, f"no pooling config: family default of {'de' if is_decoder else 'en'}coders"


def refuse_other_modules(folder: Path) -> None:
    """Raises ModelError for a module that would change the vectors and that is not run here."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    for module in json.loads(path.read_text(encoding="utf-8")):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(f"{path}: module {kind} is not supported by this version")


def _pooling_config(folder: Path) -> Path | None:
    """The config of the Pooling module that modules.json names, or the usual `1_Pooling`."""
    modules = folder / "modules.json"
    if modules.is_file():
        for module in json.loads(modules.read_text(encoding="utf-8")):
            if str(module.get("type", "")).endswith("Pooling"):
                path = folder / Path(str(module["path"])).name / "config.json"
                return path if path.is_file() else None
        return None
    path = folder / "1_Pooling" / "config.json"
    return path if path.is_file() else None


def _read_mode(path: Path) -> Pooling:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")  # newer sentence-transformers write one name
    if named is not None:
        on = [named] if isinstance(named, str) else list(named)
    modes = [_MODES.get(mode) or _MODE_NAMES.get(mode) for mode in on]
    if len(modes) != 1 or modes[0] is None:
        raise ModelError(f"{path}: pooling {on} is not supported (one of cls, mean, lasttoken is)")
    return modes[0]
