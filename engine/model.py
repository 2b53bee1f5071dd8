"""A loaded model: texts or pairs to tokens, and a batch of tokens to vectors or scores.

A worker thread calls `run`. What reads or makes token ids runs on the tokenizer thread, or for a
short text on the event loop; the caller sees to it that only one does so at a time. The two share
nothing that changes. Must not know jobs, HTTP or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.folder.recipe import Recipe
from engine.forward.backbone import Backbone, Hidden, pool
from engine.forward.heads import M3Heads, ScoreHead
from engine.outputs import Outputs, lexical_weights
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import (
    PairLimits,
    TextLimits,
    Token,
    Tokens,
    check_ids,
    count_new_tokens,
    cut_ids,
)


class _Loaded:
    """What embedders and rerankers share: a backbone and a tokenizer."""

    def __init__(self, name: str, recipe: Recipe, backbone: Backbone, tokenizer: Tokenizer) -> None:
        self.name = name
        self.recipe = recipe
        self.max_length = recipe.max_length
        self.layout, self.linear, self.dtype = backbone.layout, backbone.linear, backbone.dtype
        self.vocab_size = len(backbone.words)
        self._backbone = backbone
        self._tokenizer = tokenizer

    def spell(self, text: str, add_special_tokens: bool = True, prompt: str = "") -> list[Token]:
        """Every token of prompt and text, with its characters; the caller bounds the text."""
        return self._tokenizer.spell(prompt + text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, index: int = 0) -> str:
        """The text of token ids. Raises BadTokenIds, which names `index` as the input's."""
        check_ids(ids, self.vocab_size, index)
        return self._tokenizer.decode(ids, skip_special_tokens)

    def costs(self, sequences: Sequence[Tokens]) -> list[int]:
        """Tokens that each will compute, given that a job's sequences run in order."""
        return count_new_tokens(sequences, self._backbone.shares_prefixes)


