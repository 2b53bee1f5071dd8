"""RAGFlow's embedding and rerank models: what they send, and the answers as they read them. Where
they use a client of another's, it is that client here.

Sources on GitHub: infiniflow/ragflow, rag/llm/rerank_model.py (Xinference, LocalAI, OpenAI-API-
Compatible, GPUStack, SILICONFLOW, Cohere and VLLM, HuggingFace) and rag/llm/embedding_model.py
(OpenAI-API-Compatible, VLLM, LocalAI, Ollama, HuggingFace).
"""

from __future__ import annotations

from typing import Any

import cohere
import numpy as np
import ollama
import openai
import pytest
from numpy.typing import NDArray

from tests.clients.expected import (
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
from tests.servers import Server

RERANKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Xinference": ("/v1/rerank", {"return_documents": "true", "return_len": "true"}),
    "OpenAI-API-Compatible": ("/rerank", {"top_n": len(DOCUMENTS)}),
    "GPUStack": ("/v1/rerank", {"top_n": len(DOCUMENTS)}),
    "SILICONFLOW": (
        "/v1/rerank",
        {
            "top_n": len(DOCUMENTS),
            "return_documents": False,
            "max_chunks_per_doc": 1024,
            "overlap_tokens": 80,
        },
    ),
}


def ranks(results: list[dict[str, Any]], field: str = "relevance_score") -> NDArray[np.float64]:
    """A score a document; one that is not answered stays NaN."""
    rank = np.full(len(DOCUMENTS), np.nan)
    for result in results:
        rank[result["index"]] = result[field]
    return rank


def check(rank: NDArray[np.float64], scores: ExpectedScores) -> None:
    np.testing.assert_allclose(rank, scores.of(QUERY, DOCUMENTS), atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("name", list(RERANKS))
def test_rerank_gives_every_document_its_score_and_the_tokens(
    server: Server, scores: ExpectedScores, name: str
) -> None:
    path, extra = RERANKS[name]
    body = {"model": RERANKER, "query": QUERY, "documents": DOCUMENTS, **extra}
    answer = post(server, path, body)
    check(ranks(answer["results"]), scores)
    wanted = scores.num_tokens(QUERY, DOCUMENTS)
    assert answer["usage"]["total_tokens"] == wanted
    if name == "SILICONFLOW":  # as its own service answers, and as Cohere's does
        tokens = answer["meta"]["tokens"]
        assert tokens["input_tokens"] + tokens["output_tokens"] == wanted
    given = [result.get("document", {}).get("text") for result in answer["results"]]
    if name == "Xinference":
        assert given == [DOCUMENTS[result["index"]] for result in answer["results"]]


def test_rerank_by_coheres_client(server: Server, scores: ExpectedScores) -> None:
    with cohere.Client(api_key="any", base_url=server.url) as client:
        answer = client.rerank(
            model=RERANKER,
            query=QUERY,
            documents=DOCUMENTS,
            top_n=len(DOCUMENTS),
            return_documents=False,
        )
    rank = np.full(len(DOCUMENTS), np.nan)
    for result in answer.results:
        rank[result.index] = result.relevance_score
    check(rank, scores)


def test_rerank_in_huggingfaces_way_goes_in_batches(server: Server, scores: ExpectedScores) -> None:
    rank = np.full(len(DOCUMENTS), np.nan)
    for start in range(0, len(DOCUMENTS), 2):
        texts = DOCUMENTS[start : start + 2]
        body = {"query": QUERY, "texts": texts, "raw_scores": False, "truncate": True}
        for item in post(server, "/rerank", body):
            rank[item["index"] + start] = item["score"]
    check(rank, scores)


@pytest.mark.parametrize("extra", [{"encoding_format": "float"}, {}])
def test_embedding_by_openais_client(
    server: Server, vectors: ExpectedVectors, extra: dict[str, Any]
) -> None:
    rows, num_tokens = [], 0
    with openai.OpenAI(api_key="x", base_url=f"{server.url}/v1", max_retries=0) as client:
        for start in range(0, len(TEXTS), 2):
            answer = client.embeddings.create(
                input=TEXTS[start : start + 2],
                model=MINILM,
                extra_body={"drop_params": True},
                **extra,
            )
            rows += [item.embedding for item in answer.data]
            num_tokens += answer.usage.total_tokens
    vectors.check(rows, TEXTS)
    assert num_tokens == vectors.num_tokens(TEXTS)


def test_embedding_by_ollamas_client(server: Server, vectors: ExpectedVectors) -> None:
    with ollama.Client(host=server.url, headers={"Authorization": "Bearer any"}) as client:
        rows = [
            client.embeddings(prompt=text, model=MINILM, options={"use_mmap": True}, keep_alive=-1)[
                "embedding"
            ]
            for text in TEXTS
            if text
        ]
    lengths = np.linalg.norm(np.array(rows), axis=1, keepdims=True)
    vectors.check(np.array(rows) / lengths, [text for text in TEXTS if text])


def test_embedding_in_huggingfaces_way(server: Server, vectors: ExpectedVectors) -> None:
    vectors.check(post(server, "/embed", {"inputs": TEXTS}), TEXTS)
    vectors.check(post(server, "/embed", {"inputs": TEXTS[0]}), TEXTS[:1])
