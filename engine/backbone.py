"""transformers' model without a head: a step of tokens to their hidden states, and what it costs.

Must not know tokenizers, pooling, jobs or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.forward import Hidden, packed_hidden, padded_hidden
from engine.tokens import Tokens

# Fewer leading tokens than this in common with the sequence before are not worth a segment.
_MIN_SHARED = 8


@dataclass(frozen=True, slots=True)
class Backbone:
    """transformers' model without a head, and how a step runs through it."""

    model: Any
    layout: Literal["packed", "padded"]
    linear: Literal["packed", "plain"]
    shares_prefixes: bool

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: ids from 0 up to it have one."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def hidden(self, step: Sequence[Tokens]) -> tuple[Hidden, list[int]]:
        """States of the step's sequences in the order that is returned with them."""
        order = sorted(range(len(step)), key=lambda i: len(step[i].ids))
        sequences = [step[i] for i in order]
        if self.layout == "padded":
            return padded_hidden(self.model, sequences), order
        return packed_hidden(self.model, sequences, share_prefixes=self.shares_prefixes), order

    def costs(self, sequences: Sequence[Tokens]) -> list[int]:
        """Tokens that each will compute, given that a job's sequences run in order."""
        costs = [len(tokens.ids) for tokens in sequences]
        if self.shares_prefixes:
            for i in range(1, len(sequences)):
                shared = _num_common(sequences[i - 1].ids, sequences[i].ids)
                costs[i] -= shared if shared >= _MIN_SHARED else 0
        return [max(1, cost) for cost in costs]

    def describe(self) -> dict[str, str | int]:
        return {
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "layout": self.layout,
            "linear": self.linear,
        }


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning, by bisection over slices, which compare in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
