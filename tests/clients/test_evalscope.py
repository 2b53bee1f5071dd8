"""EvalScope: the bodies that it sends to evaluate and to load-test embedders and rerankers, and the
answers as it reads them. It embeds by langchain-openai, which is real here.

Sources on GitHub: modelscope/evalscope, evalscope/backend/rag_eval/models/encoder.py (APIEncoder)
and .../models/reranker.py (APIReranker), evalscope/perf/plugin/api/openai_embedding_api.py and
openai_rerank_api.py, evalscope/perf/plugin/datasets/embedding_dataset.py and rerank_dataset.py
(whose own settings go into the body with `extra_args`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients.expected import (
    DIM,
    DOCUMENTS,
    MINILM,
    QUERY,
    RERANKER,
    SCORE_TOLERANCE,
    TEXTS,
    ExpectedScores,
    ExpectedVectors,
)
from tests.clients.raw import post
from tests.clients.test_langchain_openai import opened
from tests.servers import Server

MAX_BATCH = 2048  # the most inputs that OpenAI itself takes in one request
DEFAULT_BATCH = 10
PROMPT = "query: "


def many(num_texts: int) -> list[str]:
    return [f"text number {i}" for i in range(num_texts)]


def encode(
    server: Server, texts: Sequence[str], batch_size: int, dimensions: int | None = None
) -> list[list[float]]:
    """As APIEncoder.encode: texts cut to three characters a token, batch after batch."""
    rows: list[list[float]] = []
    with opened(server, dimensions=dimensions, check_embedding_ctx_length=False) as client:
        for first in range(0, len(texts), batch_size):
            batch = [text[: 512 * 3] for text in texts[first : first + batch_size]]
            rows.extend(client.embed_documents(batch, chunk_size=batch_size))
    return rows


@pytest.mark.parametrize("batch_size", [1, 3, DEFAULT_BATCH])
@pytest.mark.parametrize("dimensions", [None, DIM])
def test_the_encoder_gets_its_texts_vectors_batch_by_batch(
    server: Server, vectors: ExpectedVectors, batch_size: int, dimensions: int | None
) -> None:
    vectors.check(encode(server, TEXTS, batch_size, dimensions), TEXTS)


def test_the_encoder_puts_its_prompt_before_queries(
    server: Server, vectors: ExpectedVectors
) -> None:
    queries = [PROMPT + text for text in TEXTS]
    vectors.check(encode(server, queries, DEFAULT_BATCH, DIM), queries)


def test_a_text_that_the_encoder_has_cut_is_still_too_long_and_cut_again(
    server: Server, vectors: ExpectedVectors
) -> None:
    texts = ["word " * 2000, "天" * 5000]
    vectors.check(encode(server, texts, DEFAULT_BATCH), [text[: 512 * 3] for text in texts])


def test_the_encoder_sends_two_thousand_texts_in_one_request(
    server: Server, vectors: ExpectedVectors
) -> None:
    texts = many(MAX_BATCH)
    rows = encode(server, texts, MAX_BATCH, DIM)
    assert len(rows) == MAX_BATCH
    vectors.check(rows[::293], texts[::293])


@pytest.mark.parametrize(
    ("num_texts", "encoding"),
    [(1, None), (DEFAULT_BATCH, "float"), (DEFAULT_BATCH, "base64"), (MAX_BATCH, "float")],
)
def test_the_encoders_body_is_answered_in_order(
    server: Server, vectors: ExpectedVectors, num_texts: int, encoding: str | None
) -> None:
    texts = many(num_texts)
    body: dict[str, Any] = {"input": texts, "model": MINILM, "dimensions": DIM}
    answer = post(
        server, "/v1/embeddings", body | ({"encoding_format": encoding} if encoding else {})
    )
    assert [item["index"] for item in answer["data"]] == list(range(num_texts))
    rows = [item["embedding"] for item in answer["data"]]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), np.float32) for row in rows]
    vectors.check(rows[::293], texts[::293])


def predict(
    server: Server, prefix: str, pairs: Sequence[tuple[str, str]], batch_size: int
) -> list[float]:
    """As APIReranker.predict: by query, then batch after batch; a score for each pair, in order."""
    scores = [0.0] * len(pairs)
    groups: dict[str, list[tuple[int, str]]] = {}
    for index, (query, document) in enumerate(pairs):
        groups.setdefault(query, []).append((index, document))
    for query, group in groups.items():
        for first in range(0, len(group), batch_size):
            batch = group[first : first + batch_size]
            body = {
                "model": RERANKER,
                "query": query,
                "documents": [document for _, document in batch],
                "top_n": len(batch),
                "return_documents": False,
            }
            results = post(server, f"{prefix}/rerank", body)["results"]
            assert len(results) == len(batch)
            for place, result in enumerate(results):
                index = int(result.get("index", place))
                scores[batch[index][0]] = result.get("relevance_score", result.get("score", 0.0))
    return scores


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("batch_size", [1, 2, DEFAULT_BATCH])
def test_the_reranker_gets_a_score_for_each_pair(
    server: Server, scores: ExpectedScores, prefix: str, batch_size: int
) -> None:
    queries = [QUERY, "w7 w300"]
    pairs = [(query, document) for document in DOCUMENTS for query in queries]
    got = predict(server, prefix, pairs, batch_size)
    wanted = [scores.of(query, [document])[0] for query, document in pairs]
    np.testing.assert_allclose(got, wanted, atol=SCORE_TOLERANCE)


def measured(server: Server, path: str, body: dict[str, Any], key: str | None) -> Any:
    """As perf's process_request: the texts unescaped, a key only if one is set."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    content = json.dumps(body, ensure_ascii=False).encode()
    with server.client() as client:
        answer: httpx.Response = client.post(path, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def prompt_tokens(answer: Any) -> int:
    """As perf counts them: 0 where the answer does not tell."""
    usage = answer.get("usage") or {}
    return int(usage.get("prompt_tokens") or usage.get("total_tokens", 0))


EMBEDDING_ARGS: list[dict[str, Any]] = [
    {},
    {"batch_size": 8},
    {"dimensions": DIM},
    {"encoding_format": "float", "batch_size": 8},
]


@pytest.mark.parametrize("extra", EMBEDDING_ARGS, ids=str)
@pytest.mark.parametrize("key", [None, "EMPTY"])
def test_the_load_tests_embeddings_are_counted(
    server: Server, vectors: ExpectedVectors, extra: dict[str, Any], key: str | None
) -> None:
    for given, texts in ((TEXTS[2], TEXTS[2:3]), (TEXTS, TEXTS)):
        body = {"input": given, "model": MINILM, **extra}
        answer = measured(server, "/v1/embeddings", body, key)
        rows = [item.get("embedding", []) for item in answer.get("data", [])]
        assert (len(rows), len(rows[0])) == (len(texts), DIM)
        vectors.check(rows, texts)
        assert prompt_tokens(answer) == vectors.num_tokens(texts)


RERANK_ARGS: list[dict[str, Any]] = [
    {},
    {"top_n": 2},
    {"num_documents": 10, "document_length_ratio": 5, "top_n": 3},
]


@pytest.mark.parametrize("extra", RERANK_ARGS, ids=str)
@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_the_load_tests_rankings_are_counted(
    server: Server, scores: ExpectedScores, path: str, extra: dict[str, Any]
) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "model": RERANKER, **extra}
    answer = measured(server, path, body, None)
    results = answer.get("results", [])
    ranked = [
        (item["index"], item.get("relevance_score", item.get("score", 0))) for item in results
    ]
    scores.check(ranked, top_n=extra.get("top_n"))
    assert prompt_tokens(answer) == scores.num_tokens(QUERY, DOCUMENTS)
