"""The files that sentence-transformers keeps beside a backbone: modules.json, 1_Pooling, 2_Dense, …

Both the older and the newer versions' files are understood. What is unknown is refused, because a
guess would give wrong vectors. No torch here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import ModelError

PoolingMode = Literal["cls", "mean", "last", "max", "mean_sqrt_len", "weighted_mean"]

# sentence-transformers' names in 1_Pooling/config.json, older and newer -> ours
_MODES: dict[str, PoolingMode] = {
    "cls_token": "cls",
    "cls": "cls",
    "mean_tokens": "mean",
    "mean": "mean",
    "lasttoken": "last",
    "max_tokens": "max",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weighted_mean",
    "weightedmean": "weighted_mean",
}
_SWITCH = "pooling_mode_"
# The order in which the older files' switches are concatenated.
_SWITCHES = (
    "cls_token",
    "max_tokens",
    "mean_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


@dataclass(frozen=True, slots=True)
class Module:
    """One sentence-transformers module after pooling: Dense, Normalize or LayerNorm."""

    kind: str
    folder: Path
    config: dict[str, Any]


def read_object(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object; empty when the file is missing and may be. Raises ModelError."""
    if missing_ok and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of each module that modules.json lists; empty without that file."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        modules = [
            (str(entry["type"]).rpartition(".")[2], _below(folder, str(entry["path"])))
            for entry in sorted(listed, key=lambda entry: int(entry.get("idx", 0)))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: {type(error).__name__}: {error}") from error
    return modules


def _below(folder: Path, path: str) -> Path:
    """The module's folder: one name below the model's, whatever the file says."""
    return folder / Path(path).name if path else folder


def read_pooling(
    folder: Path, listed: list[tuple[str, Path]]
) -> tuple[tuple[PoolingMode, ...], bool, str]:
    """Modes (none where no file says), whether a prompt's tokens count, and the file."""
    named = next((path for kind, path in listed if kind == "Pooling"), None)
    path = (named or folder / "1_Pooling") / "config.json"
    if (listed and named is None) or not path.is_file():
        return (), True, ""
    stored = read_object(path)
    include_prompt = stored.get("include_prompt") is not False
    return _read_modes(path, stored), include_prompt, f"{path.parent.name}/{path.name}"


def _read_modes(path: Path, stored: dict[str, Any]) -> tuple[PoolingMode, ...]:
    """Raises ModelError for an unknown mode."""
    named = stored.get("pooling_mode")  # newer sentence-transformers write names
    if named is None:
        switches = [
            key for key in stored if key.startswith("pooling_mode_") and stored[key] is True
        ]
        known = [f"pooling_mode_{name}" for name in _SWITCHES]
        switches.sort(key=lambda key: known.index(key) if key in known else len(known))
        named = [key.removeprefix("pooling_mode_") for key in switches]
    names = [named] if isinstance(named, str) else list(named)
    unknown = [name for name in names if name not in _MODES]
    if unknown or not names:
        raise ModelError(f"{path}: pooling {names} is not supported; known are {sorted(_MODES)}")
    return tuple(_MODES[name] for name in names)


def modules_after_pooling(folder: Path, listed: list[tuple[str, Path]]) -> list[Module]:
    """What changes a pooled vector, in order, but for a Normalize at the end."""
    modules: list[Module] = []
    for kind, path in listed:
        if kind in ("Transformer", "Pooling", "Dropout"):
            continue
        if kind not in ("Dense", "Normalize", "LayerNorm"):
            raise ModelError(f"{folder / 'modules.json'}: module {kind} is not supported")
        config = read_object(path / "config.json", missing_ok=kind == "Normalize")
        reads = config.get("module_input_name") or "sentence_embedding"
        writes = config.get("module_output_name") or reads
        if (reads, writes) != ("sentence_embedding", "sentence_embedding"):
            raise ModelError(f"{path}: {kind} from {reads} to {writes} is not supported")
        modules.append(Module(kind, path, config))
    while modules and modules[-1].kind == "Normalize":
        modules.pop()
    return modules
