"""How a model runs: by a forward of our own, by transformers' unpadded, or padded.

Each way is kept only if it gives the model's own answer (engine/selfcheck.py); the reason why
another was not taken is logged. Must not know tokenizers or what the model is for.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from engine import selfcheck
from engine.devices import Device
from engine.errors import ModelError
from engine.folder.recipe import Overrides, Recipe
from engine.folder.weight_files import lossless_dtype
from engine.forward import attention, conversion, linear
from engine.forward.backbone import (
    Backbone,
    Hidden,
    UnpaddedForward,
    pad_id_of,
    padded_hidden,
    transformers_row,
)
from engine.forward.preemption import add_preemption_points
from engine.selfcheck import Stock
from engine.text.tokens import Tokens

log = logging.getLogger("embedding.engine")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Load = Callable[[torch.dtype], Any]  # transformers' model in a dtype, with its head if it has one


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The settings that shape a model. "auto" means the device's own default."""

    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    layout: Literal["auto", "unpadded", "padded"] = "auto"
    linear: Literal["auto", "prepacked", "plain"] = "auto"
    overrides: Overrides = field(default_factory=Overrides)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A way in which a model runs, and what stock transformers gives for the check's sequences."""

    backbone: Backbone
    whole: Any  # transformers' model; its layers may have lost their weights to the backbone
    stock: Stock


def dtypes_of(device: Device, options: LoadOptions) -> list[str]:
    """What linear layers may compute in, the first that gives the model's answer being taken."""
    is_cpu = device.kind == "cpu"
    if options.dtype == "int8":
        return ["int8", "float32"] if is_cpu else [device.dtype]
    if options.dtype != "auto":
        return [options.dtype]
    return ["bfloat16", "float32"] if is_cpu and linear.is_faster("bfloat16") else [device.dtype]


def fits(
    load: Load, recipe: Recipe, device: Device, options: LoadOptions, extra: Sequence[Tokens]
) -> Iterator[Fitted]:
    """The ways in which the model gives its own answer, the fastest first.

    `extra` sequences take part in the checks, after the built-in ones. Raises ModelError when the
    stock answer is not finite.
    """
    layout = device.layout if options.layout == "auto" else options.layout
    dtypes = dtypes_of(device, options)
    own = layout == "unpadded" and options.linear != "plain" and device.kind == "cpu"
    if not own:
        dtypes = dtypes[-1:]
    for place, dtype in enumerate(dtypes):
        ask = _Ask(load, recipe, device, dtype, _reason(options, dtypes, place), extra)
        if own:
            yield from ask.own()
    yield from ask.transformers(layout, options.linear)


def _reason(options: LoadOptions, dtypes: Sequence[str], place: int) -> str:
    """Why this one of the types is taken."""
    if place:
        return f"in {dtypes[0]} this model does not run, or its answer changes"
    if options.dtype == dtypes[0]:
        return "setting"
    if options.dtype != "auto":
        return f"{options.dtype} needs the CPU, unpadded batches and prepacked layers"
    return "faster here, and no check's answer changes" if len(dtypes) > 1 else "default"


