"""How a model must be served, as its folder's JSON files alone say.

Every decision carries the file or the rule that made it. Reads no weights and imports no torch, so
a whole folder of models can be listed at once. A folder that would be served wrong is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import ModelError
from engine.folder.prompts import Prompts, read_prompts
from engine.folder.sentence_files import (
    Module,
    PoolingMode,
    modules_after_pooling,
    read_modules,
    read_object,
    read_pooling,
)
from engine.folder.weight_files import NO_WEIGHTS, has_weights

Kind = Literal["embedder", "cross-encoder", "causal reranker"]
Output = Literal["dense", "sparse", "colbert"]

# These families count positions from padding_idx + 1 and give a pad token no position of its own.
OFFSET_FAMILIES = frozenset({"xlm-roberta", "roberta", "camembert", "xlm-roberta-xl"})
_CROSS_ENCODERS = frozenset({"bert", "roberta", "camembert", "xlm-roberta", "qwen3"})
_FAMILY_MAX_LENGTH = {"qwen3": 32768}  # what Qwen publishes, whatever the position table would hold

_TOKENIZERS = (
    "tokenizer.json",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)
_HEADS: dict[Output, str] = {"sparse": "sparse_linear.pt", "colbert": "colbert_linear.pt"}


@dataclass(frozen=True, slots=True)
class Overrides:
    """Settings that override the folder's own files. None means that the folder decides."""

    pooling: PoolingMode | None = None
    max_length: int | None = None
    prompts: dict[str, str] | None = None


_NONE = Overrides()


@dataclass(frozen=True, slots=True)
class Recipe:
    """`dim` is 0 for rerankers; `max_length` counts special tokens; `yes_no` are token ids."""

    folder: Path
    family: str
    kind: Kind
    pooling: tuple[PoolingMode, ...]
    include_prompt: bool
    modules: tuple[Module, ...]
    dim: int
    max_length: int
    lower_case: bool
    prompts: Prompts
    outputs: tuple[Output, ...]
    yes_no: tuple[int, int] | None
    sources: dict[str, str]  # "pooling", "max_length", "prompts", "kind" -> where it was read

    @property
    def is_reranker(self) -> bool:
        return self.kind != "embedder"


def read_recipe(folder: Path, overrides: Overrides = _NONE) -> Recipe:
    """Raises ModelError naming the file and the reason."""
    try:
        recipe = _read(folder, overrides)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{folder}: its JSON files hold an odd value: {reason}") from error
    if recipe.max_length < 1:
        raise ModelError(f"{folder}: {recipe.sources['max_length']}: no input is short enough")
    if recipe.kind == "embedder" and recipe.dim < 1:
        raise ModelError(f"{folder}: no hidden_size or out_features says how wide vectors are")
    return recipe


def _read(folder: Path, overrides: Overrides) -> Recipe:
    config = read_object(folder / "config.json")
    listed = read_modules(folder)
    _check_files(folder)
    family = str(config.get("model_type", "unknown"))
    kind, kind_source, yes_no = _kind(folder, config, family, listed)
    sentence = read_object(folder / "sentence_bert_config.json", missing_ok=True)
    max_length, length_source = _max_length(folder, config, sentence, overrides)
    sources = {"kind": kind_source, "max_length": length_source}
    pooling: tuple[PoolingMode, ...] = ()
    include_prompt, dim = True, 0
    modules: tuple[Module, ...] = ()
    if kind == "embedder":
        pooling, include_prompt, sources["pooling"] = _pooling(folder, config, listed, overrides)
        modules = tuple(modules_after_pooling(folder, listed))
        dim = _dim(config, pooling, modules)
    prompts = read_prompts(folder, family, overrides.prompts)
    sources["prompts"] = prompts.source
    return Recipe(
        folder=folder,
        family=family,
        kind=kind,
        pooling=pooling,
        include_prompt=include_prompt,
        modules=modules,
        dim=dim,
        max_length=max_length,
        lower_case=bool(sentence.get("do_lower_case")),
        prompts=prompts,
        outputs=_outputs(folder) if kind == "embedder" else (),
        yes_no=yes_no,
        sources=sources,
    )


def _check_files(folder: Path) -> None:
    if not has_weights(folder):
        raise ModelError(f"{folder}: {NO_WEIGHTS}")
    if not any((folder / name).is_file() for name in _TOKENIZERS):  # transformers would make one up
        raise ModelError(f"{folder}: no tokenizer (tokenizer.json)")


