"""The oracles against sentence-transformers where both can answer, and the tiny folders against
what is published: whoever compares the server with an oracle may trust both."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoTokenizer

from bench.random_models import SHAPES
from bench.random_parts import DENSE_SIZE, E5_PROMPTS, QWEN3_PROMPTS
from tests.engine.oracle import TOLERANCE, M3Oracle, Oracle, StOracle, lexical_score
from tests.engine.oracle_scores import (
    PREFIX,
    SCORE_TOLERANCE,
    SUFFIX,
    CrossOracle,
    Qwen3RerankOracle,
    SeqClsOracle,
)

Folders = Callable[[str], Path]

TEXTS = ["w1", "w1 w2 w3", "Hello, world!", "你好 w4 w4 W5", " ".join(f"w{i}" for i in range(90))]
DOCUMENTS = ["w1", "w2 w9 w7. ", "Hello\nworld?\n", "w5 w6 " * 20]
QUERY = "w1 w2?"
EMBEDDERS = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3", "tiny-bge-m3", "tiny-qwen3-embedding")
RERANKERS = ("tiny-bge-reranker", "tiny-bge-reranker-v2-m3", "tiny-bert-reranker")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """sentence-transformers logs by its own handlers; pytest's capture is enough."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def oracle_of(folder: Path, name: str) -> Oracle:
    return Oracle(folder, SHAPES[name].pooling, SHAPES[name].max_length)


def cross_encoder(folder: Path) -> Any:
    return CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


def predicted(model: Any, query: str, document: str) -> float:
    """sentence-transformers' raw score."""
    pair = (query, document)
    return float(model.predict(pair, activation_fn=torch.nn.Identity(), show_progress_bar=False))


def assert_apart(values: list[float]) -> None:
    assert min(np.diff(sorted(values))) > 10 * SCORE_TOLERANCE


