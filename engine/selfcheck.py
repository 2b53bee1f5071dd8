"""The checks that end every load: does the fast way give this model's own answer?

A fixed batch of mixed lengths runs as it will be served, and through stock transformers. A family
whose attention the unpadded layout cannot express differs here, or raises, and is then served
padded. A reranker's scores are compared with those of the stock model and its head. Must not know
how models are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.forward.backbone import Hidden, padded_inputs
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokens import PairLimits, Tokens

if TYPE_CHECKING:
    from engine.model import RerankingModel

_LENGTHS = (1, 2, 7, 7, 12, 15, 24)  # a single token, equals, a padded pair, a mix
# Tokens shared with the longest, own tokens: two levels, equal neighbours, one that just ends.
_BRANCHES = ((8, 5), (17, 3), (17, 9), (17, 9), (17, 0))
STOCK_ATTENTION = "sdpa"

# What vectors are compared on: three languages, from a few words to a few sentences.
TEXTS = (
    "The giant panda is a bear that lives in the mountains of central China.",
    "数据库索引可以加快查询速度，但会占用额外的存储空间，并且会使写入变慢。",
    "Wie hoch ist die Miete für eine kleine Wohnung in der Innenstadt?",
    "In spring the snow melts and fills the lake. Its level is lowest in March, when the river "
    "still carries little water, and highest in June.",
)
# From a single letter to several sentences, relevant and not.
_PAIRS = (
    ("a", "b"),
    ("what is a panda?", "The giant panda is a bear species endemic to China."),
    ("When is the lake's level lowest?", "In spring the snow melts and fills it. " * 4),
)
_MAX_PAIR_TOKENS = 256

# Largest allowed difference of a hidden value, as a share of the values' root mean square.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
# Coarser types are compared by the least cosine of a token's state.
_LEAST_COSINE = {"bfloat16": 0.99, "int8": 0.97}
# Largest allowed difference of a raw score, as a share of it, or of 1 where it is smaller. The
# stock head computes in the weights' type, ours in float32.
_SCORE_TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1, "int8": 3e-1}


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


@dataclass(frozen=True, slots=True)
class Stock:
    """What stock transformers gives for some sequences, one after the other."""

    hidden: Hidden
    logits: Tensor | None = None  # [n, labels], of a model with a classification head

    @property
    def is_finite(self) -> bool:
        return bool(self.hidden.states.isfinite().all())


@torch.inference_mode()
def run_stock(whole: Any, sequences: Sequence[Tokens]) -> Stock:
    """By stock attention, one sequence at a time. Leaves the model on stock attention."""
    whole.set_attn_implementation(STOCK_ATTENTION)
    base = whole.base_model
    found: list[Tensor] = []
    handle = base.register_forward_hook(
        lambda module, inputs, output: found.append(output.last_hidden_state[0])
    )
    outputs = [whole(**padded_inputs(whole, [tokens])) for tokens in sequences]
    handle.remove()
    lengths = torch.tensor([len(tokens.ids) for tokens in sequences], device=whole.device)
    hidden = Hidden(torch.cat(found), lengths)
    if whole is base:
        return Stock(hidden)
    return Stock(hidden, torch.cat([output.logits for output in outputs]))


def difference(
    forward: Callable[[Sequence[Tokens]], Hidden],
    sequences: Sequence[Tokens],
    wanted: Hidden,
    dtype: str,
) -> str:
    """Empty when `forward` gives the states `wanted` within the dtype's tolerance, else how far off
    it is, or what it raised."""
    try:
        got = forward(sequences).tokens().float()
    except Exception as reason:  # a family may fail in any way; it is served another way then
        return f"{type(reason).__name__}: {reason}"
    states = wanted.tokens().float()
    if least := _LEAST_COSINE.get(dtype):
        cosine = F.cosine_similarity(got, states).min().item()
        return "" if cosine >= least else f"a state's cosine is {cosine:.4f}, least is {least}"
    scale = states.square().mean().sqrt().item()
    error = (got - states).abs().max().item() / max(scale, 1e-12)
    limit = TOLERANCE[dtype]
    return "" if error <= limit else f"hidden states differ by {error:.1e}, allowed are {limit:.0e}"


def check_vectors(wanted: Tensor) -> str:
    """Empty when stock vectors `[n, dim]` of different texts can be a model's, else what is odd."""
    if not wanted.isfinite().all():
        return "its vectors are not finite numbers"
    if not wanted.any(dim=1).all():
        return "its vectors are zero"
    if len(wanted) > 1 and bool((wanted == wanted[0]).all()):
        return "it gives every text the same vector"
    return ""


def sample_pairs(pairs: CrossPairs | Qwen3Pairs, max_length: int) -> list[Tokens]:
    return pairs.encode(_PAIRS, PairLimits(min(max_length, _MAX_PAIR_TOKENS)))


def check_scores(
    model: RerankingModel, sequences: Sequence[Tokens], wanted: Sequence[float], dtype: str
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
