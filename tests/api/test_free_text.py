"""Any text at all, against a real server with real weights and a real tokenizer: an answer with
finite numbers or a refusal in the dialect's shape, never a server error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.error_shapes import dialect_by_path, fault_of
from tests.api.generated import quick
from tests.servers import Server

DIM = 384  # the stand-in's
ODD = [
    *(
        "",
        " ",
        "\0",
        "\n\n\t\r",
        "\x1b[31m",
        "\x7f\x80\x9f",
        "\ufeff",
        "\ufffe\uffff",
        "\U0010ffff",
    ),
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏿", "🇩🇪🇫", "\ufe0f\u200d", "e\u0301" * 9, "Z͑ͫ̓̀̓"),
    *("שָׁלוֹם עולם", "مرحبا بالعالم", "\u202eevil\u202c", "\u2066a\u2069b", "\u061c\u200f"),
    *(
        "天空为什么是蓝色的？",
        "ภาษาไทย",
        "นํ้า",
        "한국어 \u1112\u1161\u11ab",
        "ﷺ",
        "𝒻𝒶𝓃𝒸𝓎",
        "ǅ ß İ ŉ",
    ),
    *("\ud800", "\udfff", "a\udc80b", "\ude00\ud83d", "\ud83d\ude00"),
    *("[CLS] [SEP]", "[MASK][PAD][UNK]", "##ing", "<s></s>", "{}", '"\\', "%s{0}$(x)", "\\ud800"),
]
ANY = st.text(st.characters(codec=None, categories=None), max_size=60) | st.sampled_from(ODD)
MIXED = st.lists(ANY, min_size=1, max_size=4).map("".join)
LONG = st.builds(lambda text, times: text * times, MIXED, st.sampled_from([10, 300, 2_000]))
TEXTS = st.lists(ANY | MIXED, min_size=1, max_size=3) | LONG.map(lambda text: [text])

BODIES: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "/api/embed": lambda texts: {"input": texts},
    "/v1/embeddings": lambda texts: {"input": texts},
    "/embed": lambda texts: {"inputs": texts},
    "/tokenize": lambda texts: {"inputs": texts},
    "/similarity": lambda texts: {"inputs": {"source_sentence": texts[0], "sentences": texts}},
    "/v1/rerank": lambda texts: {"query": texts[0], "documents": texts},
}


@pytest.fixture
def client(stand_in_server: Server) -> Iterator[httpx.Client]:
    with stand_in_server.client() as opened:
        yield opened


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def check_answer(path: str, answer: Any, num_texts: int) -> None:
    """As many finite vectors, scores or lists of tokens as there are texts."""
    if path in ("/api/embed", "/v1/embeddings", "/embed"):
        check_vectors(vectors_of(path, answer), num_texts)
    elif path == "/tokenize":
        assert len(answer) == num_texts
        assert all(tokens for tokens in answer), "special tokens at least"
    elif path == "/similarity":
        check_cosines(answer, num_texts)
    else:
        results = answer["results"]
        assert sorted(item["index"] for item in results) == list(range(num_texts))
        scores = [item["relevance_score"] for item in results]
        check_cosines(scores, num_texts)
        assert scores == sorted(scores, reverse=True)


def vectors_of(path: str, answer: Any) -> Any:
    if path == "/v1/embeddings":
        return [item["embedding"] for item in answer["data"]]
    return answer["embeddings"] if path == "/api/embed" else answer


def check_vectors(rows: Any, num_texts: int) -> None:
    vectors = np.array(rows, np.float32)
    assert vectors.shape == (num_texts, DIM)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def check_cosines(values: Any, num_texts: int) -> None:
    cosines = np.array(values, np.float64)
    assert cosines.shape == (num_texts,)
    assert np.isfinite(cosines).all()
    assert np.abs(cosines).max() <= 1 + 1e-5


def check_both_spellings(client: httpx.Client, path: str, texts: list[str]) -> None:
    """By JSON's escapes, which pair surrogates that stand side by side, and as bare UTF-8, in which
    none may be."""
    for is_ascii in (True, False):
        content = json.dumps(BODIES[path](texts), ensure_ascii=is_ascii)
        answer = client.post(path, content=content.encode("utf-8", "surrogatepass"))
        meant = [json.loads(json.dumps(text)) for text in texts] if is_ascii else texts
        if all(map(is_unicode, meant)):
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == "application/json"
            check_answer(path, answer.json(), len(texts))
        else:
            fault_of(answer, dialect_by_path(path), 400)


@pytest.mark.parametrize("path", BODIES)
def test_any_text_is_answered_and_a_lone_surrogate_refused(client: httpx.Client, path: str) -> None:
    @quick(12)
    @given(texts=TEXTS)
    def check(texts: list[str]) -> None:
        check_both_spellings(client, path, texts)

    check()


@pytest.mark.parametrize("path", BODIES)
def test_each_odd_text_is_answered_or_refused(client: httpx.Client, path: str) -> None:
    for text in ODD:
        check_both_spellings(client, path, [text])


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings", "/embed"])
@pytest.mark.parametrize(
    "unit", ["a", "天", "👍🏿", "\u0301", "\0", " ", "\u202e", "א", "[SEP] ", "a "], ids=ascii
)
def test_a_very_long_run_is_cut_and_answered(client: httpx.Client, path: str, unit: str) -> None:
    answer = client.post(path, json=BODIES[path]([unit * 200_000]))
    assert answer.status_code == 200, answer.text
    check_vectors(vectors_of(path, answer.json()), 1)


@quick(12)
@given(text=ANY | MIXED)
def test_a_text_has_one_vector_in_every_dialect(stand_in_server: Server, text: str) -> None:
    rows: list[Any] = []
    with stand_in_server.client() as client:
        for path in ("/api/embed", "/v1/embeddings", "/embed"):
            answer = client.post(path, content=json.dumps(BODIES[path]([text])))
            rows.append(vectors_of(path, answer.json()) if answer.status_code == 200 else None)
    if rows[0] is None:
        assert rows == [None] * 3
        return
    for row in rows[1:]:
        np.testing.assert_allclose(row, rows[0], atol=1e-5)


def test_a_number_of_refusals_leaves_the_server_well(client: httpx.Client) -> None:
    for path in BODIES:
        refused = client.post(path, content=json.dumps(BODIES[path](["\ud800"])))
        fault = fault_of(refused, dialect_by_path(path), 400)
        assert "is not valid Unicode" in fault.text
        fine = client.post(path, json=BODIES[path](["fine"]))
        assert fine.status_code == 200
    assert client.get("/health").status_code == 200