@pytest.mark.parametrize("name", EMBEDDERS)
def test_the_oracle_agrees_with_sentence_transformers(tiny_folder: Folders, name: str) -> None:
    oracle, stock = oracle_of(tiny_folder(name), name), StOracle(tiny_folder(name))
    assert stock.model.max_seq_length == SHAPES[name].max_length
    for text in TEXTS:
        np.testing.assert_allclose(oracle.embed(text), stock.embed(text, prompt=""), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("mode", "stock_mode"),
    [
        ("cls", "cls"),
        ("mean", "mean"),
        ("max", "max"),
        ("mean_sqrt_len", "mean_sqrt_len_tokens"),
        ("weighted_mean", "weightedmean"),
        ("last", "lasttoken"),
    ],
)
def test_every_pooling_is_that_of_sentence_transformers(
    tiny_folder: Folders, mode: str, stock_mode: str
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = tiny_folder("tiny-bert")
    stock = StOracle(folder)
    stock.model[1] = Pooling(32, stock_mode)
    oracle = Oracle(folder, mode, 64)
    for text in TEXTS:
        np.testing.assert_allclose(oracle.embed(text), stock.embed(text), atol=TOLERANCE)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_vectors_of_different_texts_differ(tiny_folder: Folders, name: str) -> None:
    vectors = np.stack([oracle_of(tiny_folder(name), name).embed(text) for text in TEXTS])
    cosines = vectors @ vectors.T - np.eye(len(TEXTS))
    assert cosines.max() < 0.999


def test_dense_is_a_linear_map_of_the_pooled_vector_through_tanh(tiny_folder: Folders) -> None:
    folder = tiny_folder("tiny-dense")
    oracle, stock = Oracle(folder, "mean", 64), StOracle(folder)
    dense = stock.model[2].linear
    for text in TEXTS:
        _, hidden = oracle.hidden(text)
        wanted = torch.tanh(hidden.mean(0) @ dense.weight.T + dense.bias).detach()
        assert stock.embed(text).shape == (DENSE_SIZE,)
        np.testing.assert_allclose(stock.embed(text), wanted / wanted.norm(), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-qwen3-reranker"])
def test_files_are_those_that_sentence_transformers_saves(
    tiny_folder: Folders, tmp_path: Path, name: str
) -> None:
    folder = tiny_folder(name)
    stock = SentenceTransformer if name == "tiny-dense" else CrossEncoder
    stock(str(folder), device="cpu").save(str(tmp_path), create_model_card=False)
    saved = [path.relative_to(tmp_path) for path in tmp_path.glob("**/*.json")]
    assert Path("modules.json") in saved
    for path in saved:
        if path.parent.name or path.name in ("modules.json", "sentence_bert_config.json"):
            ours, theirs = (json.loads((root / path).read_text()) for root in (folder, tmp_path))
            assert ours == theirs, path


def test_prompts_go_before_the_text_and_take_no_part_in_pooling(tiny_folder: Folders) -> None:
    """The folder's tokenizer knows no capital letters: sentence-transformers lower-cases."""
    folder = tiny_folder("tiny-prompts")
    oracle, stock = Oracle(folder, "mean", 64), StOracle(folder)
    prompt = E5_PROMPTS["query"]
    num_prompt = len(oracle.hidden(prompt)[0]) - 1  # without [SEP]
    hidden = oracle.hidden(f"{prompt}w1 w2")[1][num_prompt:]
    wanted = hidden.mean(0) / hidden.mean(0).norm()
    for options in ({}, {"prompt_name": "query"}, {"prompt": prompt}):
        np.testing.assert_allclose(stock.embed("W1 w2", **options), wanted, atol=TOLERANCE)
    other = stock.embed("w1 w2", prompt_name="document")
    assert np.abs(other - wanted.numpy()).max() > 0.01


def test_the_published_query_prompt_of_qwen3_is_plain_text_in_front(tiny_folder: Folders) -> None:
    folder = tiny_folder("tiny-qwen3-embedding")
    oracle, stock = Oracle(folder, "last", 32768), StOracle(folder)
    wanted = oracle.embed(QWEN3_PROMPTS["query"] + QUERY)
    np.testing.assert_allclose(stock.embed(QUERY, "query"), wanted, atol=TOLERANCE)
    np.testing.assert_allclose(stock.embed(QUERY), oracle.embed(QUERY), atol=TOLERANCE)


def test_m3_drops_special_tokens_from_sparse_and_only_the_first_from_colbert(
    tiny_folder: Folders,
) -> None:
    oracle = M3Oracle(tiny_folder("tiny-bge-m3"), 8192)
    text = "w1 w2 w3 你 w3 <pad> </s> " + " ".join(f"w{i}" for i in range(40))
    ids, hidden = oracle.hidden(text)
    weights = oracle.sparse(text)
    assert {0, 1, 2, 3} <= set(ids)
    assert weights
    assert set(weights) < set(ids) - {0, 1, 2, 3}
    assert min(weights.values()) > 0
    assert oracle.colbert(text).shape == (len(ids) - 1, hidden.shape[1])
    np.testing.assert_allclose(np.linalg.norm(oracle.colbert(text), axis=1), 1, atol=TOLERANCE)


def test_m3_scores_of_a_text_with_itself_are_the_largest(tiny_folder: Folders) -> None:
    oracle = M3Oracle(tiny_folder("tiny-bge-m3"), 8192)
    text, weights = "w1 w2 w3 w4 w5 w6", oracle.sparse("w1 w2 w3 w4 w5 w6")
    assert oracle.dense_score(text, text) == pytest.approx(1, abs=TOLERANCE)
    assert oracle.colbert_score(text, text) == pytest.approx(1, abs=TOLERANCE)
    lexical = sum(weight**2 for weight in weights.values())
    assert oracle.lexical_score(text, text) == pytest.approx(lexical)
    assert oracle.hybrid_score(text, text, (0.4, 0.2, 0.4)) == pytest.approx(0.8 + 0.2 * lexical)
    assert oracle.colbert_score(text, "w7 w8") < 1
    assert oracle.lexical_score(text, "w7 w8") == 0


def test_a_lexical_score_counts_only_what_both_have() -> None:
    assert lexical_score({1: 0.5, 2: 2.0, 3: 1.0}, {2: 0.25, 3: 3.0, 4: 9.0}) == 3.5


@pytest.mark.parametrize("name", RERANKERS)
def test_raw_scores_agree_with_the_cross_encoder(tiny_folder: Folders, name: str) -> None:
    oracle = CrossOracle(tiny_folder(name), SHAPES[name].max_length)
    stock = cross_encoder(tiny_folder(name))
    raw = [oracle.raw(QUERY, document) for document in DOCUMENTS]
    wanted = [predicted(stock, QUERY, document) for document in DOCUMENTS]
    np.testing.assert_allclose(raw, wanted, atol=SCORE_TOLERANCE)
    assert_apart(raw)


def test_only_the_document_is_cut(tiny_folder: Folders) -> None:
    oracle = CrossOracle(tiny_folder("tiny-bge-reranker"), 16)
    ids = oracle.ids("w1 w2 w3", "w4 " * 50)
    assert len(ids) == 16
    assert ids[:6] == oracle.ids("w1 w2 w3", "w4")[:6]
    assert ids[-1] == 2


def test_a_causal_reranker_is_the_cross_encoder_with_its_chat_template(
    tiny_folder: Folders,
) -> None:
    name = "tiny-qwen3-reranker"
    oracle = Qwen3RerankOracle(tiny_folder(name), 32768)
    stock = cross_encoder(tiny_folder(name))
    raw = [oracle.raw(QUERY, document) for document in DOCUMENTS]
    wanted = [predicted(stock, QUERY, document) for document in DOCUMENTS]
    np.testing.assert_allclose(raw, wanted, atol=SCORE_TOLERANCE)
    assert_apart(raw)


def test_the_score_is_the_sigmoid_of_yes_minus_no(tiny_folder: Folders) -> None:
    oracle = Qwen3RerankOracle(tiny_folder("tiny-qwen3-reranker-untied"), 32768)
    raw = [oracle.raw(QUERY, document) for document in DOCUMENTS]
    scores = [oracle.score(QUERY, document) for document in DOCUMENTS]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(raw))), atol=SCORE_TOLERANCE)
    assert_apart(raw)
    assert oracle.score(QUERY, "w1", "Judge otherwise") != pytest.approx(scores[0], abs=1e-3)


