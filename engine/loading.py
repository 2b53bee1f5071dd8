"""From a folder on disk to a model that answers: read its recipe, load it, make it fast, check it.

Every decision is logged with its source. Never opens a connection and never runs code from the
folder (no pickle, no remote code). Must not know HTTP or batching.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from engine import selfcheck
from engine.devices import Device
from engine.errors import ModelError
from engine.folder.recipe import Overrides, Recipe, read_recipe
from engine.forward import heads, linear
from engine.forward.backbone import Backbone, padded_hidden
from engine.model import EmbeddingModel, RerankingModel
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import Tokens

log = logging.getLogger("embedding.engine")

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_QWEN3_END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The settings that shape a model. "auto" means the device's own default."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    layout: Literal["auto", "unpadded", "padded"] = "auto"
    linear: Literal["auto", "prepacked", "plain"] = "auto"
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
            raise MemoryError(f"{folder.name}: {error}") from error  # the folder is not to blame
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # an odd file
        raise ModelError(f"{folder}: {type(error).__name__}: {error}") from error
    model.add_preemption_points()
    _log_decisions(model)
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
    sample = selfcheck.sample_pairs(pairs, recipe.max_length)
    dtype = _dtype(device, options)
    if recipe.kind == "causal reranker":
        base = _load_weights(AutoModel, recipe.folder, dtype).to(device.name)
        rows = heads.yes_no_rows(recipe, base, recipe.yes_no or _yes_no(recipe, tokenizer))
        wanted = selfcheck.stock_yes_no(base, rows, sample)
        head = heads.yes_no(rows)
    else:
        whole = _load_weights(AutoModelForSequenceClassification, recipe.folder, dtype)
        base = whole.to(device.name).base_model
        wanted = selfcheck.stock_logits(whole, sample)
        head = heads.classifier(whole)
    backbone = _make_fast(base, recipe, device, options)
    model = RerankingModel(name, recipe, backbone, tokenizer, pairs, head)
    reason = _check_scores(model, sample, wanted, dtype)
    if reason and backbone.layout == "unpadded":
        log.warning("serving model %s padded: %s", name, reason)
        base.set_attn_implementation(selfcheck.STOCK_ATTENTION)
        backbone = replace(backbone, layout="padded", shares_prefixes=False)
        model = RerankingModel(name, recipe, backbone, tokenizer, pairs, head)
        reason = _check_scores(model, sample, wanted, dtype)
    if reason:
        raise ModelError(f"{recipe.folder}: {reason}")
    return model


def _check_scores(
    model: RerankingModel, sample: list[Tokens], wanted: list[float], dtype: torch.dtype
) -> str:
    try:
        return selfcheck.check_scores(model, sample, wanted, dtype)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return f"its score head does not fit: {error}"


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
    """Safetensors stay memory-mapped where the dtypes agree."""
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
    except Exception as error:  # each library raises its own; all mean that the folder is at fault
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
    """transformers fills what a file lacks with random numbers; only the pooler may be missing."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if missing or mismatched:
        what = f"lack {missing[0]}" if missing else f"do not fit the config: {mismatched[0]}"
        more = len(missing) + len(mismatched) - 1
        raise ModelError(f"{folder}: the weights {what}" + (f" and {more} more" if more else ""))


def _make_fast(model: Any, recipe: Recipe, device: Device, options: LoadOptions) -> Backbone:
    """Choose layout and linear layers; each is kept only if it gives the model's own answer."""
    is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
    wanted_layout = device.layout if options.layout == "auto" else options.layout
    shares = is_causal and wanted_layout == "unpadded"
    with torch.inference_mode():
        sequences = selfcheck.sample_sequences(
            model.config.vocab_size, recipe.max_length, share_prefixes=shares
        )
        wanted = selfcheck.stock_hidden(model, sequences)
        linear_kind = _prepack_linears(model, device, options, sequences, wanted)
        if wanted_layout == "padded":
            return Backbone(model, "padded", linear_kind, False)
        reason = _sliding_window(model.config)
        if shares and not reason:
            unshared = selfcheck.check_unpadded(model, sequences, wanted, share_prefixes=True)
            if not unshared:
                return Backbone(model, "unpadded", linear_kind, True)
            log.warning("prefixes are not shared: %s", unshared)
        reason = reason or selfcheck.check_unpadded(model, sequences, wanted)
    if not reason:
        return Backbone(model, "unpadded", linear_kind, False)
    log.warning("the unpadded layout does not fit this model, serving it padded: %s", reason)
    model.set_attn_implementation(selfcheck.STOCK_ATTENTION)
    return Backbone(model, "padded", linear_kind, False)


def _prepack_linears(
    model: Any, device: Device, options: LoadOptions, sequences: list[Tokens], wanted: Tensor
) -> Literal["prepacked", "plain"]:
    """Prepacked only if the stock forward over prepacked layers still gives `wanted`."""
    if options.linear == "plain" or device.kind != "cpu" or model.dtype != torch.float32:
        return "plain"
    reason = linear.can_prepack()
    if not reason:
        replaced = linear.prepack_linears(model)
        reason = selfcheck.difference(padded_hidden, model, sequences, wanted)
        if not reason:
            return "prepacked"
        linear.restore(replaced)
    log.warning("linear layers stay plain: %s", reason)
    return "plain"


def _sliding_window(config: Any) -> str:
    """Families name it in two ways; the attention itself refuses any other."""
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
