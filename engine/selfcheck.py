"""The checks that end every load: does the fast way give this model's own answer?

A fixed batch of mixed lengths runs unpadded, and each of its sequences runs alone through stock
transformers. A family whose attention the unpadded layout cannot express differs here, or raises,
and is then served padded. A reranker's scores are compared with those of the stock model
and its head. Must not know how models are loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.forward import attention
from engine.forward.backbone import Hidden, padded_hidden, unpadded_hidden
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokens import PairLimits, Tokens

if TYPE_CHECKING:
    from engine.model import RerankingModel

_LENGTHS = (1, 2, 7, 7, 19, 40, 64)  # a single token, a run of equals, a mix
# Tokens shared with the longest, own tokens: two levels, equal neighbours, one that just ends.
_BRANCHES = ((16, 5), (32, 3), (32, 9), (32, 9), (32, 0))
STOCK_ATTENTION = "sdpa"

# From a single letter to several sentences, relevant and not.
_PAIRS = (
    ("a", "b"),
    ("what is a panda?", "The giant panda is a bear species endemic to China."),
    ("When is the lake's level lowest?", "In spring the snow melts and fills it. " * 4),
)
_MAX_PAIR_TOKENS = 256

# Largest allowed difference of a hidden value, as a share of the values' root mean square.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Largest allowed difference of a raw score, as a share of it, or of 1 where it is smaller. The
# stock head computes in the weights' type, ours in float32.
_SCORE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def sample_sequences(
    vocab_size: int, max_length: int, *, share_prefixes: bool = False
) -> list[Tokens]:
    """The same token ids every time, away from the low ids where special tokens live.

    `share_prefixes` adds sequences that begin as the longest does, so that an unpadded forward of
    them shares prefixes on more than one level.
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


def check_unpadded(
    model: Any, sequences: Sequence[Tokens], wanted: Tensor, *, share_prefixes: bool = False
) -> str:
    """Empty when the unpadded forward gives `wanted`, else the reason. Sets the attention used.

    A model that fails with `share_prefixes` may still pass without.
    """
    forward = functools.partial(unpadded_hidden, share_prefixes=share_prefixes)
    attention.register()
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


def sample_pairs(pairs: CrossPairs | Qwen3Pairs, max_length: int) -> list[Tokens]:
    return pairs.encode(_PAIRS, PairLimits(min(max_length, _MAX_PAIR_TOKENS)))


@torch.inference_mode()
def stock_logits(model: Any, sequences: Sequence[Tokens]) -> list[float]:
    """Raw scores by a whole `*ForSequenceClassification`, one sequence at a time."""
    return [float(model(**_inputs(model, tokens)).logits[0, 0]) for tokens in sequences]


@torch.inference_mode()
def stock_yes_no(model: Any, rows: Tensor, sequences: Sequence[Tokens]) -> list[float]:
    """logit(yes) - logit(no) of a stock backbone's last token with the two rows `[2, H]`."""
    scores = []
    for tokens in sequences:
        state = model(**_inputs(model, tokens)).last_hidden_state[0, -1].float()
        scores.append(float(rows[0] @ state) - float(rows[1] @ state))
    return scores


def _inputs(model: Any, tokens: Tokens) -> dict[str, Tensor]:
    rows = {"input_ids": tokens.ids, "attention_mask": [1] * len(tokens.ids)}
    if tokens.type_ids is not None:
        rows["token_type_ids"] = tokens.type_ids
    return {name: torch.tensor([row], device=model.device) for name, row in rows.items()}


def check_scores(
    model: RerankingModel, sequences: Sequence[Tokens], wanted: Sequence[float], dtype: torch.dtype
) -> str:
    """Empty when the model as it is served gives the stock scores `wanted`, else what differs."""
    limit = _SCORE_TOLERANCE[dtype]
    scores = model.run(sequences).tolist()
    for i, (score, stock) in enumerate(zip(scores, wanted, strict=True)):
        if not abs(score - stock) <= limit * max(1.0, abs(stock)):  # written so that NaN fails
            return (
                f"the score of check pair {i + 1} is {score:.4f}, "
                f"transformers' own model gives {stock:.4f}"
            )
    return ""
