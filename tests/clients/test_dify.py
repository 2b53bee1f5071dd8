"""Dify's providers: the bodies that they send, and the answers as they read them.

Sources on GitHub: langgenius/dify-official-plugins, models/openai_api_compatible/models/rerank/
rerank.py and .../text_embedding/text_embedding.py, models/ollama/models/rerank/rerank.py and
.../text_embedding/text_embedding.py, models/jina/models/rerank/rerank.py and .../text_embedding/
text_embedding.py; langgenius/dify-plugin-sdks, python/dify_plugin/interfaces/model/
openai_compatible/rerank.py and text_embedding.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.expected import (
    DOCUMENTS,
    MINILM,
    QUERY,
    RERANKER,
    TEXTS,
    ExpectedScores,
    ExpectedVectors,
)
from tests.clients.raw import post, refused
from tests.servers import Server

PREFIXES = ("/v1", "")  # people set the endpoint with and without it


def rerank_body(**extra: Any) -> dict[str, Any]:
    return {"model": RERANKER, "query": QUERY, "documents": DOCUMENTS, **extra}


def ranked(answer: Any) -> list[tuple[int, float]]:
    return [(item["index"], item["relevance_score"]) for item in answer["results"]]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["any", None])
def test_openai_api_compatible_rerank_by_the_plugin(
    server: Server, scores: ExpectedScores, prefix: str, key: str | None
) -> None:
    body = rerank_body(top_n=3, return_documents=True, score_threshold=0.8)
    answer = post(server, f"{prefix}/rerank", body, key)
    scores.check(ranked(answer), top_n=3)
    for item in answer["results"]:
        assert item.get("document", {}).get("text", "") == DOCUMENTS[item["index"]]
    wanted = scores.num_tokens(QUERY, DOCUMENTS)
    assert answer.get("usage", {}).get("total_tokens", 0) == wanted


@pytest.mark.parametrize("prefix", PREFIXES)
def test_openai_api_compatible_rerank_by_the_sdk_has_a_null_top_n(
    server: Server, scores: ExpectedScores, prefix: str
) -> None:
    answer = post(server, f"{prefix}/rerank", rerank_body(top_n=None, return_documents=True))
    scores.check(ranked(answer))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["any", None])
def test_openai_api_compatible_embedding_by_the_plugin_sends_one_text_a_call(
    server: Server, vectors: ExpectedVectors, prefix: str, key: str | None
) -> None:
    rows, num_tokens = [], 0
    for text in TEXTS:
        body = {"model": MINILM, "input": text, "encoding_format": "float"}
        answer = post(server, f"{prefix}/embeddings", body, key)
        rows.append(answer["data"][0]["embedding"])
        num_tokens += answer.get("usage", {}).get("prompt_tokens", 0)
    vectors.check(rows, TEXTS)
    assert num_tokens == vectors.num_tokens(TEXTS)


def test_openai_api_compatible_embedding_by_the_sdk(
    server: Server, vectors: ExpectedVectors
) -> None:
    ping = post(server, "/v1/embeddings", {"input": "ping", "model": MINILM})
    assert "model" in ping
    body = {"input": TEXTS, "model": MINILM, "user": "abc", "encoding_format": "float"}
    answer = post(server, "/v1/embeddings", body)
    vectors.check([item["embedding"] for item in answer["data"]], TEXTS)
    assert answer["usage"]["total_tokens"] == vectors.num_tokens(TEXTS)


def test_ollama_embedding(server: Server, vectors: ExpectedVectors) -> None:
    body = {"input": TEXTS, "model": MINILM, "options": {"use_mmap": True}}
    vectors.check(post(server, "/api/embed", body)["embeddings"], TEXTS)


@pytest.mark.parametrize("extra", [{}, {"top_n": 2}])
def test_ollama_rerank_takes_a_document_as_it_is_and_so_must_not_be_sent_one(
    server: Server, scores: ExpectedScores, extra: dict[str, int]
) -> None:
    answer = post(server, "/api/rerank", rerank_body(**extra))
    scores.check(ranked(answer), top_n=extra.get("top_n"))
    assert all("document" not in item for item in answer["results"])


@pytest.mark.parametrize("top_n", [None, 2])
def test_jina_rerank_sends_texts_or_objects_and_a_null_top_n(
    server: Server, scores: ExpectedScores, top_n: int | None
) -> None:
    for documents in (DOCUMENTS, [{"text": text} for text in DOCUMENTS]):
        body = rerank_body(documents=documents, top_n=top_n, return_documents=False)
        answer = post(server, "/v1/rerank", body)
        scores.check(ranked(answer), top_n=top_n)
        assert all("document" not in item for item in answer["results"])


def test_jina_embedding_sends_a_task_beside_the_texts(
    server: Server, vectors: ExpectedVectors
) -> None:
    body = {"model": MINILM, "input": TEXTS, "task": "retrieval.passage"}
    answer = post(server, "/v1/embeddings", body)
    vectors.check([[float(x) for x in item["embedding"]] for item in answer["data"]], TEXTS)
    assert answer["usage"]["total_tokens"] == vectors.num_tokens(TEXTS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "absent", "input": ["ping"]}),
        ("/v1/rerank", rerank_body(model="absent")),
        ("/v1/embeddings", {"model": MINILM, "input": []}),
    ],
)
def test_jina_reads_the_detail_of_an_error(server: Server, path: str, body: dict[str, Any]) -> None:
    answer = refused(server, path, body).json()
    assert isinstance(answer["detail"], str)
    assert answer["detail"] == answer["error"]["message"]
