"""The `ollama` package, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import ollama
import pytest

from tests.clients.expected import (
    DIM,
    M3,
    MAX_LENGTH,
    MINILM,
    RERANKER,
    TEXTS,
    ExpectedVectors,
)
from tests.servers import Server

WORDS = "one two three four five six seven eight nine ten"
LONG = "word " * 400


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as opened:
        yield opened


def test_embed_of_one_text_has_its_vector_and_how_long_it_took(
    client: ollama.Client, vectors: ExpectedVectors
) -> None:
    answer = client.embed(model=MINILM, input=TEXTS[0])
    vectors.check(answer.embeddings, TEXTS[:1])
    assert answer.model == MINILM
    assert answer.prompt_eval_count == vectors.num_tokens(TEXTS[:1])
    assert isinstance(answer.total_duration, int)
    assert isinstance(answer.load_duration, int)
    assert answer.total_duration > 0


def test_embed_of_a_list_keeps_its_order(client: ollama.Client, vectors: ExpectedVectors) -> None:
    answer = client.embed(f"{MINILM}:latest", TEXTS)
    vectors.check(answer["embeddings"], TEXTS)
    assert answer.model == f"{MINILM}:latest"


@pytest.mark.parametrize("nothing", ["", []])
def test_embed_of_nothing_loads_the_model(client: ollama.Client, nothing: Any) -> None:
    assert client.embed(M3, nothing).embeddings == []


@pytest.mark.parametrize("truncate", [None, True])
def test_a_text_too_long_is_cut(
    client: ollama.Client, vectors: ExpectedVectors, truncate: bool | None
) -> None:
    answer = client.embed(MINILM, LONG, truncate=truncate)
    vectors.check(answer.embeddings, [LONG])
    assert answer.prompt_eval_count == MAX_LENGTH


def test_a_text_too_long_is_refused_where_cutting_is_off(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as raised:
        client.embed(MINILM, LONG, truncate=False)
    assert raised.value.status_code == 400
    assert "the input length exceeds the context length" in raised.value.error


def test_num_ctx_cuts_earlier_and_other_options_change_nothing(
    client: ollama.Client, vectors: ExpectedVectors
) -> None:
    options = ollama.Options(num_ctx=8, temperature=0.5, seed=1, stop=["x"], num_gpu=1)
    answer = client.embed(MINILM, WORDS, options=options)
    vectors.check(answer.embeddings, ["one two three four five six"])
    assert answer.prompt_eval_count == 8


@pytest.mark.parametrize("keep_alive", ["5m", "1h30m", -1, 0, 1.5])
def test_keep_alive_is_taken_as_seconds_or_a_duration(
    client: ollama.Client, vectors: ExpectedVectors, keep_alive: float | str
) -> None:
    vectors.check(client.embed(MINILM, TEXTS[0], keep_alive=keep_alive).embeddings, TEXTS[:1])


def test_a_keep_alive_that_is_no_duration_is_refused(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as raised:
        client.embed(MINILM, TEXTS[0], keep_alive="soon")
    assert raised.value.status_code == 400


@pytest.mark.parametrize(("dimensions", "dim"), [(64, 64), (DIM, DIM), (10_000, DIM)])
def test_dimensions_cut_the_vector_and_are_ignored_where_there_are_not_so_many(
    client: ollama.Client, vectors: ExpectedVectors, dimensions: int, dim: int
) -> None:
    vectors.check(client.embed(MINILM, TEXTS, dimensions=dimensions).embeddings, TEXTS, dim)


def test_embeddings_gives_the_raw_vector(client: ollama.Client, vectors: ExpectedVectors) -> None:
    got = client.embeddings(MINILM, TEXTS[0], options={"use_mmap": True}, keep_alive=-1).embedding
    wanted = vectors.raw(TEXTS[0])
    assert abs(np.linalg.norm(wanted) - 1) > 0.1
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_list_names_every_model_with_its_tag(client: ollama.Client) -> None:
    listed = {model.model: model for model in client.list().models}
    assert set(listed) == {f"{name}:latest" for name in (MINILM, RERANKER, M3)}
    minilm = listed[f"{MINILM}:latest"]
    assert minilm.size
    assert minilm.digest
    assert minilm.modified_at
    assert minilm.details
    assert minilm.details.family == "bert"


@pytest.mark.parametrize("name", [MINILM, f"{MINILM}:latest"])
def test_show_tells_what_the_model_is(client: ollama.Client, name: str) -> None:
    shown = client.show(name)
    assert shown.capabilities == ["embedding"]
    assert shown.modified_at
    assert shown.details
    assert shown.details.family == "bert"
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "bert"
    assert shown.modelinfo["bert.embedding_length"] == DIM
    assert shown.modelinfo["bert.context_length"] == MAX_LENGTH


def test_ps_tells_what_is_in_memory(client: ollama.Client) -> None:
    client.embed(MINILM, TEXTS[0])
    running = {model.model: model for model in client.ps().models}
    minilm = running[f"{MINILM}:latest"]
    assert minilm.expires_at
    assert minilm.size
    assert minilm.size_vram is not None
    assert minilm.context_length == MAX_LENGTH


def test_an_unknown_model_is_ollamas_404(client: ollama.Client) -> None:
    for call in (
        lambda: client.embed("absent", TEXTS[0]),
        lambda: client.embeddings("absent", TEXTS[0]),
        lambda: client.show("absent"),
    ):
        with pytest.raises(ollama.ResponseError) as raised:
            call()
        assert raised.value.status_code == 404
        assert raised.value.error == "model 'absent' not found"


def test_the_async_client_gets_the_same(server: Server, vectors: ExpectedVectors) -> None:
    async def embed() -> Any:
        async with ollama.AsyncClient(host=server.url) as client:
            return (await client.embed(MINILM, TEXTS)).embeddings

    vectors.check(asyncio.run(embed()), TEXTS)
