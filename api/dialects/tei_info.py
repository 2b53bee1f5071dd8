"""GET /info, from which text-embeddings-inference's clients learn what they talk to."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from api.http import schema
from api.http.errors import BadRequest
from api.version import server_version
from batcher.budget import CANDIDATES
from serving.server import Service

_MOST = max(CANDIDATES)  # that a step budget of auto may find

router = APIRouter(tags=["text-embeddings-inference"])


class Info(BaseModel):
    """200 of GET /info; lengths in tokens. `model_type` has one key: embedding or reranker."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: dict[str, dict[str, Any]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None


_INFO = {
    "model_id": "bge-m3",
    "model_sha": None,
    "model_dtype": "float32",
    "model_type": {"embedding": {"pooling": "cls"}},
    "max_concurrent_requests": 4096,
    "max_input_length": 8192,
    "max_batch_tokens": 1024,
    "max_batch_requests": None,
    "max_client_batch_size": 10000,
    "auto_truncate": True,
    "tokenization_workers": 1,
    "version": "0.1.0",
    "sha": None,
    "docker_label": None,
}


@router.get(
    "/info",
    summary="The default model, as text-embeddings-inference tells it",
    responses=schema.gives(Info, _INFO, "tei"),
)
async def get_info(request: Request, model: str | None = None) -> Info:
    """`?model=` asks for another one."""
    service: Service = request.app.state.service
    settings = service.admit()
    entry = await service.entry(model)
    recipe = entry.recipe
    if recipe is None:
        raise BadRequest(f"model '{entry.folder.name}' cannot be served: {entry.reason}", "model")
    embedding = {"pooling": "+".join(recipe.pooling)}
    reranker = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    is_reranker = recipe.is_reranker
    return Info(
        model_id=entry.folder.name,
        model_sha=None,
        model_dtype=_dtype(service, entry.folder.name),
        model_type={"reranker": reranker} if is_reranker else {"embedding": embedding},
        max_concurrent_requests=settings.max_queue_jobs,
        max_input_length=recipe.max_length,
        max_batch_tokens=_MOST if settings.max_step_tokens == "auto" else settings.max_step_tokens,
        max_batch_requests=None,
        max_client_batch_size=settings.max_inputs,
        auto_truncate=True,
        tokenization_workers=1,
        version=server_version(),
        sha=None,
        docker_label=None,
    )


def _dtype(service: Service, name: str) -> str:
    assert service.residents is not None
    resident = service.residents.get(name)
    known = resident.model.describe() if resident and resident.model else {}
    return str(known.get("dtype", "float32"))
