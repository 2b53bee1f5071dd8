"""What stays when the left end is cut off: the tail, special tokens around it, at bounded cost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from bench.measure import words
from bench.random_tokenizers import END_OF_TEXT
from engine.errors import NoTokens, TextTooLong
from engine.text.pairs import CrossPairs, Qwen3Pairs
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import PairLimits, Side, TextLimits
from tests.engine.conftest import Embedders, Folders, encode

LONG = words(random.Random(1), 600)
TEXTS = ["", "w1", "w1 w2 w3 w4 w5 w6 w7 w8", "Hello, World! 你好 🎉", LONG, f"w1{END_OF_TEXT}w2"]
ENCODERS = {"tiny-bert": (2, 3), "tiny-xlm-roberta": (0, 2)}  # ids of start and end
EMBEDDERS = [*ENCODERS, "tiny-qwen3-embedding"]
CROSS = ["tiny-bert-reranker", "tiny-bge-reranker"]


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer(folder, ends_with=END_OF_TEXT if "qwen3" in folder.name else None)


def stock_of(folder: Path, side: Side = "left") -> Any:
    return AutoTokenizer.from_pretrained(folder, truncation_side=side)


def content_of(folder: Path, text: str) -> list[int]:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


class CountingBackend:
    """A backend that counts the characters that it is asked to tokenize."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.num_chars = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.num_chars += len(text)
        return self._backend.encode(text, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.num_chars += sum(map(len, texts))
        return self._backend.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("limit", [2, 3, 4, 5, 9, 64])
@pytest.mark.parametrize("name", EMBEDDERS)
def test_the_tail_stays_as_in_stock_transformers(
    tiny_folder: Folders, name: str, limit: int
) -> None:
    folder = tiny_folder(name)
    stock = stock_of(folder)
    wanted = [stock(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]
    assert encode(tokenizer_of(folder), TEXTS, limit, side="left") == wanted


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", EMBEDDERS)
def test_without_special_tokens_the_texts_own_are_cut_as_in_stock(
    tiny_folder: Folders, name: str, side: Side
) -> None:
    folder, texts = tiny_folder(name), TEXTS[1:]
    stock = stock_of(folder, side)
    options = {"truncation": True, "add_special_tokens": False}
    for limit in (1, 2, 5, 64):
        wanted = [stock(text, max_length=limit, **options)["input_ids"] for text in texts]
        got = encode(tokenizer_of(folder), texts, limit, side=side, add_special_tokens=False)
        assert got == wanted


def test_an_end_that_a_qwen3_text_has_costs_no_token_of_its_tail(tiny_folder: Folders) -> None:
    tokenizer = tokenizer_of(tiny_folder("tiny-qwen3-embedding"))
    (plain,) = encode(tokenizer, ["w1 w2 w3"], 64)
    for num_ends in (0, 1, 3):
        text = "w1 w2 w3" + END_OF_TEXT * num_ends
        for limit in range(1, len(plain)):
            assert encode(tokenizer, [text], limit, side="left") == [plain[-limit:]]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(st.text(max_size=8) | st.sampled_from(["w1 ", "</s>", "[SEP]", " " * 70])),
    limit=st.integers(2, 40),
)
@pytest.mark.parametrize("name", ENCODERS)
def test_any_text_is_its_stock_tokens_less_the_first_ones(
    tiny_folder: Folders, name: str, parts: list[str], limit: int
) -> None:
    folder, text = tiny_folder(name), "".join(parts)
    (got,) = encode(tokenizer_of(folder), [text], limit, side="left")
    start, end = ENCODERS[name]
    content = content_of(folder, text)
    assert got == [start, *content[max(0, len(content) - limit + 2) :], end]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_huge_text_costs_no_more_than_its_tail(
    tiny_folder: Folders, name: str, special: bool
) -> None:
    tokenizer = tokenizer_of(tiny_folder(name))
    (wanted,) = encode(tokenizer, [f"w1 {LONG}"], 64, side="left", add_special_tokens=special)
    tokenizer.backend = counting = CountingBackend(tokenizer.backend)
    huge = "w7 w8 " * 5_000_000 + LONG
    got = encode(tokenizer, [huge], 64, side="left", add_special_tokens=special)
    assert got == [wanted]
    assert counting.num_chars < 100_000


def test_a_tail_of_spaces_is_searched_for_words_up_to_a_bound(tiny_folder: Folders) -> None:
    tokenizer = tokenizer_of(tiny_folder("tiny-bert"))
    (wanted,) = encode(tokenizer, ["w1 w2"], 64)
    assert encode(tokenizer, ["w1 w2" + " " * 500_000], 64, side="left") == [wanted]
    tokenizer.backend = counting = CountingBackend(tokenizer.backend)
    (got,) = encode(tokenizer, ["w1 w2" + " " * 20_000_000], 64, side="left")
    assert got == [wanted[0], wanted[-1]]
    assert counting.num_chars < 3_000_000


def test_refused_truncation_is_the_same_from_either_side(tiny_folder: Folders) -> None:
    tokenizer = tokenizer_of(tiny_folder("tiny-bert"))
    for side in ("right", "left"):
        limits = TextLimits(64, truncate=False, side=side)
        with pytest.raises(TextTooLong, match="input 31 has 602 tokens"):
            tokenizer.encode(["w1", LONG], limits, first_index=30)
        with pytest.raises(TextTooLong, match="at least"):
            tokenizer.encode(["w1 " * 2_000_000], limits)
        assert not tokenizer.encode(["w1 " * 62], limits)[0].is_cut


def test_a_text_that_is_all_special_tokens_has_none_without_them(tiny_folder: Folders) -> None:
    for name in EMBEDDERS:
        tokenizer = tokenizer_of(tiny_folder(name))
        with pytest.raises(NoTokens, match="input 31 has no tokens without special tokens"):
            tokenizer.encode(["w1", ""], TextLimits(64, add_special_tokens=False), 30)


def test_a_prompt_that_lost_its_head_is_pooled_with_the_text(load_tiny: Embedders) -> None:
    model = load_tiny("tiny-prompts")
    prompt = model.prompt("query", None, None)
    left = TextLimits(64, side="left")
    (short,) = model.tokenize(["w1"], left, prompt)
    assert short == model.tokenize(["w1"], TextLimits(64), prompt)[0]
    assert short.num_prompt == len(short.ids) - 2  # w1 and the end
    (cut,) = model.tokenize(["w1 " * 60], left, prompt)
    whole = model.tokenize([prompt + "w1 " * 60], TextLimits(1000))[0].ids
    assert (cut.ids, cut.num_prompt) == ([whole[0], *whole[-63:]], 0)
    num_fitting = 62 - (len(short.ids) - 3)
    (full,) = model.tokenize(["w1 " * num_fitting], left, prompt)
    assert (len(full.ids), full.num_prompt) == (64, short.num_prompt)


def test_without_special_tokens_pooling_skips_the_prompts_own_only(load_tiny: Embedders) -> None:
    model = load_tiny("tiny-prompts")
    prompt = model.prompt("query", None, None)
    (tokens,) = model.tokenize(["w1"], TextLimits(64, add_special_tokens=False), prompt)
    assert tokens.num_prompt == len(tokens.ids) - 1


@pytest.mark.parametrize("limit", [8, 9, 16, 64, 512])
@pytest.mark.parametrize("name", CROSS)
def test_a_pair_keeps_its_query_and_the_documents_tail_as_stock_does(
    tiny_folder: Folders, name: str, limit: int
) -> None:
    stock, cross = stock_of(tiny_folder(name)), CrossPairs(Tokenizer(tiny_folder(name)))
    pairs = [(query, doc) for query in ("w1", "w1 w2") for doc in ("w3", "w3 w4 w5", LONG)]
    got = cross.encode(pairs, PairLimits(limit, side="left"))
    wanted = [stock(*pair, truncation="only_second", max_length=limit) for pair in pairs]
    assert [tokens.ids for tokens in got] == [each["input_ids"] for each in wanted]


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("name", CROSS)
def test_max_document_keeps_the_documents_tail_however_huge(
    tiny_folder: Folders, name: str, truncate: bool
) -> None:
    tokenizer = Tokenizer(tiny_folder(name))
    (whole,) = CrossPairs(tokenizer).encode([("w1", "w5 w6")], PairLimits(64))
    tokenizer.backend = counting = CountingBackend(tokenizer.backend)
    pairs = [("w1", "w3 w4 " * repeats + "w5 w6") for repeats in (1, 100_000)]
    limits = PairLimits(64, truncate, max_document=2, side="left")
    assert [tokens.ids for tokens in CrossPairs(tokenizer).encode(pairs, limits)] == [whole.ids] * 2
    assert counting.num_chars < 500_000


@pytest.fixture(scope="module")
def qwen3(tiny_folder: Folders) -> Qwen3Pairs:
    return Qwen3Pairs(Tokenizer(tiny_folder("tiny-qwen3-reranker")))


@pytest.mark.parametrize("document", [LONG, f"<Document>: {LONG}", "w9 " * 100_000 + LONG])
def test_a_qwen3_pair_keeps_template_query_and_the_documents_tail(
    qwen3: Qwen3Pairs, tiny_folder: Folders, document: str
) -> None:
    content = content_of(tiny_folder("tiny-qwen3-reranker"), " " + LONG)
    (whole,) = qwen3.encode([("w1 w2", LONG)], PairLimits(32768))
    first = next(i for i in range(len(whole.ids)) if whole.ids[i : i + len(content)] == content)
    before, after = whole.ids[:first], whole.ids[first + len(content) :]
    for num_kept in (1, 5, 50):
        wanted = [*before, *content[-num_kept:], *after]
        (got,) = qwen3.encode([("w1 w2", document)], PairLimits(len(wanted), side="left"))
        assert got.ids == wanted
        limits = PairLimits(len(wanted) + 500, max_document=num_kept, side="left")
        assert qwen3.encode([("w1 w2", document)], limits)[0].ids == wanted
    (got,) = qwen3.encode([("w1 w2", LONG)], PairLimits(32768, side="left"))
    assert got.ids == whole.ids


def test_a_qwen3_query_that_fills_the_model_is_cut_as_ever(qwen3: Qwen3Pairs) -> None:
    pairs = [(LONG, "w1 w2")]
    for limit in (200, 400):
        got = qwen3.encode(pairs, PairLimits(limit, side="left"))
        assert got == qwen3.encode(pairs, PairLimits(limit))