def _kind(
    folder: Path, config: dict[str, Any], family: str, listed: list[tuple[str, Path]]
) -> tuple[Kind, str, tuple[int, int] | None]:
    architecture = str(next(iter(config.get("architectures") or []), ""))
    if "ForSequenceClassification" in architecture:
        labels = config.get("id2label") or {}
        num_labels = int(config.get("num_labels") or len(labels) or 2)
        if num_labels != 1:
            raise ModelError(f"{folder}: a classifier with {num_labels} labels is no reranker")
        if family not in _CROSS_ENCODERS:
            raise ModelError(f"{folder}: rerankers of family {family} are not supported")
        if family == "qwen3" and "rerank" not in folder.name.lower():
            raise ModelError(  # reward models look the same, and know no such template
                f"{folder}: one label, but is it a Qwen3-Reranker? Its folder's name must say so"
            )
        return "cross-encoder", f"config.json: {architecture} with one label", None
    logit_score = next((path for kind, path in listed if kind == "LogitScore"), None)
    is_named = "CausalLM" in architecture and "rerank" in folder.name.lower()
    if logit_score is None and not is_named:
        return "embedder", f"config.json: {architecture or family}", None
    if family != "qwen3":
        raise ModelError(f"{folder}: causal rerankers of family {family} are not supported")
    if logit_score is None:
        return "causal reranker", f"config.json: {architecture}, and the folder's name", None
    stored = read_object(logit_score / "config.json")
    try:
        yes_no = int(stored["true_token_id"]), int(stored["false_token_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{logit_score}: needs true_token_id and false_token_id") from error
    return "causal reranker", "modules.json: LogitScore", yes_no


def _pooling(
    folder: Path, config: dict[str, Any], listed: list[tuple[str, Path]], overrides: Overrides
) -> tuple[tuple[PoolingMode, ...], bool, str]:
    """Modes, whether a prompt's tokens count, and where that comes from."""
    modes, include_prompt, source = read_pooling(folder, listed)
    if overrides.pooling is not None:
        return (overrides.pooling,), include_prompt, "setting EMBEDDING_POOLING"
    if modes:
        return modes, include_prompt, source
    is_decoder = _is_decoder(config)
    family: PoolingMode = "last" if is_decoder else "mean"
    return (family,), True, f"no pooling config: default of {'de' if is_decoder else 'en'}coders"


def _is_decoder(config: dict[str, Any]) -> bool:
    architecture = str(next(iter(config.get("architectures") or []), ""))
    return "CausalLM" in architecture or config.get("model_type") in ("qwen3", "qwen2", "mistral")


def _dim(
    config: dict[str, Any], pooling: tuple[PoolingMode, ...], modules: tuple[Module, ...]
) -> int:
    outs = [module.config.get("out_features") for module in modules if module.kind == "Dense"]
    return int(outs[-1] or 0) if outs else int(config.get("hidden_size", 0)) * len(pooling)


def _max_length(
    folder: Path, config: dict[str, Any], sentence: dict[str, Any], overrides: Overrides
) -> tuple[int, str]:
    """The longest input in tokens, special ones included, and where that comes from."""
    tokenizer = read_object(folder / "tokenizer_config.json", missing_ok=True)
    table = config.get("max_position_embeddings")
    family = str(config.get("model_type"))
    offset = int(config.get("pad_token_id", 1)) + 1 if family in OFFSET_FAMILIES else 0
    bounds = [
        (int(table) - offset if table else None, "config.json"),
        (_FAMILY_MAX_LENGTH.get(family), "the family's published limit"),
    ]
    known = [(length, source) for length, source in bounds if length]
    if not known:
        raise ModelError(f"{folder}: config.json names no max_position_embeddings")
    longest, source = min(known)
    if overrides.max_length:
        if overrides.max_length > longest:
            return longest, f"{source}; EMBEDDING_MAX_LENGTH is more than that"
        return overrides.max_length, "setting EMBEDDING_MAX_LENGTH"
    if sentence.get("max_seq_length"):
        known = [(longest, source), (int(sentence["max_seq_length"]), "sentence_bert_config.json")]
    elif tokenizer.get("model_max_length"):
        length = int(min(tokenizer["model_max_length"], 1 << 30))  # 1e30 means: no limit
        known = [(longest, source), (length, "tokenizer_config.json")]
    return min(known, key=lambda entry: entry[0])


def _outputs(folder: Path) -> tuple[Output, ...]:
    heads = [output for output, name in _HEADS.items() if (folder / name).is_file()]
    return ("dense", *heads)