@dataclass(frozen=True, slots=True)
class _Ask:
    load: Load
    recipe: Recipe
    device: Device
    dtype: str
    dtype_reason: str
    extra: Sequence[Tokens]

    def own(self) -> Iterator[Fitted]:
        """By a forward of our own, if there is one for the architecture and it agrees."""
        if self.recipe.family not in conversion.FAMILIES or self.dtype not in linear.FORMS:
            return
        if reason := linear.can_prepack(self.dtype):
            log.warning("no prepacked linear layers in %s: %s", self.dtype, reason)
            return
        whole = self.load(_STORED.get(lossless_dtype(self.recipe.folder), torch.float32))
        model = whole.base_model
        if conversion.why_not(model):
            return
        shares = conversion.is_decoder(model)
        sequences = self._sequences(whole, shares)
        stock, forward = conversion.convert(whole, sequences, self.dtype)
        self._check(stock)
        pad_id = pad_id_of(model.config)
        row = UnpaddedForward(forward, pad_id=pad_id, share_prefixes=shares, rounds_up=True)
        backbone = self._backbone(row, whole, "unpadded", "prepacked")
        reason = selfcheck.difference(row, sequences, stock.hidden, self.dtype)
        if reason:
            log.warning("our own forward in %s does not fit this model: %s", self.dtype, reason)
            return
        yield Fitted(backbone, whole, stock)

    def transformers(self, layout: str, linear_kind: str) -> Iterator[Fitted]:
        """By transformers' forward: unpadded with our attention, or padded."""
        whole = self.load(DTYPES[self.dtype])
        model = whole.base_model
        is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
        shares = is_causal and layout == "unpadded"
        sequences = self._sequences(whole, shares)
        with torch.inference_mode():
            stock = selfcheck.run_stock(whole, sequences)
            self._check(stock)
            kind = "plain" if linear_kind == "plain" else self._prepack(model, sequences, stock)
            if not add_preemption_points(model):
                name = self.recipe.folder.name
                log.warning("model %s: its layers are not known, no batch is preempted", name)
            for row in self._rows(model, layout, shares):
                model.set_attn_implementation(attention.NAME)
                reason = selfcheck.difference(row, sequences, stock.hidden, self.dtype)
                if not reason:
                    yield Fitted(self._backbone(row, whole, "unpadded", kind), whole, stock)
                elif row.share_prefixes:
                    log.warning("prefixes are not shared: %s", reason)
                else:
                    log.warning("the unpadded layout does not fit this model: %s", reason)
        model.set_attn_implementation(selfcheck.STOCK_ATTENTION)
        padded = functools.partial(padded_hidden, model)
        yield Fitted(self._backbone(padded, whole, "padded", kind), whole, stock)

    def _rows(self, model: Any, layout: str, shares: bool) -> Iterator[UnpaddedForward]:
        if layout == "padded":
            return
        if reason := _sliding_window(model.config):
            log.warning("the unpadded layout does not fit this model: %s", reason)
            return
        attention.register()
        row = functools.partial(transformers_row, model)
        plain = UnpaddedForward(row, self.device.name, pad_id_of(model.config))
        if shares:
            yield replace(plain, share_prefixes=True)
        yield plain

    def _sequences(self, whole: Any, shares: bool) -> list[Tokens]:
        vocab_size = whole.get_input_embeddings().weight.shape[0]
        drawn = selfcheck.sample_sequences(
            vocab_size, self.recipe.max_length, share_prefixes=shares
        )
        return [*drawn, *self.extra]

    def _check(self, stock: Stock) -> None:
        if not stock.is_finite:
            folder = self.recipe.folder
            raise ModelError(f"{folder}: transformers' own model gives values that are not finite")

    def _backbone(
        self, forward: Callable[[Sequence[Tokens]], Hidden], whole: Any, layout: Any, linear: Any
    ) -> Backbone:
        return Backbone(
            forward=forward,
            words=whole.base_model.get_input_embeddings().weight,
            device=self.device.name,
            dtype=self.dtype,
            dtype_reason=self.dtype_reason,
            layout=layout,
            linear=linear,
            shares_prefixes=getattr(forward, "share_prefixes", False),
        )

    def _prepack(self, model: Any, sequences: list[Tokens], stock: Stock) -> str:
        """Prepacked only if the stock forward over prepacked layers still gives its answer."""
        if self.device.kind != "cpu" or self.dtype != "float32":
            return "plain"
        reason = linear.can_prepack(self.dtype)
        if not reason:
            replaced = linear.prepack_linears(model)
            padded = functools.partial(padded_hidden, model)
            reason = selfcheck.difference(padded, sequences, stock.hidden, self.dtype)
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
