"""langchain-ollama's OllamaEmbeddings, unmodified: it sends thirteen options, most of them null."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ollama
import pytest
from langchain_ollama import OllamaEmbeddings

from tests.clients.expected import MINILM, TEXTS, ExpectedVectors
from tests.servers import Server

WORDS = "one two three four five six seven eight nine ten"
ALL_OPTIONS: dict[str, Any] = {
    "mirostat": 0,
    "mirostat_eta": 0.1,
    "mirostat_tau": 5.0,
    "num_ctx": 8,
    "num_gpu": 0,
    "num_thread": 2,
    "repeat_last_n": 64,
    "repeat_penalty": 1.1,
    "temperature": 0.8,
    "stop": ["\n"],
    "tfs_z": 1.0,
    "top_k": 40,
    "top_p": 0.9,
}


@contextmanager
def opened(server: Server, model: str = MINILM, **options: Any) -> Iterator[OllamaEmbeddings]:
    """It has no close of its own."""
    embeddings = OllamaEmbeddings(model=model, base_url=server.url, **options)
    try:
        yield embeddings
    finally:
        client: Any = embeddings._client
        client.close()


def test_options_left_out_are_sent_as_nulls_and_change_nothing(
    server: Server, vectors: ExpectedVectors
) -> None:
    with opened(server) as embeddings:
        assert set(embeddings._default_params.values()) == {None}
        vectors.check(embeddings.embed_documents(TEXTS), TEXTS)
        vectors.check([embeddings.embed_query(TEXTS[0])], TEXTS[:1])


def test_every_option_is_taken_and_num_ctx_is_obeyed(
    server: Server, vectors: ExpectedVectors
) -> None:
    with opened(server, keep_alive=300, **ALL_OPTIONS) as embeddings:
        assert embeddings._default_params == ALL_OPTIONS
        vectors.check(embeddings.embed_documents([WORDS]), ["one two three four five six"])


def test_dimensions_cut_the_vectors(server: Server, vectors: ExpectedVectors) -> None:
    with opened(server, dimensions=64) as embeddings:
        vectors.check(embeddings.embed_documents(TEXTS), TEXTS, 64)


@pytest.mark.parametrize("name", [MINILM, f"{MINILM}:latest"])
def test_a_served_model_passes_its_check_at_the_start(
    server: Server, vectors: ExpectedVectors, name: str
) -> None:
    with opened(server, name, validate_model_on_init=True) as embeddings:
        vectors.check(embeddings.embed_documents(TEXTS), TEXTS)


def test_an_unknown_model_fails_its_check_at_the_start_and_later(server: Server) -> None:
    with pytest.raises(ValueError, match="not found in Ollama"):
        OllamaEmbeddings(
            model="absent",
            base_url=server.url,
            validate_model_on_init=True,
            client_kwargs={"headers": {"connection": "close"}},  # nobody else will close it
        )
    with opened(server, "absent") as embeddings, pytest.raises(ollama.ResponseError) as raised:
        embeddings.embed_query(TEXTS[0])
    assert raised.value.status_code == 404


def test_its_async_calls_get_the_same(server: Server, vectors: ExpectedVectors) -> None:
    async def embed(embeddings: OllamaEmbeddings) -> list[list[float]]:
        try:
            return await embeddings.aembed_documents(TEXTS)
        finally:
            client: Any = embeddings._async_client
            await client.close()

    with opened(server) as embeddings:
        vectors.check(asyncio.run(embed(embeddings)), TEXTS)
