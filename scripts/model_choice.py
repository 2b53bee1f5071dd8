"""Which repository a typed name means, and which of its files serving needs.

Pure text in, pure text out: no network, no disk, no package beyond the standard library.
Must not know which hub is asked or where files land.

Invariant: every name and path that leaves this module is made of safe characters only, has no
`..`, and so can name nothing outside the folder that it is joined to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DEFAULT_REPO = "BAAI/bge-m3"

# Short names, by the organisation that publishes them (the same on Hugging Face and ModelScope).
_PUBLISHED: dict[str, tuple[str, ...]] = {
    "BAAI": (
        "bge-m3",
        "bge-small-en-v1.5",
        "bge-base-en-v1.5",
        "bge-large-en-v1.5",
        "bge-small-zh-v1.5",
        "bge-base-zh-v1.5",
        "bge-large-zh-v1.5",
        "bge-reranker-base",
        "bge-reranker-large",
        "bge-reranker-v2-m3",
    ),
    "Qwen": (
        "Qwen3-Embedding-0.6B",
        "Qwen3-Embedding-4B",
        "Qwen3-Embedding-8B",
        "Qwen3-Reranker-0.6B",
        "Qwen3-Reranker-4B",
        "Qwen3-Reranker-8B",
    ),
    "sentence-transformers": ("all-MiniLM-L6-v2",),
}
SHORT_NAMES = {name.lower(): f"{org}/{name}" for org, names in _PUBLISHED.items() for name in names}

# The hubs' own rule: letters, digits, `-`, `_` and `.`, a letter or digit first, no punctuation
# last, 96 characters at most.
_SEGMENT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_SEGMENT}/{_SEGMENT}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

# sentence-transformers keeps further layers in numbered folders: 1_Pooling, 2_Dense, 2_Normalize.
_FOLDER = r"(?:\d{1,2}_[A-Za-z]+/)?"
_PLAIN_FILE = re.compile(
    rf"{_FOLDER}(?:"
    r"config[a-z_]*\.json|sentence_[a-z]+_config\.json|modules\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|tokenizer\.model|sentencepiece\.bpe\.model|spiece\.model"
    r"|vocab\.txt|vocab\.json|merges\.txt|chat_template\.jinja|chat_template\.json"
    r")"
    r"|(?:sparse|colbert)_linear\.pt"
)
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_SAFETENSORS = re.compile(
    rf"{_FOLDER}(?:model{_SHARD}\.safetensors|model\.safetensors\.index\.json)"
)
_PICKLED = re.compile(rf"{_FOLDER}(?:pytorch_model{_SHARD}\.bin|pytorch_model\.bin\.index\.json)")


class NameRefused(ValueError):
    """What was typed is no model name or no revision; the message says what would be."""


def repo_for(typed: str) -> str:
    """`org/name` for a short name (any case) or for an `org/name`."""
    if known := SHORT_NAMES.get(typed.lower()):
        return known
    if _REPO.fullmatch(typed) and ".." not in typed and "--" not in typed:
        return typed
    short = ", ".join(name.rsplit("/", 1)[1] for name in SHORT_NAMES.values())
    raise NameRefused(f"{typed!r} is no model name. Give org/name, or one of: {short}")


def revision_for(typed: str) -> str:
    """A branch, tag or commit that is safe inside an address and a file name."""
    if _REVISION.fullmatch(typed) and ".." not in typed and "//" not in typed:
        return typed
    raise NameRefused(f"{typed!r} is no revision. Give a branch, a tag or a commit.")


def needed_files(paths: Iterable[str]) -> list[str]:
    """The files that serving reads, sorted; pickled weights only where a folder has no safetensors.

    The same weights often lie in a repository four times over (safetensors, pickled, ONNX,
    TensorFlow): one copy is enough, and safetensors can neither run code nor need a second copy
    in memory.
    """
    listed = sorted(set(paths))
    safe_folders = {
        _folder(path) for path in listed if _SAFETENSORS.fullmatch(path) and _is_weights(path)
    }
    return [
        path
        for path in listed
        if _PLAIN_FILE.fullmatch(path)
        or _SAFETENSORS.fullmatch(path)
        or (_PICKLED.fullmatch(path) and _folder(path) not in safe_folders)
    ]


def missing_for_serving(paths: Iterable[str]) -> str | None:
    """What a folder with these files lacks to be a model, in words; None when it lacks nothing."""
    listed = set(paths)
    if "config.json" not in listed:
        return "config.json"
    if not any(_is_weights(path) and not _folder(path) for path in listed):
        return "weights (model.safetensors or pytorch_model.bin)"
    return None


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
