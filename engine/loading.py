"""From a folder on disk to a model that answers: read its recipe, load, make fast, check.

Every decision is logged with where it came from. Never opens a connection, never runs code from the
folder (no pickle, no remote code). Must not know HTTP or batching.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from engine import attention, heads, linear, selfcheck
from engine.backbone import Backbone
from engine.devices import Device
from engine.errors import ModelError
from engine.forward import padded_hidden
from engine.model import EmbeddingModel, RerankingModel
from engine.pairs import CrossPairs, Qwen3Pairs
from engine.recipe import Overrides, Recipe, read_recipe
from engine.tokenizing import Tokenizer
from engine.tokens import Tokens

log = logging.getLogger("embedding.engine")

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_QWEN3_END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The settings that shape a model. "auto" means: the device's own."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    layout: Literal["auto", "packed", "padded"] = "auto"
    linear: Literal["auto", "packed", "plain"] = "auto"
    overrides: Overrides = field(default_factory=Overrides)


def load_model(
    name: str, folder: Path, device: Device, options: LoadOptions
) -> EmbeddingModel | RerankingModel:
    """Raises ModelError naming the file and the reason."""
    recipe = read_recipe(folder, options.overrides)
    load = _load_reranker if recipe.is_reranker else _load_embedder
    try:
        model = load(name, recipe, device, options)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{folder.name}: {error}") from error  # no fault of the folder's
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # an odd file
        raise ModelError(f"{folder}: {type(error).__name__}: {error}") from error
    model.add_pauses()
    _log_decisions(model)
    return model


def load_embedder(name: str, folder: Path, device: Device, options: LoadOptions) -> EmbeddingModel:
    """`load_model` for who needs vectors. Raises ModelError for a reranker too."""
    model = load_model(name, folder, device, options)
    if not isinstance(model, EmbeddingModel):
        raise ModelError(f"{folder}: a reranker has no vectors")
    return model


def load_reranker(name: str, folder: Path, device: Device, options: LoadOptions) -> RerankingModel:
    """`load_model` for who needs scores of pairs. Raises ModelError for an embedder too."""
    model = load_model(name, folder, device, options)
    if not isinstance(model, RerankingModel):
        raise ModelError(f"{folder}: not a reranker")
    return model


def _load_embedder(
    name: str, recipe: Recipe, device: Device, options: LoadOptions
) -> EmbeddingModel:
    ends_with = _QWEN3_END if recipe.family == "qwen3" and recipe.pooling == ("last",) else None
    tokenizer = Tokenizer(recipe.folder, lower_case=recipe.lower_case, ends_with=ends_with)
    modules = heads.load_modules(recipe, device.name)
    m3_heads = heads.M3Heads(recipe).to(device.name)
    model = _load_weights(AutoModel, recipe.folder, _dtype(device, options)).to(device.name)
    heads.check_widths(recipe, modules, m3_heads, int(model.config.hidden_size))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # BERT's next-sentence head: never part of an embedding
    backbone = _make_fast(model, recipe, device, options)
    return EmbeddingModel(name, recipe, backbone, tokenizer, modules, m3_heads)


def _load_reranker(
    name: str, recipe: Recipe, device: Device, options: LoadOptions
) -> RerankingModel:
    tokenizer = Tokenizer(recipe.folder, lower_case=recipe.lower_case)
    pairs = Qwen3Pairs(tokenizer) if recipe.family == "qwen3" else CrossPairs(tokenizer)
    dtype = _dtype(device, options)
    if recipe.kind == "causal reranker":
        model = _load_weights(AutoModel, recipe.folder, dtype).to(device.name)
        head = heads.yes_no(recipe, model, recipe.yes_no or _yes_no(recipe, tokenizer))
        backbone = _make_fast(model, recipe, device, options)
        return RerankingModel(name, recipe, backbone, tokenizer, pairs, head)
    whole = _load_weights(AutoModelForSequenceClassification, recipe.folder, dtype)
    whole = whole.to(device.name)
    head = heads.classifier(whole)
    backbone = _make_fast(whole.base_model, recipe, device, options)
    return RerankingModel(name, recipe, backbone, tokenizer, pairs, head)


def bytes_per_value(device: Device, options: LoadOptions) -> int:
    """Of weights in memory."""
    return torch.tensor([], dtype=_dtype(device, options)).element_size()


def set_threads(num_threads: int) -> None:
    """Compute threads of products that the calling thread starts."""
    torch.set_num_threads(num_threads)


def _dtype(device: Device, options: LoadOptions) -> torch.dtype:
    return _DTYPES[device.dtype if options.dtype == "auto" else options.dtype]


def _yes_no(recipe: Recipe, tokenizer: Tokenizer) -> tuple[int, int]:
    yes, no = (tokenizer.backend.token_to_id(word) for word in ("yes", "no"))
    if yes is None or no is None:
        raise ModelError(f"{recipe.folder}: its tokenizer has no tokens yes and no")
    return int(yes), int(no)


def _load_weights(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Safetensors stay mapped where dtypes agree."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype,
            attn_implementation=selfcheck.STOCK_ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # every library's own kind; the others mean a fault of the folder
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{folder}: {error}") from error
    _refuse_incomplete(folder, report)
    return model.eval().requires_grad_(False)


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, a device's, or the CPU allocator's, which has no class of its own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)


def _refuse_incomplete(folder: Path, report: dict[str, Any]) -> None:
    """transformers fills what the file lacks with random numbers; only the pooler may lack."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if missing or mismatched:
        what = f"lack {missing[0]}" if missing else f"do not fit the config: {mismatched[0]}"
        more = len(missing) + len(mismatched) - 1
        raise ModelError(f"{folder}: the weights {what}" + (f" and {more} more" if more else ""))


