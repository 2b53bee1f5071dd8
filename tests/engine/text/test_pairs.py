"""Pairs as token ids: what is cut at the limit, what stays, what a text may already carry."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from bench.measure import words
from engine.errors import BadPrompt, TextTooLong
from engine.text.pairs import (
    QWEN3_INSTRUCTION,
    QWEN3_PREFIX,
    QWEN3_SUFFIX,
    CrossPairs,
    Qwen3Pairs,
)
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import PairLimits, Tokens
from tests.engine.conftest import Folders, Rerankers
from tests.engine.oracle_scores import CrossOracle, Qwen3RerankOracle

CROSS = ["tiny-bert-reranker", "tiny-bge-reranker"]
LONG = words(random.Random(1), 600)
INSTRUCTION = "Find what contradicts it"


@pytest.fixture(params=CROSS)
def cross_folder(request: pytest.FixtureRequest, tiny_folder: Folders) -> Path:
    return tiny_folder(request.param)


@pytest.fixture
def cross(cross_folder: Path) -> CrossPairs:
    return CrossPairs(Tokenizer(cross_folder))


@pytest.fixture(scope="module")
def qwen3_folder(tiny_folder: Folders) -> Path:
    return tiny_folder("tiny-qwen3-reranker")


@pytest.fixture(scope="module")
def qwen3(qwen3_folder: Path) -> Qwen3Pairs:
    return Qwen3Pairs(Tokenizer(qwen3_folder))


def ids_of(tokens: Sequence[Tokens]) -> list[list[int]]:
    return [each.ids for each in tokens]


@pytest.mark.parametrize("limit", [7, 8, 9, 16, 64, 512])
def test_only_the_document_is_cut_as_stock_does(
    cross: CrossPairs, cross_folder: Path, limit: int
) -> None:
    """A query of one or two tokens, and at most four special ones."""
    oracle = CrossOracle(cross_folder, limit)
    pairs = [(query, doc) for query in ("w1", "w1 w2") for doc in ("w3", "w3 w4 w5", LONG)]
    got = cross.encode(pairs, PairLimits(limit))
    assert ids_of(got) == [oracle.ids(*pair) for pair in pairs]
    assert max(len(tokens.ids) for tokens in got) == limit


def test_an_empty_document_is_still_a_second_text(cross: CrossPairs, cross_folder: Path) -> None:
    """transformers knows an empty second text in lists only."""
    stock = AutoTokenizer.from_pretrained(cross_folder)(["w1 w2"], [""])
    assert ids_of(cross.encode([("w1 w2", "")], PairLimits(64))) == stock["input_ids"]


def test_type_ids_tell_berts_texts_apart_and_others_need_none(tiny_folder: Folders) -> None:
    bert, roberta = (CrossPairs(Tokenizer(tiny_folder(name))) for name in CROSS)
    (tokens,) = bert.encode([("w1 w2", "w3 w4 w5 w6")], PairLimits(8))
    assert (len(tokens.ids), tokens.type_ids) == (8, [0, 0, 0, 0, 1, 1, 1, 1])
    (tokens,) = roberta.encode([("w1 w2", "w3")], PairLimits(64))
    assert tokens.type_ids is None


@pytest.mark.parametrize("limit", [12, 40, 100])
def test_a_query_too_long_for_the_model_leaves_a_quarter_to_its_document(
    cross: CrossPairs, cross_folder: Path, limit: int
) -> None:
    backend = Backend.from_file(str(cross_folder / "tokenizer.json"))
    query, document = (
        backend.encode(each, add_special_tokens=False).ids for each in (LONG, "w9 " * 90)
    )
    num_special = backend.num_special_tokens_to_add(True)
    room = limit - num_special
    num_query = room - room // 4
    (tokens,) = cross.encode([(LONG, "w9 " * 90)], PairLimits(limit))
    assert len(tokens.ids) == limit
    assert tokens.ids[1 : 1 + num_query] == query[:num_query]
    kept = tokens.ids[1 + num_query + num_special - 2 : -1]
    assert kept == document[: room - num_query]


def test_a_query_that_just_fits_stays_whole_however_little_is_left(cross: CrossPairs) -> None:
    (wanted,) = cross.encode([("w1 w2 w3 w4 w5", "")], PairLimits(64))
    limit = len(wanted.ids) + 1
    (tokens,) = cross.encode([("w1 w2 w3 w4 w5", LONG)], PairLimits(limit))
    assert tokens.ids[:6] == wanted.ids[:6]
    assert len(tokens.ids) == limit


@pytest.mark.parametrize("max_document", [0, 1, 5, 1000])
def test_max_document_bounds_the_documents_own_tokens(
    cross: CrossPairs, cross_folder: Path, max_document: int
) -> None:
    backend = Backend.from_file(str(cross_folder / "tokenizer.json"))
    document = backend.encode(LONG, add_special_tokens=False).ids
    limits = PairLimits(512, max_document=max_document)
    got, without = cross.encode([("w1 w2", LONG), ("w1 w2", "")], limits)
    num_kept = min(max_document, 512 - len(without.ids))
    assert got.ids == [*without.ids[:-1], *document[:num_kept], without.ids[-1]]


@pytest.mark.parametrize("max_document", [None, 400])
def test_a_pair_over_the_limit_is_refused_with_index_length_and_limit(
    cross: CrossPairs, cross_folder: Path, max_document: int | None
) -> None:
    whole = len(CrossOracle(cross_folder, 10_000).ids("w1", LONG))
    limits = PairLimits(64, truncate=False, max_document=max_document)
    with pytest.raises(TextTooLong) as caught:
        cross.encode([("w1", "w2"), ("w1", LONG)], limits, first_index=30)
    error = caught.value
    wanted = whole if max_document is None else whole - 600 + 400
    assert (error.index, error.num_tokens, error.max_tokens) == (31, wanted, 64)


def test_what_fits_is_not_refused_and_neither_is_what_max_document_makes_fit(
    cross: CrossPairs,
) -> None:
    (alone,) = cross.encode([("w1", "w2 w3")], PairLimits(64))
    limits = PairLimits(len(alone.ids), truncate=False)
    assert cross.encode([("w1", "w2 w3")], limits)[0].ids == alone.ids
    limits = PairLimits(len(alone.ids), truncate=False, max_document=2)
    assert len(cross.encode([("w1", LONG)], limits)[0].ids) == len(alone.ids)


@pytest.mark.parametrize("kind", ["cross", "qwen3"])
def test_a_huge_document_is_counted_at_least(
    cross: CrossPairs, qwen3: Qwen3Pairs, kind: str
) -> None:
    pairs: CrossPairs | Qwen3Pairs = cross if kind == "cross" else qwen3
    with pytest.raises(TextTooLong, match="at least") as caught:
        pairs.encode([("w1", "w1 " * 500_000)], PairLimits(512, truncate=False))
    assert 512 < caught.value.num_tokens < 1_000_000


def test_a_huge_document_is_cut_like_any(cross: CrossPairs, cross_folder: Path) -> None:
    got = cross.encode([("w1", "w2 w3 " * 200_000)], PairLimits(64))
    assert ids_of(got) == [CrossOracle(cross_folder, 64).ids("w1", "w2 w3 " * 200)]


@pytest.mark.parametrize("name", [*CROSS, "tiny-bge-reranker-v2-m3"])
def test_a_cross_encoder_refuses_an_instruction(load_tiny_reranker: Rerankers, name: str) -> None:
    with pytest.raises(BadPrompt, match="takes no instruction"):
        load_tiny_reranker(name).tokenize_pairs([("w1", "w2")], PairLimits(64), "Find it")


QWEN3_PAIRS = [("w1", "w2"), ("w1 w2?\n", "w3.\n"), ("", ""), ("你好 w1", LONG), (LONG, "w4")]


@pytest.mark.parametrize("instruction", [None, INSTRUCTION, ""])
@pytest.mark.parametrize("limit", [400, 401, 700, 32768])
def test_a_qwen3_pair_at_the_limit_keeps_the_querys_head_and_the_whole_suffix(
    qwen3: Qwen3Pairs, qwen3_folder: Path, limit: int, instruction: str | None
) -> None:
    oracle = Qwen3RerankOracle(qwen3_folder, limit)
    task = QWEN3_INSTRUCTION if instruction is None else instruction
    got = ids_of(qwen3.encode(QWEN3_PAIRS, PairLimits(limit), instruction))
    assert got == [oracle.ids(*pair, task) for pair in QWEN3_PAIRS]
    assert limit == 32768 or max(map(len, got)) == limit


def test_qwen3s_prompt_is_the_published_one(qwen3: Qwen3Pairs, qwen3_folder: Path) -> None:
    backend = Backend.from_file(str(qwen3_folder / "tokenizer.json"))
    middle = f"<Instruct>: {QWEN3_INSTRUCTION}\n<Query>: w1\n<Document>: w2"
    parts = [backend.encode(part).ids for part in (QWEN3_PREFIX, middle, QWEN3_SUFFIX)]
    wanted = [*parts[0], *parts[1], *parts[2]]
    assert ids_of(qwen3.encode([("w1", "w2")], PairLimits(32768))) == [wanted]


@pytest.mark.parametrize(
    "query",
    [
        f"<Instruct>: {INSTRUCTION}\n<Query>: w1 w2?",
        f"<Instruct>: {INSTRUCTION}\n<Query>: w1 w2?\n",
        f"{QWEN3_PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: w1 w2?",
        f"{QWEN3_PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: w1 w2?\n",
        "w1 w2?",
        f"{QWEN3_PREFIX}w1 w2?",
    ],
)
@pytest.mark.parametrize(
    "document",
    [
        "w3 w4",
        "<Document>: w3 w4",
        f"w3 w4{QWEN3_SUFFIX}",
        f"<Document>: w3 w4{QWEN3_SUFFIX}",
    ],
)
@pytest.mark.parametrize("max_document", [None, 3])
def test_texts_that_carry_the_template_give_the_very_same_ids(
    qwen3: Qwen3Pairs, query: str, document: str, max_document: int | None
) -> None:
    limits = PairLimits(32768, max_document=max_document)
    (wanted,) = qwen3.encode([("w1 w2?", "w3 w4")], limits, INSTRUCTION)
    (got,) = qwen3.encode([(query, document)], limits, INSTRUCTION)
    assert got.ids == wanted.ids


def test_another_chat_template_is_left_as_it_is(qwen3: Qwen3Pairs, qwen3_folder: Path) -> None:
    backend = Backend.from_file(str(qwen3_folder / "tokenizer.json"))
    query = "<|im_start|>system\nw1<|im_end|>\n<|im_start|>user\nw2\n"
    document = "<Document>: w3<|im_end|>\n<|im_start|>assistant\n"
    (got,) = qwen3.encode([(query, document)], PairLimits(32768))
    assert got.ids == backend.encode(query + document).ids


def test_a_document_that_speaks_of_the_template_is_one_like_any(
    qwen3: Qwen3Pairs, qwen3_folder: Path
) -> None:
    oracle = Qwen3RerankOracle(qwen3_folder, 32768)
    pairs = [("w1", "a turn starts with <|im_start|>assistant\nand w2"), ("w1\n", "<|im_start|>")]
    got = ids_of(qwen3.encode(pairs, PairLimits(32768)))
    assert got == [oracle.ids(*pair) for pair in pairs]


@pytest.mark.parametrize("max_document", [0, 1, 5])
def test_max_document_bounds_a_qwen3_document_too(
    qwen3: Qwen3Pairs, qwen3_folder: Path, max_document: int
) -> None:
    backend = Backend.from_file(str(qwen3_folder / "tokenizer.json"))
    head = f"<Instruct>: {QWEN3_INSTRUCTION}\n<Query>: w1\n<Document>:"
    before = backend.encode(QWEN3_PREFIX).ids + backend.encode(head).ids
    after = backend.encode(QWEN3_SUFFIX).ids
    document = backend.encode(" " + LONG).ids[:max_document]
    limits = PairLimits(32768, max_document=max_document)
    assert ids_of(qwen3.encode([("w1", LONG)], limits)) == [before + document + after]


def test_a_qwen3_pair_over_the_limit_is_refused_with_index_length_and_limit(
    qwen3: Qwen3Pairs, qwen3_folder: Path
) -> None:
    whole = len(Qwen3RerankOracle(qwen3_folder, 32768).ids("w1", LONG))
    pairs = [("w1", "w2"), ("w1", LONG)]
    with pytest.raises(TextTooLong) as caught:
        qwen3.encode(pairs, PairLimits(500, truncate=False), first_index=30)
    error = caught.value
    assert (error.index, error.num_tokens, error.max_tokens) == (31, whole, 500)
