"""langchain-openai's OpenAIEmbeddings, unmodified: by default it sends token ids of OpenAI's
cl100k_base, which mean other words here. They are refused by a text that names the switch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from tests.clients.expected import DIM, MINILM, TEXTS, ExpectedVectors
from tests.servers import Server


@contextmanager
def opened(server: Server, **options: Any) -> Iterator[OpenAIEmbeddings]:
    """It has no close of its own."""
    embeddings = OpenAIEmbeddings(
        model=MINILM,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        max_retries=0,
        **options,
    )
    try:
        yield embeddings
    finally:
        embeddings.client._client.close()


@pytest.mark.usefixtures("cl100k_base")
@pytest.mark.parametrize("texts", [TEXTS[:2], ["a"], ["x"] * 1000])
def test_the_default_is_refused_by_a_text_that_names_the_switch(
    server: Server, texts: list[str]
) -> None:
    with opened(server) as embeddings, pytest.raises(openai.BadRequestError) as raised:
        embeddings.embed_documents(texts)
    assert "check_embedding_ctx_length=False" in str(raised.value)


def test_with_the_switch_off_a_thousand_texts_go_in_one_call(
    server: Server, vectors: ExpectedVectors
) -> None:
    texts = [f"text number {i}" for i in range(1000)]
    with opened(server, check_embedding_ctx_length=False) as embeddings:
        got = embeddings.embed_documents(texts)
    assert len(got) == 1000
    vectors.check(got[::47], texts[::47])


def test_with_the_switch_off_queries_and_dimensions_work(
    server: Server, vectors: ExpectedVectors
) -> None:
    with opened(server, check_embedding_ctx_length=False) as embeddings:
        vectors.check([embeddings.embed_query(TEXTS[0])], TEXTS[:1])
    with opened(server, check_embedding_ctx_length=False, dimensions=64) as embeddings:
        vectors.check(embeddings.embed_documents(TEXTS), TEXTS, 64)


def test_its_async_calls_get_the_same(server: Server, vectors: ExpectedVectors) -> None:
    async def embed(embeddings: OpenAIEmbeddings) -> list[list[float]]:
        try:
            return await embeddings.aembed_documents(TEXTS)
        finally:
            await embeddings.async_client._client.close()

    with opened(server, check_embedding_ctx_length=False) as embeddings:
        vectors.check(asyncio.run(embed(embeddings)), TEXTS, DIM)
