"""llama-index's embeddings and its Jina reranker, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ollama
import openai
import pytest
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.postprocessor.jinaai_rerank import JinaRerank

from tests.clients.expected import (
    DOCUMENTS,
    MINILM,
    QUERY,
    RERANKER,
    TEXTS,
    ExpectedScores,
    ExpectedVectors,
)
from tests.servers import Server


@contextmanager
def ollama_embedding(server: Server, model: str = MINILM, **options: Any) -> Iterator[Any]:
    """It has no close of its own."""
    embedding = OllamaEmbedding(model_name=model, base_url=server.url, **options)
    try:
        yield embedding
    finally:
        embedding._client.close()


@contextmanager
def openai_like_embedding(server: Server, model: str = MINILM, **options: Any) -> Iterator[Any]:
    """It has no close of its own."""
    embedding = OpenAILikeEmbedding(
        model_name=model, api_base=f"{server.url}/v1", max_retries=0, **options
    )
    try:
        yield embedding
    finally:
        embedding._get_client().close()


@pytest.mark.parametrize("opened", [ollama_embedding, openai_like_embedding])
def test_texts_batches_and_queries_get_their_vectors(
    server: Server, vectors: ExpectedVectors, opened: Any
) -> None:
    with opened(server, embed_batch_size=2) as embedding:
        vectors.check(embedding.get_text_embedding_batch(TEXTS), TEXTS)
        vectors.check([embedding.get_text_embedding(TEXTS[1])], TEXTS[1:2])
        vectors.check([embedding.get_query_embedding(TEXTS[0])], TEXTS[:1])


def test_ollama_options_and_instructions_reach_the_model(
    server: Server, vectors: ExpectedVectors
) -> None:
    options = {"num_ctx": 8, "mirostat": 0}
    with ollama_embedding(
        server, ollama_additional_kwargs=options, text_instruction="one two", keep_alive="5m"
    ) as embedding:
        got = embedding.get_text_embedding("three four five six seven eight")
    vectors.check([got], ["one two three four five six"])


def test_openai_like_dimensions_cut_the_vectors(server: Server, vectors: ExpectedVectors) -> None:
    with openai_like_embedding(server, dimensions=64) as embedding:
        vectors.check(embedding.get_text_embedding_batch(TEXTS), TEXTS, 64)


def test_async_calls_get_the_same(server: Server, vectors: ExpectedVectors) -> None:
    async def embed(embedding: Any) -> Any:
        try:
            return await embedding.aget_text_embedding_batch(TEXTS)
        finally:
            await embedding._async_client.close()

    with ollama_embedding(server) as embedding:
        vectors.check(asyncio.run(embed(embedding)), TEXTS)


def test_an_unknown_model_is_the_error_of_the_client_below(server: Server) -> None:
    with ollama_embedding(server, "absent") as embedding, pytest.raises(ollama.ResponseError):
        embedding.get_text_embedding(TEXTS[0])
    with openai_like_embedding(server, "absent") as like, pytest.raises(openai.NotFoundError):
        like.get_text_embedding(TEXTS[0])


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(DOCUMENTS)]


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("top_n", [2, len(DOCUMENTS)])
def test_the_jina_reranker_orders_nodes(
    server: Server, scores: ExpectedScores, prefix: str, top_n: int
) -> None:
    url = f"{server.url}{prefix}"
    reranker = JinaRerank(top_n=top_n, model=RERANKER, base_url=url, api_key="any")
    ordered = reranker.postprocess_nodes(nodes(), QueryBundle(QUERY))
    scores.check([(int(node.node.node_id), node.score) for node in ordered], top_n=top_n)


def test_the_jina_reranker_reads_the_detail_of_an_error(server: Server) -> None:
    reranker = JinaRerank(model="absent", base_url=f"{server.url}/v1", api_key="any")
    with pytest.raises(RuntimeError, match="absent"):
        reranker.postprocess_nodes(nodes(), QueryBundle(QUERY))
