"""Open WebUI's external reranker and its embedding engines: the bodies that they send, and the
answers as they read them.

Sources on GitHub: open-webui/open-webui, backend/open_webui/retrieval/models/external.py and
backend/open_webui/retrieval/utils.py.
"""

from __future__ import annotations

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
from tests.clients.raw import post
from tests.servers import Server

USER = {
    "X-OpenWebUI-User-Name": "Ada%20Lovelace",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "user",
}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_the_external_reranker_gets_a_score_for_every_document(
    server: Server, scores: ExpectedScores, path: str
) -> None:
    body = {"model": RERANKER, "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    with server.client() as client:
        answer = client.post(path, json=body, headers={"Authorization": "Bearer any", **USER})
    answer.raise_for_status()
    results = sorted(answer.json()["results"], key=lambda result: result["index"])
    got = [result["relevance_score"] for result in results]
    assert got == pytest.approx(scores.of(QUERY, DOCUMENTS), abs=1e-5)


@pytest.mark.parametrize("key", ["any", ""])
def test_the_openai_engine_gets_its_vectors(
    server: Server, vectors: ExpectedVectors, key: str
) -> None:
    body = {"input": TEXTS, "model": MINILM}
    answer = post(server, "/v1/embeddings", body, key)
    vectors.check([item["embedding"] for item in answer["data"]], TEXTS)


@pytest.mark.parametrize("extra", [{}, {"truncate": True}, {"prefix": "query: "}])
def test_the_ollama_engine_gets_its_vectors(
    server: Server, vectors: ExpectedVectors, extra: dict[str, object]
) -> None:
    body = {"input": TEXTS, "model": MINILM, **extra}
    vectors.check(post(server, "/api/embed", body)["embeddings"], TEXTS)


def test_the_ollama_engine_reads_the_error_of_an_answer_that_is_not_200(server: Server) -> None:
    answer = server.embed({"input": TEXTS, "model": "absent", "truncate": True})
    assert answer.status_code == 404
    assert answer.json().get("error") == "model 'absent' not found"
