"""Dify's text-embedding-inference provider: what it sends, and the answers as it reads them. It
names no model, so a reranker has a server of its own, as one that runs TEI would.

Source on GitHub: langgenius/dify, api/core/model_runtime/model_providers/huggingface_tei/
tei_helper.py, text_embedding/text_embedding.py and rerank/rerank.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.expected import (
    DOCUMENTS,
    MAX_LENGTH,
    QUERY,
    RERANKER,
    RERANKER_MAX_LENGTH,
    TEXTS,
    ExpectedScores,
    ExpectedVectors,
)
from tests.clients.raw import post
from tests.servers import Server, start_server

# More tokens than the model takes; places in bytes are not places in characters.
LONG = "天空 café 🎉 " * 10 + "word " * 400


@pytest.fixture(scope="module")
def reranker(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root: Path = tmp_path_factory.mktemp("one-reranker")
    (root / RERANKER).symlink_to(models / RERANKER)
    with start_server(EMBEDDING_MODELS_DIR=str(root), EMBEDDING_DEVICE="cpu") as running:
        yield running


def info(server: Server) -> tuple[str, int, int]:
    """Its kind, longest input, most inputs of a call."""
    with server.client() as client:
        answer = client.get("/info")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    (kind,) = told.get("model_type", {})
    return kind, told.get("max_input_length", 512), told.get("max_client_batch_size", 1)


def cut(text: str, tokens: list[dict[str, Any]], max_length: int) -> str:
    """The part of a text that Dify sends, by the places of its tokens."""
    if len(tokens) < max_length:
        return text
    num_before = next(i for i, token in enumerate(tokens) if not token["special"])
    num_after = sum(token["special"] for token in tokens) - num_before
    return text[: tokens[max_length - num_after - 20]["start"]]


def test_info_of_an_embedder_is_what_its_check_asks_for(server: Server) -> None:
    kind, max_length, max_inputs = info(server)
    assert kind == "embedding"
    assert max_length == MAX_LENGTH
    assert max_inputs >= 1000


def test_texts_are_counted_cut_by_their_tokens_places_and_embedded(
    server: Server, vectors: ExpectedVectors
) -> None:
    texts = [*TEXTS, LONG]
    tokenized = post(server, "/tokenize", {"inputs": texts})
    assert sum(map(len, tokenized[:-1])) == vectors.num_tokens(TEXTS)
    assert len(tokenized[-1]) > MAX_LENGTH, "it is not cut"
    sent = [cut(*pair, MAX_LENGTH) for pair in zip(texts, tokenized, strict=True)]
    assert sent[:-1] == TEXTS
    assert LONG.startswith(sent[-1])
    assert sent[-1].endswith("word "), "a cut between two words"
    answer = post(server, "/v1/embeddings", {"input": sent})
    vectors.check([item["embedding"] for item in answer["data"]], sent)
    assert answer["usage"]["total_tokens"] == vectors.num_tokens(sent)
    assert MAX_LENGTH - 30 < vectors.num_tokens(sent[-1:]) < MAX_LENGTH


def test_tokens_are_told_with_their_text_and_place(server: Server) -> None:
    text = "天空 café 🎉 word"
    first, *middle, last = post(server, "/tokenize", {"inputs": [text]})[0]
    assert (first["text"], first["special"]) == ("[CLS]", True)
    assert (last["text"], last["special"]) == ("[SEP]", True)
    assert first["start"] is None
    assert first["stop"] is None
    assert [text[token["start"] : token["stop"]] for token in middle][-1] == "word"
    assert all(isinstance(token["id"], int) and not token["special"] for token in middle)


def test_info_of_a_reranker_is_what_its_check_asks_for(reranker: Server) -> None:
    kind, max_length, _ = info(reranker)
    assert kind == "reranker"
    assert max_length == RERANKER_MAX_LENGTH


def test_rerank_with_texts_answers_a_bare_list(reranker: Server, scores: ExpectedScores) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS, "return_text": True}
    answer = post(reranker, "/rerank", body)
    scores.check([(item["index"], item["score"]) for item in answer])
    assert [item["text"] for item in answer] == [DOCUMENTS[item["index"]] for item in answer]
