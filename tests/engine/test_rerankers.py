"""Scores of every kind of reranker against the oracles; no logits of a whole vocabulary."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from bench.loaded import load_reranker
from bench.measure import words
from bench.random_models import SHAPES, build
from engine.fitting import LoadOptions
from engine.model import RerankingModel
from engine.text.tokens import PairLimits
from tests.engine.conftest import CPU, Folders, Rerankers, write_json
from tests.engine.oracle_scores import (
    SCORE_TOLERANCE,
    CrossOracle,
    Qwen3RerankOracle,
    SeqClsOracle,
    sigmoid,
)

ORACLES: dict[str, Callable[[Path, int], Any]] = {
    "tiny-bert-reranker": CrossOracle,
    "tiny-bge-reranker": CrossOracle,
    "tiny-bge-reranker-v2-m3": CrossOracle,
    "tiny-qwen3-reranker": Qwen3RerankOracle,
    "tiny-qwen3-reranker-untied": Qwen3RerankOracle,
    "tiny-qwen3-reranker-seq-cls": SeqClsOracle,
}
CAUSAL = [name for name in ORACLES if "qwen3" in name]
TOLERANCE = 1e-5  # of a relevance from 0 to 1
REAL_VOCABULARY = 151669
QUERIES = ["w1 w2?", "what is w3", "你好\nw4\n"]
DOCUMENTS = [
    " ",  # transformers takes "" for no second text at all, so the oracle cannot have it
    "w1",
    "w9 w8 w7 w1.",
    "Hello\nworld?\n",
    words(random.Random(1), 45),
    words(random.Random(2), 45),
    words(random.Random(3), 300),
]


@pytest.fixture(scope="module", params=list(ORACLES))
def served(
    request: pytest.FixtureRequest, tiny_folder: Folders, load_tiny_reranker: Rerankers
) -> tuple[RerankingModel, Any]:
    """Each reranker and its oracle."""
    name = request.param
    oracle = ORACLES[name](tiny_folder(name), SHAPES[name].max_length)
    return load_tiny_reranker(name), oracle


def raw(
    model: RerankingModel, pairs: list[tuple[str, str]], instruction: str | None = None
) -> list[float]:
    """All pairs in one batch."""
    batch = model.tokenize_pairs(pairs, PairLimits(model.max_length), instruction)
    scores: list[float] = model.run(batch).tolist()
    return scores


def assert_same_scores(got: list[float], wanted: list[float]) -> None:
    np.testing.assert_allclose(got, wanted, atol=SCORE_TOLERANCE)
    relevance = [sigmoid(score) for score in got]
    np.testing.assert_allclose(relevance, [sigmoid(each) for each in wanted], atol=TOLERANCE)


def test_pairs_of_several_queries_in_one_step_equal_the_oracle_pair_by_pair(
    served: tuple[RerankingModel, Any],
) -> None:
    model, oracle = served
    pairs = [*itertools.product(QUERIES, DOCUMENTS), (QUERIES[0], DOCUMENTS[1])]
    assert model.layout == "unpadded"
    assert_same_scores(raw(model, pairs), [oracle.raw(*pair) for pair in pairs])


def test_each_pair_alone_equals_the_oracle(served: tuple[RerankingModel, Any]) -> None:
    model, oracle = served
    for pair in itertools.product(QUERIES[:1], DOCUMENTS[:5]):
        assert_same_scores(raw(model, [pair]), [oracle.raw(*pair)])


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), min_size=1, max_size=10),
    seed=st.integers(0, 999),
)
def test_a_pair_alone_scores_as_in_any_batch(
    served: tuple[RerankingModel, Any], lengths: list[tuple[int, int]], seed: int
) -> None:
    model, _ = served
    rng = random.Random(seed)
    pairs = [(f"w{query} w2", words(rng, document)) for query, document in lengths]
    assert_same_scores(raw(model, pairs), [raw(model, [pair])[0] for pair in pairs])


@pytest.mark.parametrize("name", ["tiny-bert-reranker", "tiny-qwen3-reranker"])
@pytest.mark.parametrize("options", [{"layout": "padded"}, {"linear": "plain"}])
def test_padded_layout_and_plain_linear_layers_give_the_same_scores(
    load_tiny_reranker: Rerankers, name: str, options: dict[str, str]
) -> None:
    pairs = list(itertools.product(QUERIES, DOCUMENTS))
    got = raw(load_tiny_reranker(name, **options), pairs)
    assert_same_scores(got, raw(load_tiny_reranker(name), pairs))


@pytest.mark.parametrize("name", CAUSAL)
def test_another_instruction_equals_the_oracles(
    load_tiny_reranker: Rerankers, tiny_folder: Folders, name: str
) -> None:
    model, oracle = load_tiny_reranker(name), ORACLES[name](tiny_folder(name), 32768)
    pairs = list(itertools.product(QUERIES, DOCUMENTS[:4]))
    got = raw(model, pairs, "Find what contradicts it")
    wanted = [oracle.raw(*pair, "Find what contradicts it") for pair in pairs]
    assert_same_scores(got, wanted)
    assert max(abs(np.array(got) - np.array(raw(model, pairs)))) > 100 * SCORE_TOLERANCE


def test_a_reranker_that_shares_prefixes_costs_only_what_documents_add(
    load_tiny_reranker: Rerankers,
) -> None:
    model = load_tiny_reranker("tiny-qwen3-reranker")
    pairs = [("w1 w2", document) for document in ("w3", "w4 w5")]
    batch = model.tokenize_pairs(pairs, PairLimits(model.max_length))
    first, second = model.costs(batch)
    assert first == len(batch[0].ids)
    assert second < len(batch[1].ids) / 2


class Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the shape of every tensor that an operator makes, outputs left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        outputs = any(each.alias_info is not None for each in func._schema.returns)
        if not outputs:
            self.seen |= {tuple(t.shape) for t in made if isinstance(t, torch.Tensor)}
        return out

    def of(self, size: int) -> list[tuple[int, ...]]:
        return [shape for shape in self.seen if size in shape]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def real_vocabulary(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A tiny reranker with as many tokens as the published ones."""
    shape = SHAPES["tiny-qwen3-reranker"]
    sizes = {"vocab_size": REAL_VOCABULARY, "tie_word_embeddings": request.param}
    larger = dataclasses.replace(shape, sizes={**shape.sizes, **sizes})
    monkeypatch.setitem(SHAPES, "tiny-large-vocabulary", larger)
    return build("tiny-large-vocabulary", tmp_path)


