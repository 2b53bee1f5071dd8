"""A model of the kind that a benchmark or a test needs, loaded as the server loads it."""

from __future__ import annotations

from pathlib import Path

from engine.devices import Device
from engine.errors import ModelError
from engine.fitting import LoadOptions
from engine.loading import load_model
from engine.model import EmbeddingModel, RerankingModel


def load_embedder(name: str, folder: Path, device: Device, options: LoadOptions) -> EmbeddingModel:
    model = load_model(name, folder, device, options)
    if not isinstance(model, EmbeddingModel):
        raise ModelError(f"{folder}: a reranker has no vectors")
    return model


def load_reranker(name: str, folder: Path, device: Device, options: LoadOptions) -> RerankingModel:
    model = load_model(name, folder, device, options)
    if not isinstance(model, RerankingModel):
        raise ModelError(f"{folder}: not a reranker")
    return model
