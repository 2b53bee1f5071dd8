"""No call into a tokenizer reads more than a bounded head or tail, whatever is asked of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import TextTooLong, TooManyCharacters
from engine.text import tokenizing
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import PairLimits, Side, TextLimits
from tests.engine.conftest import Folders

MAX_CHARS = 2_000
NAMES = ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3-embedding"]
SPACES, MARKS = " " * 5_000, "\u0301" * 5_000
SIDES: list[Side] = ["right", "left"]
PIECES = st.sampled_from(["w1 ", "word", " " * 700, "\u0301" * 700, "天空", "\n\t", "<|im_start|>"])
ANY_TEXT = st.lists(st.tuples(PIECES, st.integers(1, 40)), max_size=8).map(
    lambda runs: "".join(piece * times for piece, times in runs)
)
SLOW_START = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


class Watched:
    """A backend that notes how many characters each call reads."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.longest = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.longest = max(self.longest, len(text))
        return self.backend.encode(text, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.longest = max(self.longest, *map(len, texts))
        return self.backend.encode_batch_fast(texts, **options)


def watched(folders: Folders, name: str) -> tuple[Tokenizer, Watched]:
    tokenizer = Tokenizer(folders(name))
    tokenizer.backend = watch = Watched(tokenizer.backend)
    return tokenizer, watch


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "MAX_CHARS", MAX_CHARS)


@pytest.mark.parametrize("text", [SPACES, MARKS, f"w1{SPACES}w2"], ids=["spaces", "marks", "both"])
def test_a_huge_text_of_few_tokens_is_refused_unless_it_may_be_cut(
    tiny_folder: Folders, text: str
) -> None:
    tokenizer, watch = watched(tiny_folder, "tiny-bert")
    with pytest.raises(TooManyCharacters, match=r"input 31 has \d+ characters, of which .* 2000"):
        tokenizer.encode(["w1", text], TextLimits(512, truncate=False), first_index=30)
    assert len(tokenizer.encode([text], TextLimits(512))[0].ids) <= 512
    with pytest.raises(TooManyCharacters):
        tokenizer.spell(text)
    assert watch.longest <= MAX_CHARS


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_START)
@given(
    texts=st.lists(ANY_TEXT, min_size=1, max_size=3),
    max_length=st.integers(3, 300),
    truncate=st.booleans(),
    side=st.sampled_from(SIDES),
    special=st.booleans(),
)
def test_no_call_is_unbounded_and_what_is_not_cut_is_whole(
    tiny_folder: Folders,
    name: str,
    texts: list[str],
    max_length: int,
    truncate: bool,
    side: Side,
    special: bool,
) -> None:
    tokenizer, watch = watched(tiny_folder, name)
    texts = [f"w1 {text} w1" for text in texts]  # neither end is empty
    limits = TextLimits(max_length, truncate, side, special)
    try:
        found = tokenizer.encode(texts, limits)
    except TextTooLong:
        assert not truncate
    else:
        assert all(len(encoded.ids) <= max_length for encoded in found)
        for text, encoded in zip(texts, found, strict=True):
            if not truncate:
                whole = watch.backend.encode(text, add_special_tokens=special).ids
                assert encoded.ids == (tokenizer._ended(whole) if special else whole)
    assert watch.longest <= MAX_CHARS


@pytest.mark.parametrize("name", ["tiny-bert-reranker", "tiny-qwen3-reranker"])
@pytest.mark.parametrize("max_document", [None, 8])
@settings(max_examples=30, deadline=None, suppress_health_check=SLOW_START)
@given(query=ANY_TEXT, document=ANY_TEXT, truncate=st.booleans(), side=st.sampled_from(SIDES))
def test_pairs_are_bounded_by_query_and_by_document(
    tiny_folder: Folders,
    name: str,
    max_document: int | None,
    query: str,
    document: str,
    truncate: bool,
    side: Side,
) -> None:
    tokenizer, watch = watched(tiny_folder, name)
    kind = Qwen3Pairs if "qwen3" in name else CrossPairs
    limits = PairLimits(200, truncate, max_document, side)
    try:
        (tokens,) = kind(tokenizer).encode([(query, document)], limits)
        assert len(tokens.ids) <= 200
    except TextTooLong:
        assert not truncate
    assert watch.longest <= MAX_CHARS


@pytest.mark.parametrize("pair", [(SPACES, "w1"), ("w1", SPACES)], ids=["query", "document"])
def test_a_huge_half_of_a_pair_is_refused_by_its_index(
    tiny_folder: Folders, pair: tuple[str, str]
) -> None:
    tokenizer, _ = watched(tiny_folder, "tiny-bert-reranker")
    limits = PairLimits(200, truncate=False)
    with pytest.raises(TooManyCharacters, match="input 31"):
        CrossPairs(tokenizer).encode([("w1", "w2"), pair], limits, first_index=30)
