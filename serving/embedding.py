"""Texts to views in the form that an answer carries, for every dialect that embeds.

From a request whose body has been read to arrays, weights and base64; the dialects only name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from api.http.errors import BadRequest
from api.http.writing import off_loop
from engine.store import ModelFolder
from serving import vectors
from serving.server import Service, Serving
from serving.texts import Cost, Embedded, EmbedRequest, check_before_loading, embed


@dataclass(frozen=True, slots=True)
class Form:
    """How views are wanted. `dimensions` out of range is an error if `strict`, else ignored."""

    outputs: tuple[str, ...] = ("dense",)
    as_base64: bool = False
    dimensions: int | None = None
    strict: bool = True
    sparse_as_text: bool = False
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """`views[output][i]` belongs to text i: a row of an array, or base64; weights by token; token
    vectors. `load_s` is what loading the model took."""

    views: dict[str, Any]
    cost: Cost | None
    load_s: float

    @property
    def num_tokens(self) -> int:
        return self.cost.num_tokens if self.cost else 0

    def headers(self) -> dict[str, str]:
        return self.cost.headers() if self.cost else {}


def outputs_of(asked: Sequence[str] | None) -> tuple[str, ...]:
    """Each once, in the order asked; dense alone by default."""
    return tuple(dict.fromkeys(asked or ["dense"]))


def views_of(outputs: Sequence[str]) -> tuple[str, ...]:
    """What the model has to compute: the dense one comes with every forward."""
    return ("dense", *(view for view in outputs if view != "dense"))


async def embed_views(
    service: Service,
    request: Request,
    folder: ModelFolder,
    wanted: EmbedRequest,
    form: Form,
    keep_alive_s: float | None = None,
) -> Answered:
    """Without texts the model is loaded and nothing computed. Raises what serving/texts.py does."""
    is_empty = not wanted.texts and wanted.token_ids is None
    if not is_empty and (recipe := await service.recipe_before_loading(folder)):
        check_before_loading(folder.name, recipe, wanted)
        _check_dimensions(form, recipe.dim)
    async with service.lease(request, folder, keep_alive_s) as serving:
        load_s = serving.resident.load_s
        if is_empty:
            return Answered({view: [] for view in form.outputs}, None, load_s)
        if not serving.model.is_reranker:
            _check_dimensions(form, serving.model.dim)
        embedded = await embed(service, serving, wanted)
        return Answered(await _formed(service, serving, embedded, form), embedded.cost, load_s)


def _check_dimensions(form: Form, dim: int) -> None:
    wanted = form.dimensions
    if form.strict and wanted is not None and not 1 <= wanted <= dim:
        raise BadRequest(f"dimensions must be 1 to {dim}, not {wanted}", "dimensions")


async def _formed(
    service: Service, serving: Serving, embedded: Embedded, form: Form
) -> dict[str, Any]:
    model = serving.model
    num_values = len(embedded.views) * model.dim
    if "colbert" in form.outputs or "tokens" in form.outputs:
        num_values += embedded.cost.num_tokens * model.dim

    def make() -> dict[str, Any]:
        return {view: _MAKERS[view](embedded, form, model) for view in form.outputs}

    if "sparse" in form.outputs and form.sparse_as_text:  # only that thread may ask a tokenizer
        return await service.on_tokenizer_thread(make)
    return await off_loop(make, num_values)


def _dense(embedded: Embedded, form: Form, model: Any) -> Any:
    in_range = form.dimensions if 1 <= (form.dimensions or 0) <= model.dim else None
    rows = vectors.finish(embedded.rows, in_range, form.normalize)
    return vectors.to_base64(rows) if form.as_base64 else rows


def _sparse(embedded: Embedded, form: Form, model: Any) -> list[Any]:
    texts_of = model.token_texts if form.sparse_as_text else None
    sparse = (view.sparse for view in embedded.views if view.sparse is not None)
    return [vectors.to_weights(weights, texts_of) for weights in sparse]


def _colbert(embedded: Embedded, form: Form, model: Any) -> list[Any]:
    matrices = [view.colbert for view in embedded.views if view.colbert is not None]
    return [vectors.to_base64(m) for m in matrices] if form.as_base64 else matrices


def _tokens(embedded: Embedded, form: Form, model: Any) -> list[Any]:
    return [view.tokens for view in embedded.views]


_MAKERS = {"dense": _dense, "sparse": _sparse, "colbert": _colbert, "tokens": _tokens}