def test_the_converted_reranker_reads_the_same_ids_through_its_own_head(
    tiny_folder: Folders,
) -> None:
    oracle = SeqClsOracle(tiny_folder("tiny-qwen3-reranker-seq-cls"), 32768)
    causal = Qwen3RerankOracle(tiny_folder("tiny-qwen3-reranker"), 32768)
    stock = cross_encoder(tiny_folder("tiny-qwen3-reranker-seq-cls"))
    raw = [oracle.raw(QUERY, document) for document in DOCUMENTS]
    assert_apart(raw)
    assert oracle.ids(QUERY, "w1") == causal.ids(QUERY, "w1")
    head = f"{PREFIX}<Instruct>: Given a web search query, retrieve relevant passages that answer "
    head += f"the query\n<Query>: {QUERY}\n"  # its users write the prompt into the pair's two texts
    assert raw[0] == pytest.approx(
        predicted(stock, head, f"<Document>: w1{SUFFIX}"), abs=SCORE_TOLERANCE
    )


def test_a_long_document_never_costs_the_suffix(tiny_folder: Folders) -> None:
    oracle = Qwen3RerankOracle(tiny_folder("tiny-qwen3-reranker"), 400)
    short, long = oracle.ids(QUERY, "w1"), oracle.ids(QUERY, "w1 " * 500)
    assert len(long) == 400
    assert long[:250] == short[:250]
    assert long[-10:] == short[-10:]


@pytest.mark.parametrize(
    ("name", "text", "pair"),
    [
        ("tiny-bert", 2, 3),
        ("tiny-bert-reranker", 2, 3),
        ("tiny-bge-m3", 2, 4),
        ("tiny-bge-reranker", 2, 4),
        ("tiny-qwen3-embedding", 1, 1),
        ("tiny-qwen3-reranker", 0, 0),
        ("tiny-qwen3-reranker-seq-cls", 0, 0),
    ],
)
def test_as_many_special_tokens_as_published(
    tiny_folder: Folders, name: str, text: int, pair: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(name))
    plain = len(tokenizer("w1 w2", add_special_tokens=False)["input_ids"])
    assert len(tokenizer("w1 w2")["input_ids"]) == plain + text
    assert len(tokenizer("w1 w2", "w1 w2")["input_ids"]) == 2 * plain + pair


def test_the_second_text_of_a_bert_pair_has_its_own_type(tiny_folder: Folders) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("tiny-bert-reranker"))
    assert tokenizer("w1", "w2 w3")["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_yes_and_no_are_one_token_each_and_seams_of_a_prompt_merge(tiny_folder: Folders) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("tiny-qwen3-reranker"))
    assert tokenizer.padding_side == "left"
    for word in ("yes", "no", "<|im_start|>", "<think>"):
        assert tokenizer.encode(word) == [tokenizer.convert_tokens_to_ids(word)]
    for left, right in (("w1?", "\n<Document>"), ("<Document>:", " w1")):
        whole = tokenizer.encode(left + right)
        assert len(whole) <= len(tokenizer.encode(left) + tokenizer.encode(right))
    assert tokenizer.encode("w1?\n<") != tokenizer.encode("w1?") + tokenizer.encode("\n<")


def test_weights_lie_in_the_files_that_are_published(tiny_folder: Folders) -> None:
    pickled, sharded = tiny_folder("tiny-bge-m3"), tiny_folder("tiny-qwen3-embedding")
    assert not list(pickled.glob("*.safetensors"))
    assert (pickled / "pytorch_model.bin").is_file()
    assert len(list(sharded.glob("model-0000?-of-00002.safetensors"))) == 2
    heads = torch.load(pickled / "colbert_linear.pt", weights_only=True)
    assert set(heads) == {"weight", "bias"}
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert "embed_tokens.weight" in index["weight_map"]
    assert "lm_head.weight" not in index["weight_map"]
