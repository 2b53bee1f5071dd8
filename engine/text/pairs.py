"""A query and a document as one sequence, in the form on which each kind of reranker was trained.

Where the pair is too long, the document is cut at the end that the limits name, and the query stays
whole if it can. Shares the tokenizer and its lock. Must not know tensors, batching or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engine.errors import BadPrompt, TextTooLong
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import PairLimits, Side, TextLimits, Tokens

# A query that fills the model by itself leaves this share to its document (FlagEmbedding's rule).
_DOCUMENT_SHARE = 0.25

# Qwen3-Reranker's prompt, from its model card. Source: huggingface.co/Qwen/Qwen3-Reranker-0.6B
QWEN3_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
QWEN3_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_OWN_SUFFIX = re.compile(r"<\|im_start\|>assistant\s*(?:<think>\s*(?:</think>\s*)?)?\Z")

_MAX_SUFFIX_CHARS = 1_000  # of a document's end, in which its own suffix is looked for


class CrossPairs:
    """Two texts in the tokenizer's own pair template, `<s> q </s></s> d </s>`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        backend = tokenizer.backend
        empty = backend.encode("", add_special_tokens=False)
        self._num_special = len(backend.post_process(empty, empty, add_special_tokens=True).ids)

    def encode(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: PairLimits,
        instruction: str | None = None,
        first_index: int = 0,
    ) -> list[Tokens]:
        """Raises TextTooLong unless `limits.truncate`, BadPrompt for an instruction."""
        if instruction is not None:
            raise BadPrompt("this reranker takes no instruction")
        room, truncate = self._room(limits), limits.truncate
        num_wanted = min(room, limits.max_document or room)
        texts = [text for _, text in pairs]
        bounds = TextLimits(num_wanted, truncate, limits.side)
        documents = self._tokenizer.contents(texts, bounds, first_index)
        queries: dict[str, Any] = {}
        for index, (query, _) in enumerate(pairs, first_index):
            if query not in queries:
                queries[query] = self._query(query, TextLimits(room, truncate), index)
        result = []
        for i, (pair, document) in enumerate(zip(pairs, documents, strict=True)):
            is_exact = all(self._tokenizer.counts_whole(text, room) for text in pair)
            query = queries[pair[0]]
            result.append(self._join(query, document, limits, first_index + i, is_exact))
        return result

    def _room(self, limits: PairLimits) -> int:
        return max(1, limits.max_length - self._num_special)

    def _query(self, text: str, limits: TextLimits, index: int) -> Any:
        query, room = self._tokenizer.content(text, limits, index), limits.max_length
        if limits.truncate and len(query.ids) >= room:
            query.truncate(max(1, room - int(room * _DOCUMENT_SHARE)))
        return query

    def _join(
        self, query: Any, document: Any, limits: PairLimits, index: int, is_exact: bool
    ) -> Tokens:
        room = self._room(limits)
        if limits.max_document is not None:
            document.truncate(limits.max_document, direction=limits.side)
        num_tokens = len(query.ids) + len(document.ids)
        if num_tokens > room:
            if not limits.truncate:
                num_tokens += self._num_special
                raise TextTooLong(index, num_tokens, limits.max_length, is_exact)
            document.truncate(max(0, room - len(query.ids)), direction=limits.side)
        joined = self._tokenizer.backend.post_process(query, document, add_special_tokens=True)
        type_ids = list(joined.type_ids)
        return Tokens(list(joined.ids), type_ids if any(type_ids) else None)


class Qwen3Pairs:
    """Qwen3-Reranker's chat template around instruction, query and document.

    Parts of the template that a text already carries, as some clients send them, are left alone.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prefix = self._ids(QWEN3_PREFIX, len(QWEN3_PREFIX))
        self._suffix = self._ids(QWEN3_SUFFIX, len(QWEN3_SUFFIX))

    def encode(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: PairLimits,
        instruction: str | None = None,
        first_index: int = 0,
    ) -> list[Tokens]:
        """Raises TextTooLong unless `limits.truncate`."""
        task = QWEN3_INSTRUCTION if instruction is None else instruction
        heads = [_before_document(query, task) for query, _ in pairs]
        texts = [head + _document(text) for head, (_, text) in zip(heads, pairs, strict=True)]
        bounds = TextLimits(limits.max_length, limits.truncate)
        middles = self._tokenizer.contents(texts, bounds, first_index)
        result = []
        for i, (middle, head, (query, text)) in enumerate(zip(middles, heads, pairs, strict=True)):
            num_kept = len(middle.ids)
            if limits.max_document is not None:
                num_before = self._num_before(head, limits.max_length)
                num_kept = min(num_kept, num_before + limits.max_document)
            prefix = [] if _has_own_prefix(query) else self._prefix
            suffix = [] if _has_own_suffix(text) else self._suffix
            num_tokens = len(prefix) + num_kept + len(suffix)
            if num_tokens > limits.max_length and not limits.truncate:
                is_exact = self._tokenizer.counts_whole(texts[i], limits.max_length)
                raise TextTooLong(first_index + i, num_tokens, limits.max_length, is_exact)
            room = max(0, limits.max_length - len(prefix) - len(suffix))
            ids = self._cut(middle.ids, head, texts[i], min(num_kept, room), limits.side)
            result.append(Tokens([*prefix, *ids, *suffix][-limits.max_length :]))
        return result

    def _cut(self, ids: list[int], head: str, text: str, num_kept: int, side: Side) -> list[int]:
        """What comes before the document stays, and that end of the document that `side` leaves."""
        if side == "right" or len(ids) <= num_kept:
            return ids[:num_kept]
        num_tail = num_kept - self._num_before(head, num_kept)
        if num_tail <= 0:
            return ids[:num_kept]
        document = text.removeprefix(f"{head}<Document>:")
        encoding = self._tokenizer.content(document, TextLimits(num_tail, side="left"))
        tail: list[int] = encoding.ids[-num_tail:]
        return [*ids[: num_kept - num_tail], *tail]

    def _num_before(self, head: str, enough: int) -> int:
        """Tokens before the document's own, counted to `enough` or a little further."""
        return len(self._ids(f"{head}<Document>:", enough))

    def _ids(self, text: str, num_wanted: int) -> list[int]:
        ids: list[int] = self._tokenizer.content(text, TextLimits(num_wanted)).ids
        return ids


def _before_document(query: str, instruction: str) -> str:
    query = query.removeprefix(QWEN3_PREFIX)
    if not _has_own_prefix(query) and not query.startswith("<Instruct>:"):
        return f"<Instruct>: {instruction}\n<Query>: {query}\n"
    return query.removesuffix("\n") + "\n"


def _document(text: str) -> str:
    text = text.removesuffix(QWEN3_SUFFIX)
    return text if text.startswith("<Document>:") else f"<Document>: {text}"


def _has_own_prefix(query: str) -> bool:
    """A chat template other than the published one, which is cut off and added as tokens."""
    return query.startswith("<|im_start|>") and not query.startswith(QWEN3_PREFIX)


def _has_own_suffix(document: str) -> bool:
    """The answer's turn at the very end; a text that only mentions it is an ordinary document."""
    end = document[-_MAX_SUFFIX_CHARS:]
    return _OWN_SUFFIX.search(end) is not None and not document.endswith(QWEN3_SUFFIX)
