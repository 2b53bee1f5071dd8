"""A loaded model: texts or pairs to tokens, and a step of tokens to vectors or scores.

Two threads call it: the tokenizer thread `tokenize`, the lane's thread `run`; they share nothing
that changes. Must not know jobs, HTTP or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.forward import Hidden, packed_hidden, padded_hidden
from engine.heads import M3Heads, ScoreHead
from engine.pairs import CrossPairs, Qwen3Pairs
from engine.pooling import pool
from engine.recipe import Recipe
from engine.tokenizing import Tokenizer
from engine.tokens import PairLimits, Tokens
from engine.views import Views, lexical_weights

# Fewer leading tokens than this in common with the sequence before are not worth a segment.
_MIN_SHARED = 8


@dataclass(frozen=True, slots=True)
class Backbone:
    """transformers' model without a head, and how a step runs through it."""

    model: Any
    layout: Literal["packed", "padded"]
    linear: Literal["packed", "plain"]
    shares_prefixes: bool

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


class EmbeddingModel:
    """`dim` is the vectors' width, `max_length` the longest input in tokens (special ones too)."""

    is_reranker = False

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        backbone: Backbone,
        tokenizer: Tokenizer,
        modules: torch.nn.Sequential,
        heads: M3Heads,
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.dim, self.max_length = recipe.dim, recipe.max_length
        self.views: tuple[str, ...] = recipe.views
        self.layout, self.linear = backbone.layout, backbone.linear
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._modules = modules
        self._heads = heads
        self._special = np.array(sorted(tokenizer.special_ids()), dtype=np.int64)

    def prompt(
        self, prompt_name: str | None, input_type: str | None, instruction: str | None
    ) -> str:
        """The text before an input. Raises BadPrompt."""
        return self.recipe.prompts.choose(prompt_name, input_type, instruction)

    def tokenize(
        self,
        texts: Sequence[str],
        max_length: int,
        truncate: bool,
        first_index: int = 0,
        prompt: str = "",
        views: tuple[str, ...] = ("dense",),
    ) -> list[Tokens]:
        """Token ids of each text behind the prompt. Raises TextTooLong unless `truncate`."""
        num_prompt = 0
        if prompt:
            texts = [prompt + text for text in texts]
            num_prompt = 0 if self.recipe.include_prompt else self._num_prompt(prompt)
        encoded = self._tokenizer.encode(texts, max_length, truncate, first_index)
        return [Tokens(ids, num_prompt=num_prompt, views=views) for ids in encoded]

    def _num_prompt(self, prompt: str) -> int:
        """Tokens that pooling skips: special ones before the prompt, and its own."""
        (ids,) = self._tokenizer.encode([prompt], self.max_length, True)
        return len(ids) - (ids[-1] in self._tokenizer.special_ids())

    def costs(self, sequences: Sequence[Tokens]) -> list[int]:
        return self._backbone.costs(sequences)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._tokenizer.token_texts(token_ids)

    @torch.inference_mode()
    def run(self, step: Sequence[Tokens]) -> list[Views]:
        """One record a sequence, with the views that it asked for; dense is always there."""
        hidden, order = self._backbone.hidden(step)
        num_prompt = [step[i].num_prompt for i in order]
        dense = self._modules(pool(hidden, self.recipe.pooling, num_prompt)).cpu().numpy()
        rows = [Views(row) for row in dense]
        asked = [row for row, i in enumerate(order) if len(step[i].views) > 1]
        if asked:
            ids = [np.asarray(step[order[row]].ids) for row in asked]
            wanted = [step[order[row]].views for row in asked]
            for row, more in zip(asked, self._token_views(hidden, asked, ids, wanted), strict=True):
                rows[row] = Views(rows[row].dense, more.sparse, more.colbert)
        result: list[Views] = [rows[0]] * len(step)
        for row, i in enumerate(order):
            result[i] = rows[row]
        return result

    def _token_views(
        self,
        hidden: Hidden,
        asked: list[int],
        ids: list[NDArray[np.int64]],
        wanted: list[tuple[str, ...]],
    ) -> Iterator[Views]:
        """Sparse and ColBERT views of the rows `asked`, from the states of their tokens."""
        ends = hidden.lengths.cumsum(0)
        starts = (ends - hidden.lengths).tolist()
        lengths = hidden.lengths.tolist()
        positions = torch.cat([torch.arange(starts[r], starts[r] + lengths[r]) for r in asked])
        states = hidden.at(positions.to(ends.device)).float()
        has_sparse = any("sparse" in views for views in wanted)
        has_colbert = any("colbert" in views for views in wanted)
        weights = self._heads.sparse(states).cpu().numpy() if has_sparse else None
        vectors = self._heads.colbert(states).cpu().numpy() if has_colbert else None
        first = 0
        for token_ids, views in zip(ids, wanted, strict=True):
            rows = slice(first, first + len(token_ids))
            first += len(token_ids)
            sparse = colbert = None
            if weights is not None and "sparse" in views:
                is_text = ~np.isin(token_ids, self._special)
                sparse = lexical_weights(token_ids[is_text], weights[rows][is_text])
            if vectors is not None and "colbert" in views:
                colbert = vectors[rows][1:].copy()  # all but CLS; the step's array goes
            yield Views(np.empty(0, np.float32), sparse, colbert)

    def modules(self) -> Iterator[Any]:
        """The backbone's modules, as they are after loading."""
        return iter(self._backbone.model.modules())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._backbone.model.named_parameters())

    def describe(self) -> dict[str, str | int]:
        """What /health says of the model."""
        return {
            "model": self.name,
            "kind": self.recipe.kind,
            **self._backbone.describe(),
            "dim": self.dim,
            "max_length": self.max_length,
            "pooling": "+".join(self.recipe.pooling),
            "outputs": ",".join(self.views),
        }


class RerankingModel:
    """A cross-encoder or a causal reranker: (query, document) pairs to raw scores."""

    is_reranker = True
    dim = 0
    views: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        backbone: Backbone,
        pairs: CrossPairs | Qwen3Pairs,
        head: ScoreHead,
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.max_length = recipe.max_length
        self.layout, self.linear = backbone.layout, backbone.linear
        self._backbone = backbone
        self._pairs = pairs
        self._head = head

    def tokenize_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: PairLimits,
        instruction: str | None = None,
        first_index: int = 0,
    ) -> list[Tokens]:
        """Raises TextTooLong unless `limits.truncate`; BadPrompt where none is taken."""
        return self._pairs.encode(pairs, limits, instruction, first_index)

    def costs(self, sequences: Sequence[Tokens]) -> list[int]:
        return self._backbone.costs(sequences)

    @torch.inference_mode()
    def run(self, step: Sequence[Tokens]) -> NDArray[np.float32]:
        """Raw scores `[n]`: a sigmoid turns them into relevance from 0 to 1."""
        hidden, order = self._backbone.hidden(step)
        scores = np.empty(len(step), dtype=np.float32)
        scores[order] = self._head(hidden).float().cpu().numpy()
        return scores

    def modules(self) -> Iterator[Any]:
        return iter(self._backbone.model.modules())

    def describe(self) -> dict[str, str | int]:
        return {
            "model": self.name,
            "kind": self.recipe.kind,
            **self._backbone.describe(),
            "max_length": self.max_length,
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