@pytest.mark.parametrize("layout", ["unpadded", "padded"])
def test_logits_of_the_whole_vocabulary_are_never_made(real_vocabulary: Path, layout: Any) -> None:
    model = load_reranker("m", real_vocabulary, CPU, LoadOptions(layout=layout))
    batch = model.tokenize_pairs([("w1", "w2"), ("w1", "w3 w4")], PairLimits(32768))
    with Shapes() as shapes:
        model.run(batch)
    assert shapes.seen
    assert shapes.of(REAL_VOCABULARY) == []


def test_the_record_of_shapes_sees_stock_logits(real_vocabulary: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_vocabulary).eval()
    with Shapes() as shapes, torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert shapes.of(REAL_VOCABULARY) != []


@pytest.mark.parametrize("storage", ["sharded", "pickled", "sharded pickles"])
def test_the_output_rows_are_found_in_every_kind_of_file(
    copy_tiny: Folders, load_tiny_reranker: Rerankers, storage: str
) -> None:
    name = "tiny-qwen3-reranker-untied"
    folder = copy_tiny(name)
    reranker = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    if storage == "sharded":
        reranker.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    else:
        save_pickles(folder, reranker.state_dict(), 3 if storage == "sharded pickles" else 1)
    pairs = list(itertools.product(QUERIES, DOCUMENTS))
    got = raw(load_reranker(name, folder, CPU, LoadOptions()), pairs)
    assert_same_scores(got, raw(load_tiny_reranker(name), pairs))


def save_pickles(folder: Path, state: dict[str, torch.Tensor], num_shards: int) -> None:
    """As transformers 4 wrote them; newer versions write safetensors only."""
    if num_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = sorted(state)
    where = {name: f"pytorch_model-{i % num_shards}.bin" for i, name in enumerate(names)}
    for file in set(where.values()):
        torch.save({n: state[n] for n in names if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    write_json(folder / "pytorch_model.bin.index.json", index)