class EmbeddingModel(_Loaded):
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
        super().__init__(name, recipe, backbone, tokenizer)
        self.dim = recipe.dim
        self.outputs: tuple[str, ...] = recipe.outputs
        self._counted_prompt = ("", True, 0)  # the last prompt, how it was framed, its tokens
        self._default_prompt = recipe.prompts.choose()
        self._modules = modules
        self._heads = heads
        self._special = np.array(sorted(tokenizer.special_ids()), dtype=np.int64)

    def prompt(
        self, prompt_name: str | None, input_type: str | None, instruction: str | None
    ) -> str:
        """The text before an input. Raises BadPrompt."""
        if prompt_name is input_type is instruction is None:
            return self._default_prompt
        return self.recipe.prompts.choose(prompt_name, input_type, instruction)

    def tokenize(
        self,
        texts: Sequence[str],
        limits: TextLimits,
        prompt: str = "",
        outputs: tuple[str, ...] = ("dense",),
        first_index: int = 0,
    ) -> list[Tokens]:
        """Token ids of each text behind the prompt.

        Raises TextTooLong unless `limits.truncate`, NoTokens where no special token is added.
        """
        num_prompt = 0
        if prompt:
            texts = [prompt + text for text in texts]
            num_prompt = 0 if self.recipe.include_prompt else self._num_prompt(prompt, limits)
        result = []
        for encoded in self._tokenizer.encode(texts, limits, first_index):
            has_lost_prompt = limits.side == "left" and encoded.is_cut
            skipped = 0 if has_lost_prompt else num_prompt
            result.append(Tokens(encoded.ids, num_prompt=skipped, outputs=outputs))
        return result

    def tokens_of(
        self,
        ids: Sequence[Sequence[int]],
        limits: TextLimits,
        outputs: tuple[str, ...] = ("dense",),
        first_index: int = 0,
    ) -> list[Tokens]:
        """A client's own token ids as they are, nothing added.

        Raises BadTokenIds, NoTokens, and TextTooLong unless `limits.truncate`.
        """
        result = []
        for index, each in enumerate(ids, first_index):
            check_ids(each, self.vocab_size, index)
            result.append(Tokens(cut_ids(each, limits, index), outputs=outputs))
        return result

    def _num_prompt(self, prompt: str, limits: TextLimits) -> int:
        """Tokens that pooling skips: special ones before the prompt, and its own. The parts of a
        request have the same prompt, which is counted once."""
        special = limits.add_special_tokens
        if self._counted_prompt[:2] != (prompt, special):
            self._counted_prompt = (prompt, special, self._count_prompt(prompt, special))
        return self._counted_prompt[2]

    def _count_prompt(self, prompt: str, add_special_tokens: bool) -> int:
        if not add_special_tokens:
            return len(self._tokenizer.content(prompt, TextLimits(self.max_length)).ids)
        (encoded,) = self._tokenizer.encode([prompt], TextLimits(self.max_length))
        return len(encoded.ids) - (encoded.ids[-1] in self._tokenizer.special_ids())

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._tokenizer.token_texts(token_ids)

    @torch.inference_mode()
    def vectors(self, hidden: Hidden, num_prompt: Sequence[int] = ()) -> Tensor:
        """float32 `[n, dim]` of the sequences' last states, not normalised."""
        pooled: Tensor = self._modules(pool(hidden, self.recipe.pooling, num_prompt))
        return pooled

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> list[Outputs]:
        """One record a sequence, with the outputs that it asks for; dense is always there."""
        hidden, order = self._backbone.hidden(batch)
        ordered = [batch[i] for i in order]
        dense = self.vectors(hidden, [tokens.num_prompt for tokens in ordered]).cpu().numpy()
        rows = [Outputs(row) for row in dense]
        asked = [row for row, tokens in enumerate(ordered) if len(tokens.outputs) > 1]
        if asked:
            for row, more in zip(asked, self._more_outputs(hidden, asked, ordered), strict=True):
                rows[row] = replace(more, dense=dense[row])
        return [rows[row] for row in sorted(range(len(order)), key=order.__getitem__)]

    def _more_outputs(
        self, hidden: Hidden, asked: list[int], ordered: list[Tokens]
    ) -> Iterator[Outputs]:
        """The further outputs of the rows `asked`, from the states of their tokens."""
        ends = hidden.lengths.cumsum(0)
        starts = (ends - hidden.lengths).tolist()
        wanted = [ordered[row] for row in asked]
        spans = zip([starts[row] for row in asked], wanted, strict=True)
        positions = torch.cat([torch.arange(s, s + len(tokens.ids)) for s, tokens in spans])
        states = hidden.at(positions.to(ends.device)).float()
        weights = vectors = np.empty(0, np.float32)
        if any("sparse" in tokens.outputs for tokens in wanted):
            weights = self._heads.sparse(states).cpu().numpy()
        if any("colbert" in tokens.outputs for tokens in wanted):
            vectors = self._heads.colbert(states).cpu().numpy()
        first = 0
        for tokens in wanted:
            ids, rows = np.asarray(tokens.ids), slice(first, first + len(tokens.ids))
            first = rows.stop
            sparse = colbert = own = None
            if "sparse" in tokens.outputs:
                is_text = ~np.isin(ids, self._special)
                sparse = lexical_weights(ids[is_text], weights[rows][is_text])
            if "colbert" in tokens.outputs:
                colbert = vectors[rows][1:].copy()  # all but CLS; frees the batch's array
            if "tokens" in tokens.outputs:
                own = states[rows].cpu().numpy().copy()
            yield Outputs(np.empty(0, np.float32), sparse, colbert, own)

    def describe(self) -> dict[str, str | int]:
        """What /health says of the model."""
        return {
            "model": self.name,
            "kind": self.recipe.kind,
            **self._backbone.describe(),
            "dim": self.dim,
            "max_length": self.max_length,
            "pooling": "+".join(self.recipe.pooling),
            "outputs": ",".join(self.outputs),
        }


class RerankingModel(_Loaded):
    """A cross-encoder or a causal reranker: (query, document) pairs to raw scores."""

    is_reranker = True
    dim = 0
    outputs: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        backbone: Backbone,
        tokenizer: Tokenizer,
        pairs: CrossPairs | Qwen3Pairs,
        head: ScoreHead,
    ) -> None:
        super().__init__(name, recipe, backbone, tokenizer)
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

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        """Raw scores `[n]`: a sigmoid turns them into relevance from 0 to 1."""
        hidden, order = self._backbone.hidden(batch)
        scores = np.empty(len(batch), dtype=np.float32)
        scores[order] = self._head(hidden).float().cpu().numpy()
        return scores

    def describe(self) -> dict[str, str | int]:
        return {
            "model": self.name,
            "kind": self.recipe.kind,
            **self._backbone.describe(),
            "max_length": self.max_length,
        }
