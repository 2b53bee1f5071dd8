"""The check that ends every load: does the fast way give this model's own answer?

A fixed step of mixed lengths runs packed, and each of its sequences runs alone through stock
transformers. A family whose attention the packed way cannot express differs here, or raises, and is
then served padded. Must not know how models are loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine import attention
from engine.forward import Hidden, packed_hidden, padded_hidden
from engine.tokens import Tokens

_LENGTHS = (1, 2, 7, 7, 19, 40, 64)  # a single token, a run of equals, a mix
# Tokens shared with the longest, own tokens: two levels, equal neighbours, one that just ends.
_BRANCHES = ((16, 5), (32, 3), (32, 9), (32, 9), (32, 0))
STOCK_ATTENTION = "sdpa"

# Largest allowed difference of a hidden value, as a share of the values' root mean square.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def sample_sequences(
    vocab_size: int, max_length: int, *, share_prefixes: bool = False
) -> list[Tokens]:
    """The same token ids every time, away from the low ids where special tokens live.

    `share_prefixes` adds sequences that begin as the longest does, so that a packed forward of them
    shares on more than one level.
    """
    generator = torch.Generator().manual_seed(20240101)
    low = min(1000, vocab_size // 2)

    def draw(length: int) -> list[int]:
        return torch.randint(low, vocab_size, (length,), generator=generator).tolist()

    ids = [draw(length) for length in _LENGTHS]
    if share_prefixes:
        ids += [ids[-1][:shared] + draw(own) for shared, own in _BRANCHES] + [ids[-2]]
    return [Tokens(each[:max_length]) for each in ids]


def stock_hidden(model: Any, sequences: Sequence[Tokens]) -> Tensor:
    """`[T, H]`: stock attention, one sequence at a time. Leaves the model on stock attention."""
    model.set_attn_implementation(STOCK_ATTENTION)
    return torch.cat([padded_hidden(model, [tokens]).states for tokens in sequences])


def check_packed(
    model: Any, sequences: Sequence[Tokens], wanted: Tensor, *, share_prefixes: bool = False
) -> str:
    """Empty when the packed forward gives `wanted`, else the reason. Sets the attention used.

    Where it fails with `share_prefixes`, it may still pass without.
    """
    forward = functools.partial(packed_hidden, share_prefixes=share_prefixes)
    try:
        model.set_attn_implementation(attention.NAME)
        return difference(forward, model, sequences, wanted)
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
