"""The load-time check of a reranker's scores against the stock model's own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.loaded import load_reranker
from engine import selfcheck
from engine.errors import ModelError
from engine.fitting import LoadOptions
from engine.forward import heads
from engine.forward.backbone import Backbone, Hidden
from tests.engine.conftest import CPU, Folders

CROSS_ENCODERS = ("tiny-bge-reranker", "tiny-bert-reranker")
CAUSAL = "tiny-qwen3-reranker"
DIFFERS = r"the score of check pair \d is -?\d+\.\d+, transformers' own model gives -?\d+\.\d+"


_classifier = heads.classifier


def wrong_classifier(model: Any) -> heads.ScoreHead:
    """Reads another token than the model's own head does."""
    right = _classifier(model)

    def score(hidden: Hidden) -> Tensor:
        return right(Hidden(hidden.last(), torch.ones_like(hidden.lengths)))

    return score


@pytest.mark.parametrize("layout", ["unpadded", "padded"])
@pytest.mark.parametrize("name", CROSS_ENCODERS)
def test_a_cross_encoder_with_a_wrong_head_is_refused(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch, name: str, layout: Any
) -> None:
    monkeypatch.setattr(heads, "classifier", wrong_classifier)
    with pytest.raises(ModelError, match=f"{name}: {DIFFERS}"):
        load_reranker("m", tiny_folder(name), CPU, LoadOptions(layout=layout))


def test_a_causal_reranker_with_a_wrong_head_is_refused(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = heads.yes_no
    monkeypatch.setattr(heads, "yes_no", lambda rows: right(rows.flip(0)))
    with pytest.raises(ModelError, match=DIFFERS):
        load_reranker("m", tiny_folder(CAUSAL), CPU, LoadOptions())


def test_a_head_that_raises_is_refused(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "yes_no", lambda rows: lambda hidden: hidden.states @ rows)
    with pytest.raises(ModelError, match="its score head does not fit"):
        load_reranker("m", tiny_folder(CAUSAL), CPU, LoadOptions())


def test_too_little_memory_for_the_check_is_no_fault_of_the_head(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(hidden: Hidden) -> Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(heads, "yes_no", lambda rows: allocate)
    with pytest.raises(MemoryError):
        load_reranker("m", tiny_folder(CAUSAL), CPU, LoadOptions())


@pytest.mark.parametrize("name", [*CROSS_ENCODERS, CAUSAL])
def test_a_reranker_is_served_padded_where_only_that_gives_its_scores(
    tiny_folder: Folders,
    monkeypatch: pytest.MonkeyPatch,
    project_log: pytest.LogCaptureFixture,
    name: str,
) -> None:
    right = Backbone.hidden

    def wrong(self: Backbone, batch: Any) -> tuple[Hidden, list[int]]:
        hidden, order = right(self, batch)
        if self.layout == "unpadded":  # the check of hidden states does not come by here
            hidden = Hidden(hidden.states.flip(0) + 1, hidden.lengths, hidden.index)
        return hidden, order

    monkeypatch.setattr(Backbone, "hidden", wrong)
    model = load_reranker("m", tiny_folder(name), CPU, LoadOptions())
    assert (model.layout, model.linear) == ("padded", "prepacked")
    assert re.search(f"model m is served padded: {DIFFERS}", project_log.text)


def test_a_score_of_nan_does_not_agree() -> None:
    class Model:
        def run(self, batch: Any) -> Tensor:
            return torch.tensor([torch.nan])

    said = selfcheck.check_scores(Model(), [], [0.0], "float32")  # type: ignore[arg-type]
    assert said.startswith("the score of check pair 1 is nan")