def _make_fast(model: Any, recipe: Recipe, device: Device, options: LoadOptions) -> Backbone:
    """Choose layout and linear layers, each kept only if the model's own answer comes out."""
    is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
    wanted_layout = device.layout if options.layout == "auto" else options.layout
    shares = is_causal and wanted_layout == "packed"
    with torch.inference_mode():
        sequences = selfcheck.sample_sequences(
            model.config.vocab_size, recipe.max_length, share_prefixes=shares
        )
        wanted = selfcheck.stock_hidden(model, sequences)
        linear_kind = _pack_linears(model, device, options, sequences, wanted)
        if wanted_layout == "padded":
            return Backbone(model, "padded", linear_kind, False)
        reason = _sliding_window(model.config)
        if shares and not reason:
            unshared = selfcheck.check_packed(model, sequences, wanted, share_prefixes=True)
            if not unshared:
                return Backbone(model, "packed", linear_kind, True)
            log.warning("prefixes are not shared: %s", unshared)
        reason = reason or selfcheck.check_packed(model, sequences, wanted)
    if not reason:
        return Backbone(model, "packed", linear_kind, False)
    log.warning("packed layout does not fit this model, serving it padded: %s", reason)
    model.set_attn_implementation(selfcheck.STOCK_ATTENTION)
    return Backbone(model, "padded", linear_kind, False)


def _pack_linears(
    model: Any, device: Device, options: LoadOptions, sequences: list[Tokens], wanted: Tensor
) -> Literal["packed", "plain"]:
    """Packed only if the stock forward over packed layers still gives `wanted`."""
    if options.linear == "plain" or device.kind != "cpu" or model.dtype != torch.float32:
        return "plain"
    reason = linear.can_pack()
    if not reason:
        replaced = linear.pack_linears(model)
        reason = selfcheck.difference(padded_hidden, model, sequences, wanted)
        if not reason:
            return "packed"
        linear.restore(replaced)
    log.warning("linear layers stay plain: %s", reason)
    return "plain"


def _sliding_window(config: Any) -> str:
    """Families name it in two ways; what is left over makes the attention itself refuse."""
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return "it has a sliding window" if getattr(config, "sliding_window", None) else ""
    return "it has layers with a sliding window" if "sliding_attention" in layers else ""


def _log_decisions(model: EmbeddingModel | RerankingModel) -> None:
    name, recipe, now = model.name, model.recipe, model.describe()
    log.info("model %s: %s, %s on %s", name, recipe.family, now["dtype"], now["device"])
    log.info("model %s: %s (%s)", name, recipe.kind, recipe.sources["kind"])
    if not recipe.is_reranker:
        source = recipe.sources["pooling"]
        without = "" if recipe.include_prompt else ", without the prompt's tokens"
        log.info("model %s: pooling %s (%s)%s", name, now["pooling"], source, without)
        log.info("model %s: outputs %s, %d values", name, now["outputs"], recipe.dim)
        log.info("model %s: prompts from %s", name, recipe.sources["prompts"])
    source = recipe.sources["max_length"]
    log.info("model %s: longest input %d tokens (%s)", name, recipe.max_length, source)
    log.info("model %s: layout %s, linear layers %s", name, now["layout"], now["linear"])
    for module in getattr(recipe, "modules", ()):
        log.info("model %s: %s after pooling (modules.json)", name, module.kind)


attention.register()
