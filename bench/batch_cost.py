"""What the scheduler's batches cost on this machine with a real model: seconds by tokens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from batcher.scheduler import Scheduler
from bench import measure
from bench.loaded import load_embedder
from bench.random_models import SHAPES, build
from bench.simulated_worker import CostModel
from engine.cpus import count_cpus
from engine.devices import CPU
from engine.fitting import LoadOptions
from engine.model import EmbeddingModel
from engine.text.tokens import TextLimits, Tokens

_MODELS = Path("bench/models")
_PARTS_OF_A_LAYER = 3  # an encoder's: attention and the two halves of the feed-forward
_BUDGETS = (16, 64, 256, 1024, 2048)


class FullBatches:
    """Batches of any budget, as full as the scheduler makes them, of texts that never run out.

    Lengths are lognormal around `mean_tokens`.
    """

    def __init__(self, model: EmbeddingModel, mean_tokens: int = 100) -> None:
        texts = measure.lognormal_texts(400, mean_tokens)
        self._tokens = model.tokenize(texts, TextLimits(model.max_length))
        self._costs = model.costs(self._tokens)
        self._scheduler = Scheduler()

    def next(self, budget: int) -> list[Tokens]:
        while self._scheduler.num_waiting_tokens <= 2 * budget:
            self._scheduler.add("job", "model", self._costs)
        batch = self._scheduler.take(budget)
        assert batch is not None
        return [self._tokens[index] for _, index in batch.members]


def load(model_name: str) -> EmbeddingModel:
    torch.set_num_threads(count_cpus())
    return load_embedder(model_name, build(model_name, _MODELS), CPU, LoadOptions())


def timed(model: EmbeddingModel, batch: Sequence[Tokens]) -> tuple[int, float]:
    """Tokens and seconds of a batch."""
    return sum(len(t.ids) for t in batch), measure.seconds(lambda: model.run(batch))


def measured(model_name: str, num_rounds: int = 9) -> CostModel:
    """A line through the medians of interleaved rounds, each weighed by its own size."""
    model = load(model_name)
    short, usual = FullBatches(model, mean_tokens=12), FullBatches(model)
    found: dict[int, list[tuple[int, float]]] = {budget: [] for budget in _BUDGETS}
    for _ in range(num_rounds + 1):
        for budget, batches in found.items():
            batches.append(timed(model, (short if budget < 256 else usual).next(budget)))
    tokens, seconds = (
        np.array(
            [statistics.median(batch[i] for batch in batches[1:]) for batches in found.values()]
        )
        for i in (0, 1)
    )
    token_s, fixed_s = np.polyfit(tokens, seconds, 1, w=1 / seconds)
    num_layers = int(SHAPES[model_name].sizes["num_hidden_layers"])
    return CostModel(
        model_name,
        round(max(0.0, float(fixed_s)), 5),
        round(float(token_s), 7),
        _PARTS_OF_A_LAYER * num_layers,
    )
