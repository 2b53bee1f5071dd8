"""From a folder on disk to a model that answers: read its recipe, load it, make it fast, check it.

Every decision is logged with its source. Never opens a connection and never runs code from the
folder (no pickle, no remote code). Must not know HTTP or batching.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from engine import memory, selfcheck
from engine.devices import Device
from engine.errors import ModelError
from engine.fitting import LoadOptions, dtypes_of, fits
from engine.folder.recipe import Recipe, read_recipe
from engine.folder.sentence_files import read_object
from engine.forward import conversion, heads
from engine.forward.backbone import Hidden
from engine.model import EmbeddingModel, RerankingModel
from engine.outputs import dense_rows
from engine.selfcheck import Stock
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import TextLimits, Tokens

log = logging.getLogger("embedding.engine")

_QWEN3_END = "<|endoftext|>"
_MAX_SAMPLE_TOKENS = 24  # of a built-in text
# Least cosine of a built-in text's vector with the stock model's. Nobody who asked for no type may
# notice which one is taken.
_LEAST_COSINE = {"auto": 0.9995, "bfloat16": 0.99, "int8": 0.97}


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
    _log_decisions(model)
    return model


def _load_embedder(
    name: str, recipe: Recipe, device: Device, options: LoadOptions
) -> EmbeddingModel:
    ends_with = _QWEN3_END if recipe.family == "qwen3" and recipe.pooling == ("last",) else None
    tokenizer = Tokenizer(recipe.folder, lower_case=recipe.lower_case, ends_with=ends_with)
    modules = heads.load_modules(recipe, device.name)
    m3_heads = heads.M3Heads(recipe).to(device.name)

    def load(dtype: torch.dtype) -> Any:
        model = _load_weights(AutoModel, recipe.folder, dtype).to(device.name)
        heads.check_widths(recipe, modules, m3_heads, int(model.config.hidden_size))
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # BERT's next-sentence head: never part of an embedding
        return model

    limits = TextLimits(min(recipe.max_length, _MAX_SAMPLE_TOKENS))
    sample = [Tokens(each.ids) for each in tokenizer.encode(selfcheck.TEXTS, limits)]
    for fitted in fits(load, recipe, device, options, sample):
        model = EmbeddingModel(name, recipe, fitted.backbone, tokenizer, modules, m3_heads)
        wanted = _stock_vectors(model, fitted.stock, len(sample))
        if reason := selfcheck.check_vectors(wanted):
            raise ModelError(f"{recipe.folder}: {reason}: are the weights whole?")
        got = torch.from_numpy(dense_rows(model.run(sample)))
        cosine = torch.nn.functional.cosine_similarity(got, wanted).min().item()
        dtype = fitted.backbone.dtype
        is_auto = dtype == "bfloat16" and options.dtype == "auto"
        if cosine >= _LEAST_COSINE.get("auto" if is_auto else dtype, -1.0):
            break
        log.warning("model %s: not in %s, a vector's cosine is %.5f", name, dtype, cosine)
    return model


def _stock_vectors(model: EmbeddingModel, stock: Stock, count: int) -> Tensor:
    """`[count, dim]` of the check's last sequences."""
    lengths = stock.hidden.lengths[-count:]
    hidden = Hidden(stock.hidden.states[-int(lengths.sum()) :], lengths)
    return model.vectors(hidden).cpu()


def _load_reranker(
    name: str, recipe: Recipe, device: Device, options: LoadOptions
) -> RerankingModel:
    tokenizer = Tokenizer(recipe.folder, lower_case=recipe.lower_case)
    pairs = Qwen3Pairs(tokenizer) if recipe.family == "qwen3" else CrossPairs(tokenizer)
    sample = selfcheck.sample_pairs(pairs, recipe.max_length)
    is_causal = recipe.kind == "causal reranker"
    kind = AutoModel if is_causal else AutoModelForSequenceClassification
    yes_no = recipe.yes_no or _yes_no(recipe, tokenizer) if is_causal else None

    def load(dtype: torch.dtype) -> Any:
        return _load_weights(kind, recipe.folder, dtype).to(device.name)

    reason = ""
    for fitted in fits(load, recipe, device, options, sample):
        if reason:
            log.warning("model %s is served %s: %s", name, fitted.backbone.layout, reason)
        if yes_no is None:
            assert fitted.stock.logits is not None
            head = heads.classifier(fitted.whole)
            wanted = fitted.stock.logits[-len(sample) :, 0]
        else:
            rows = heads.yes_no_rows(recipe, fitted.whole, fitted.backbone.words, yes_no)
            head = heads.yes_no(rows)
            wanted = fitted.stock.hidden.last()[-len(sample) :].float() @ (rows[0] - rows[1])
        model = RerankingModel(name, recipe, fitted.backbone, tokenizer, pairs, head)
        reason = _check_scores(model, sample, wanted.tolist())
        if not reason:
            return model
    raise ModelError(f"{recipe.folder}: {reason}")


def _check_scores(model: RerankingModel, sample: list[Tokens], wanted: list[float]) -> str:
    try:
        return selfcheck.check_scores(model, sample, wanted, model.dtype)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return f"its score head does not fit: {error}"


def bytes_needed(folder: Path, device: Device, options: LoadOptions) -> int:
    """What loading will need at most, from the weights' headers. Raises ModelError."""
    dtypes = dtypes_of(device, options)
    is_ours = read_object(folder / "config.json").get("model_type") in conversion.FAMILIES
    sizes = {"float32": 4, "int8": 1}
    return memory.model_bytes(folder, sizes.get(dtypes[0] if is_ours else dtypes[-1], 2))


def set_threads(num_threads: int) -> None:
    """Compute threads of products that the calling thread starts."""
    torch.set_num_threads(num_threads)


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


def _log_decisions(model: EmbeddingModel | RerankingModel) -> None:
    name, recipe, now = model.name, model.recipe, model.describe()
    log.info("model %s: %s on %s", name, recipe.family, now["device"])
    log.info("model %s: computes in %s (%s)", name, now["dtype"], now["dtype_reason"])
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
