"""From a folder on disk to a model that answers: what to read, what to decide, what to check.

Every decision is logged with where it came from. Never opens a connection, never runs code from the
folder (no pickle, no remote code). Must not know HTTP or batching.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from engine import attention, linear, selfcheck
from engine.devices import Device
from engine.errors import ModelError
from engine.forward import padded_hidden, position_offset
from engine.model import EmbeddingModel
from engine.pooling import Pooling, choose_pooling, refuse_other_modules
from engine.tokenizing import Tokenizer
from engine.tokens import Tokens

log = logging.getLogger("embedding.engine")

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The settings that shape a model. None and "auto" mean: the model's or the device's own."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    layout: Literal["auto", "packed", "padded"] = "auto"
    linear: Literal["auto", "packed", "plain"] = "auto"
    pooling: Pooling | None = None
    max_length: int | None = None


def load_model(name: str, folder: Path, device: Device, options: LoadOptions) -> EmbeddingModel:
    """Raises ModelError naming the file and the reason."""
    config = _read_config(folder)
    _refuse_rerankers(folder, config)
    refuse_other_modules(folder)
    tokenizer = Tokenizer(folder)
    dtype = device.dtype if options.dtype == "auto" else options.dtype
    model = _load_weights(folder, _DTYPES[dtype]).to(device.name)
    is_decoder = any(getattr(module, "is_causal", False) is True for module in model.modules())
    pooling, pooling_source = choose_pooling(folder, options.pooling, is_decoder)
    max_length, length_source = _choose_max_length(folder, model.config, tokenizer, options)
    layout, linear_kind = _make_fast(model, max_length, device, options)
    log.info("model %s: %s, %s on %s", name, model.config.model_type, dtype, device.name)
    log.info("model %s: pooling %s (%s)", name, pooling, pooling_source)
    log.info("model %s: longest input %d tokens (%s)", name, max_length, length_source)
    log.info("model %s: layout %s, linear layers %s", name, layout, linear_kind)
    return EmbeddingModel(name, model, tokenizer, pooling, max_length, layout, linear_kind)


def set_threads(num_threads: int) -> None:
    """Compute threads of products that the calling thread starts."""
    torch.set_num_threads(num_threads)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object")
    return config


def _refuse_rerankers(folder: Path, config: dict[str, Any]) -> None:
    architecture = next(iter(config.get("architectures") or []), "")
    is_causal_reranker = "CausalLM" in architecture and "reranker" in folder.name.lower()
    if "ForSequenceClassification" in architecture or is_causal_reranker:
        raise ModelError(f"{folder}: {architecture} is a reranker; this version serves embedders")


def _load_weights(folder: Path, dtype: torch.dtype) -> Any:
    """The backbone without its pooler head. Safetensors stay mapped where dtypes agree."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype,
            attn_implementation=selfcheck.STOCK_ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # every library's own kind; all mean that the folder is at fault
        raise ModelError(f"{folder}: {error}") from error
    _refuse_incomplete(folder, report)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # BERT's next-sentence head: never part of an embedding
    return model.eval().requires_grad_(False)


def _refuse_incomplete(folder: Path, report: dict[str, Any]) -> None:
    """transformers fills what the file lacks with random numbers; only the pooler may lack."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if missing or mismatched:
        what = f"lack {missing[0]}" if missing else f"do not fit the config: {mismatched[0]}"
        more = len(missing) + len(mismatched) - 1
        raise ModelError(f"{folder}: the weights {what}" + (f" and {more} more" if more else ""))


def _choose_max_length(
    folder: Path, config: Any, tokenizer: Tokenizer, options: LoadOptions
) -> tuple[int, str]:
    """The longest input in tokens, special ones included, and where that comes from."""
    positions = config.max_position_embeddings - position_offset(config)
    path = folder / "sentence_bert_config.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    candidates = (
        (options.max_length, "setting EMBEDDING_MAX_LENGTH"),
        (stored.get("max_seq_length"), path.name),
        (min(positions, tokenizer.model_max_length), "config.json and tokenizer_config.json"),
    )
    length, source = next((length, source) for length, source in candidates if length)
    if length > positions and options.max_length:
        raise ModelError(f"EMBEDDING_MAX_LENGTH={length}: {folder.name} has {positions} positions")
    return min(int(length), positions), source


def _make_fast(
    model: Any, max_length: int, device: Device, options: LoadOptions
) -> tuple[Literal["packed", "padded"], Literal["packed", "plain"]]:
    """Choose layout and linear layers, each kept only if the model's own answer comes out."""
    wanted_layout = device.layout if options.layout == "auto" else options.layout
    with torch.inference_mode():
        sequences = selfcheck.sample_sequences(model.config.vocab_size, max_length)
        wanted = selfcheck.stock_hidden(model, sequences)
        linear_kind = _pack_linears(model, device, options, sequences, wanted)
        if wanted_layout == "padded":
            return "padded", linear_kind
        reason = _sliding_window(model.config) or selfcheck.check_packed(model, sequences, wanted)
    if not reason:
        return "packed", linear_kind
    log.warning("packed layout does not fit this model, serving it padded: %s", reason)
    model.set_attn_implementation(selfcheck.STOCK_ATTENTION)
    return "padded", linear_kind


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


attention.register()
