"""The `cohere` package's two clients and langchain-cohere, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cohere
import pytest
from cohere.errors import BadRequestError, NotFoundError
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from pydantic import SecretStr

from tests.clients.expected import DOCUMENTS, QUERY, RERANKER, ExpectedScores
from tests.servers import Server

Clients = (cohere.Client, cohere.ClientV2)  # /v1/rerank and /v2/rerank


def rerank(kind: Any, server: Server, **call: Any) -> Any:
    with kind(api_key="any", base_url=server.url) as client:
        return client.rerank(**{"model": RERANKER, "query": QUERY, "documents": DOCUMENTS, **call})


def pairs(answer: Any) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in answer.results]


@pytest.mark.parametrize("kind", Clients)
def test_rerank_orders_all_documents(server: Server, scores: ExpectedScores, kind: Any) -> None:
    answer = rerank(kind, server)
    scores.check(pairs(answer))
    assert answer.id
    assert answer.meta.api_version.version


@pytest.mark.parametrize("kind", Clients)
def test_top_n_gives_the_best(server: Server, scores: ExpectedScores, kind: Any) -> None:
    answer = rerank(kind, server, top_n=2)
    scores.check(pairs(answer), top_n=2)


def test_nulls_are_as_good_as_absent(server: Server, scores: ExpectedScores) -> None:
    answer = rerank(cohere.ClientV2, server, top_n=None, max_tokens_per_doc=None)
    scores.check(pairs(answer))


def test_max_tokens_per_doc_cuts_the_documents(server: Server, scores: ExpectedScores) -> None:
    documents = ["w1 w2 w3", "w4 w5 w6"]
    answer = rerank(cohere.ClientV2, server, documents=documents, max_tokens_per_doc=2)
    scores.check(pairs(answer), QUERY, ["w1 w2", "w4 w5"])


def test_documents_may_be_objects_and_come_back_as_texts(
    server: Server, scores: ExpectedScores
) -> None:
    documents = [{"text": text} for text in DOCUMENTS]
    answer = rerank(cohere.Client, server, documents=documents, return_documents=True)
    scores.check(pairs(answer))
    assert [r.document.text for r in answer.results] == [DOCUMENTS[r.index] for r in answer.results]


@pytest.mark.parametrize("kind", Clients)
def test_errors_are_the_clients_own(server: Server, kind: Any) -> None:
    with pytest.raises(NotFoundError) as missing:
        rerank(kind, server, model="absent")
    assert "absent" in str(missing.value.body)
    with pytest.raises(BadRequestError):
        rerank(kind, server, documents=[{"no": "text"}])


@contextmanager
def langchain(server: Server, **options: Any) -> Iterator[CohereRerank]:
    reranker = CohereRerank(
        model=RERANKER, base_url=server.url, cohere_api_key=SecretStr("any"), **options
    )
    with reranker.client:
        yield reranker


def test_langchain_compresses_documents_to_the_best(server: Server, scores: ExpectedScores) -> None:
    documents = [Document(text, metadata={"at": i}) for i, text in enumerate(DOCUMENTS)]
    with langchain(server, top_n=3) as reranker:
        best = reranker.compress_documents(documents, QUERY)
    scores.check([(d.metadata["at"], d.metadata["relevance_score"]) for d in best], top_n=3)
    assert [d.page_content for d in best] == [DOCUMENTS[d.metadata["at"]] for d in best]


def test_langchain_without_a_top_n_gets_them_all(server: Server, scores: ExpectedScores) -> None:
    with langchain(server) as reranker:
        answer = reranker.rerank(DOCUMENTS, QUERY, top_n=None)
    scores.check([(item["index"], item["relevance_score"]) for item in answer])
