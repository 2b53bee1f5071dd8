"""The `openai` package, unmodified: it asks for base64 unless told otherwise."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from tests.clients.expected import DIM, M3, MAX_LENGTH, MINILM, RERANKER, TEXTS, ExpectedVectors
from tests.engine.oracle import TOLERANCE, M3Oracle
from tests.servers import Server

HUB_NAME = f"sentence-transformers/{MINILM}"
WIDE_TEXTS = ["w1 w2 w3", "w4 w4 w5", "w9"]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def rows(answer: Any) -> NDArray[np.float32]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    assert {item.object for item in answer.data} == {"embedding"}
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


def test_the_default_call_gets_the_right_vectors_and_their_tokens(
    client: openai.OpenAI, vectors: ExpectedVectors
) -> None:
    answer = client.embeddings.create(model=MINILM, input=TEXTS)
    vectors.check(rows(answer), TEXTS)
    assert answer.model == MINILM
    assert answer.object == "list"
    assert answer.usage.prompt_tokens == vectors.num_tokens(TEXTS)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_base64_and_float_are_the_same_bits(client: openai.OpenAI) -> None:
    default = client.embeddings.create(model=MINILM, input=TEXTS)
    floats = client.embeddings.create(model=MINILM, input=TEXTS, encoding_format="float")
    assert rows(default).tobytes() == rows(floats).tobytes()


def test_base64_asked_for_comes_undecoded(client: openai.OpenAI, vectors: ExpectedVectors) -> None:
    answer = client.embeddings.create(model=MINILM, input=TEXTS, encoding_format="base64")
    sent: list[Any] = [item.embedding for item in answer.data]
    vectors.check([np.frombuffer(base64.b64decode(text), "<f4") for text in sent], TEXTS)


@pytest.mark.parametrize("text", [TEXTS[0], ""])
def test_one_text_need_not_be_a_list(
    client: openai.OpenAI, vectors: ExpectedVectors, text: str
) -> None:
    answer = client.embeddings.create(model=HUB_NAME, input=text, user="someone")
    vectors.check(rows(answer), [text])


@pytest.mark.parametrize("dim", [1, 64, DIM])
def test_dimensions_cut_the_vectors(
    client: openai.OpenAI, vectors: ExpectedVectors, dim: int
) -> None:
    answer = client.embeddings.create(model=MINILM, input=TEXTS, dimensions=dim)
    vectors.check(rows(answer), TEXTS, dim)


def test_2048_texts_with_all_dimensions_fit_one_call(
    client: openai.OpenAI, vectors: ExpectedVectors
) -> None:
    texts = [f"text number {i}" for i in range(2048)]
    got = rows(client.embeddings.create(model=MINILM, input=texts, dimensions=DIM))
    assert got.shape == (2048, DIM)
    chosen = range(0, 2048, 89)
    vectors.check(got[chosen], [texts[i] for i in chosen])


def test_a_text_too_long_is_cut(client: openai.OpenAI, vectors: ExpectedVectors) -> None:
    text = "word " * 400
    answer = client.embeddings.create(model=MINILM, input=text)
    vectors.check(rows(answer), [text])
    assert answer.usage.prompt_tokens == MAX_LENGTH


@pytest.mark.parametrize(
    "wrong", [{"input": []}, {"dimensions": 0}, {"dimensions": DIM + 1}, {"encoding_format": "int"}]
)
def test_a_bad_request_is_the_clients_bad_request_error(
    client: openai.OpenAI, wrong: dict[str, Any]
) -> None:
    call: dict[str, Any] = {"model": MINILM, "input": TEXTS, **wrong}
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(**call)
    body: Any = raised.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    assert next(iter(wrong)) in body["message"]


def test_an_unknown_model_is_the_clients_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="absent"):
        client.embeddings.create(model="absent", input=TEXTS)
    with pytest.raises(openai.NotFoundError, match="absent"):
        client.models.retrieve("absent")


def test_models_are_listed_with_what_the_client_reads(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {MINILM, RERANKER, M3}
    for model in listed.values():
        assert model.object == "model"
        assert model.owned_by
        assert isinstance(model.created, int)
    extra: Any = listed[MINILM]
    assert extra.max_model_len == MAX_LENGTH


@pytest.mark.parametrize("name", [MINILM, f"{MINILM}:latest", HUB_NAME])
def test_a_model_is_retrieved_by_any_of_its_names(client: openai.OpenAI, name: str) -> None:
    model: Any = client.models.retrieve(name)
    assert model.object == "model"
    assert model.max_model_len == MAX_LENGTH


def test_the_async_client_gets_the_same(server: Server, vectors: ExpectedVectors) -> None:
    async def embed() -> Any:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            return await client.embeddings.create(model=MINILM, input=TEXTS)

    vectors.check(rows(asyncio.run(embed())), TEXTS)


def unpacked(rows: Any) -> NDArray[np.float32]:
    """`[T, DIM]`; base64 rows are strings."""
    if rows and isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("encoding_format", ["float", None])
def test_one_call_gives_the_three_views_of_bge_m3(
    client: openai.OpenAI, models: Path, encoding_format: Any
) -> None:
    """None is the client's own base64."""
    oracle = M3Oracle(models / M3, 8192)
    formats = {} if encoding_format is None else {"encoding_format": encoding_format}
    outputs = {"outputs": ["dense", "sparse", "colbert"]}
    answer = client.embeddings.create(model=M3, input=WIDE_TEXTS, extra_body=outputs, **formats)
    for text, item in zip(WIDE_TEXTS, answer.data, strict=True):
        extra: Any = item
        np.testing.assert_allclose(item.embedding, oracle.dense(text), atol=TOLERANCE)
        sparse = oracle.sparse(text)
        assert {int(token_id) for token_id in extra.sparse} == set(sparse)
        for token_id, weight in extra.sparse.items():
            assert weight == pytest.approx(sparse[int(token_id)], abs=TOLERANCE)
        np.testing.assert_allclose(unpacked(extra.colbert), oracle.colbert(text), atol=TOLERANCE)


def test_a_model_without_the_view_is_told_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="sparse"):
        client.embeddings.create(model=MINILM, input="a", extra_body={"outputs": ["sparse"]})
