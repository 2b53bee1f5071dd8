"""The check that ends every load: does the fast way give this model's own answer?

A fixed step of mixed lengths runs packed, and each of its sequences runs alone through stock
transformers. A family whose attention the packed way cannot express differs here, or raises, and is
then served padded. Must not know how models are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine import attention
from engine.forward import Hidden, packed_hidden, padded_hidden
from engine.tokens import Tokens

_LENGTHS = (1, 2, 7, 7, 19, 40, 64)  # a single token, a run of equals, a mix
STOCK_ATTENTION = "sdpa"

# Largest allowed difference of a hidden value, as a share of the values' root mean square.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def sample_sequences(vocab_size: int, max_length: int) -> list[Tokens]:
    """The same token ids every time, away from the low ids where special tokens live."""
    generator = torch.Generator().manual_seed(20240101)
    low = min(1000, vocab_size // 2)
    lengths = [min(length, max_length) for length in _LENGTHS]
    return [
        Tokens(torch.randint(low, vocab_size, (length,), generator=generator).tolist())
        for length in lengths
    ]


def stock_hidden(model: Any, sequences: Sequence[Tokens]) -> Tensor:
    """`[T, H]`: stock attention, one sequence at a time. Leaves the model on stock attention."""
    model.set_attn_implementation(STOCK_ATTENTION)
    return torch.cat([padded_hidden(model, [tokens]).states for tokens in sequences])


def check_packed(model: Any, sequences: Sequence[Tokens], wanted: Tensor) -> str:
    """Empty when the packed forward gives `wanted`, else the reason. Sets the attention used."""
    try:
        model.set_attn_implementation(attention.NAME)
        return difference(packed_hidden, model, sequences, wanted)
    except Exception as error:  # a family may fail in any way; it is served padded then
        return f"{type(error).__name__}: {error}"


def difference(
    forward: Callable[[Any, Sequence[Tokens]], Hidden],
    model: Any,
    sequences: Sequence[Tokens],
    wanted: Tensor,
) -> str:
    """Empty when `forward` agrees with `wanted` within the dtype's tolerance, else how far off."""
    got = forward(model, sequences).tokens()
    scale = wanted.float().square().mean().sqrt().item()
    error = (got.float() - wanted.float()).abs().max().item() / max(scale, 1e-12)
    limit = TOLERANCE[wanted.dtype]
    return "" if error <= limit else f"hidden states differ by {error:.1e}, allowed are {limit:.0e}"
