"""text-embeddings-inference's dialect: /embed, /embed_sparse, /embed_all, /similarity, /info.
Errors: `{"error", "error_type"}`, 422 for what is invalid.

Reads and writes that dialect and nothing more. Source: huggingface.github.io/
text-embeddings-inference (its OpenAPI).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import Request, Response
from pydantic import BaseModel, Field

from api.dialects.fields import Answer, Body, Side, WholeNumber
from api.http.body import begin, off_loop, respond
from api.http.routes import Routes
from api.version import server_version
from serving.embedding import Embedded, EmbedRequest, PromptChoice, embed, read_inputs
from serving.errors import InvalidRequest
from serving.rows import check_texts
from serving.server import Server
from serving.state import Call, Serving

routes = Routes("text-embeddings-inference", "tei")


class Reading(BaseModel):
    """How texts are read."""

    truncate: bool | None = Field(default=None, description="false: a text too long is an error")
    truncation_direction: Side = Field(
        default=None, description="which end is cut off; default right"
    )
    prompt_name: str | None = Field(default=None, description="a prompt of the model, by its name")

    def wanted(self, texts: Any, field: str | None, **more: Any) -> EmbedRequest:
        """The request for these texts; `more` are fields of EmbedRequest."""
        return EmbedRequest(
            texts,
            field,
            truncate=self.truncate is not False,
            truncation_side=self.truncation_direction or "right",
            prompt=PromptChoice(self.prompt_name),
            **more,
        )


class InputsBody(Body, Reading):
    """POST /embed_sparse and /embed_all"""

    inputs: Any = Field(
        None, description="a text or a list of texts; token ids if the server accepts them"
    )


class EmbedBody(InputsBody):
    """POST /embed"""

    normalize: bool | None = Field(None, description="default true: L2")
    dimensions: WholeNumber | None = Field(
        None, description="cut vectors to this many values, from 1 to the model's"
    )


_INPUTS = {"one_text": {"inputs": "why is the sky blue?"}, "two": {"inputs": ["a", "b"]}}


@routes.post(
    "/embed",
    summary="Embed texts",
    takes=EmbedBody,
    examples=_INPUTS,
    gives=list[list[float]],
    example=[[0.0101, -0.0017, 0.0541]],
)
async def post_embed(request: Request) -> Response:
    """A vector a text, in input order."""
    call, body = await begin(request, EmbedBody)
    more = {"dimensions": body.dimensions, "normalize": body.normalize is not False}
    embedded = await _embed(call, body, "dense", **more)
    return await respond(embedded.outputs["dense"], embedded.cost)


class SparseValue(BaseModel):
    """A token id and its weight."""

    index: int
    value: float


@routes.post(
    "/embed_sparse",
    summary="Lexical weights of texts, for models that have them, such as bge-m3",
    takes=InputsBody,
    examples=_INPUTS,
    gives=list[list[SparseValue]],
    example=[[{"index": 831, "value": 0.19}]],
)
async def post_embed_sparse(request: Request) -> Response:
    """Token ids with their weights, a list a text."""
    call, body = await begin(request, InputsBody)
    embedded = await _embed(call, body, "sparse")
    texts = embedded.outputs["sparse"]
    lists = await off_loop(lambda: [_pairs(weights) for weights in texts], embedded.num_tokens)
    return await respond(lists, embedded.cost)


def _pairs(weights: dict[str, np.float32]) -> list[dict[str, Any]]:
    return [{"index": int(token_id), "value": value} for token_id, value in weights.items()]


@routes.post(
    "/embed_all",
    summary="A vector for every token",
    takes=InputsBody,
    examples=_INPUTS,
    gives=list[list[list[float]]],
    example=[[[0.0101, -0.0017, 0.0541]]],
)
async def post_embed_all(request: Request) -> Response:
    """The ColBERT vectors of a model that has them, else the last hidden states of all tokens."""
    call, body = await begin(request, InputsBody)
    recipe = (await call.serving.entry(body.model)).recipe
    output = "colbert" if recipe is not None and "colbert" in recipe.outputs else "tokens"
    embedded = await _embed(call, body, output)
    return await respond(embedded.outputs[output], embedded.cost)


async def _embed(call: Call, body: InputsBody, output: str, **more: Any) -> Embedded:
    texts, token_ids = read_inputs(body.inputs, "inputs", call.serving.settings)
    more |= {"token_ids": token_ids, "outputs": (output,), "keep_alive_s": body.keep_alive}
    wanted = body.wanted(texts, "inputs", **more)
    return await embed(call, body.model, wanted)


class SimilarityInputs(BaseModel):
    """One text and those to compare it with."""

    source_sentence: str
    sentences: list[Any]


class SimilarityBody(Body):
    """POST /similarity"""

    inputs: SimilarityInputs
    parameters: Reading | None = None


@routes.post(
    "/similarity",
    summary="Cosine similarity of one text to others",
    takes=SimilarityBody,
    examples={"two": {"inputs": {"source_sentence": "a panda", "sentences": ["a bear", "a city"]}}},
    gives=list[float],
    example=[0.81, 0.12],
)
async def post_similarity(request: Request) -> Response:
    """One number a sentence, in order."""
    call, body = await begin(request, SimilarityBody)
    source, sentences = body.inputs.source_sentence, body.inputs.sentences
    if not sentences:
        raise InvalidRequest("inputs.sentences must not be empty", "inputs")
    reading = body.parameters or Reading()
    check_texts([source], 1, "inputs.source_sentence")
    check_texts(sentences, call.serving.settings.max_inputs, "inputs.sentences")
    wanted = reading.wanted([source, *sentences], None, keep_alive_s=body.keep_alive)
    embedded = await embed(call, body.model, wanted)
    rows = embedded.outputs["dense"]
    return await respond(np.ascontiguousarray(rows[1:] @ rows[0]), embedded.cost)


class Info(Answer):
    """200 of GET /info; lengths in tokens. `model_type` has one key: embedding or reranker. Fields
    that are always null are there for clients that read them."""

    model_id: str = Field(examples=["bge-m3"])
    model_sha: str | None = Field(default=None, examples=[None])
    model_dtype: str = Field(examples=["float32"])
    model_type: dict[str, dict[str, Any]] = Field(examples=[{"embedding": {"pooling": "cls"}}])
    max_concurrent_requests: int = Field(examples=[4096])
    max_input_length: int = Field(examples=[8192])
    max_batch_tokens: int = Field(examples=[1024])
    max_batch_requests: int | None = Field(default=None, examples=[None])
    max_client_batch_size: int = Field(examples=[10000])
    auto_truncate: bool = Field(examples=[True])
    tokenization_workers: int = Field(examples=[1])
    version: str = Field(examples=["0.1.0"])
    sha: str | None = Field(default=None, examples=[None])
    docker_label: str | None = Field(default=None, examples=[None])


@routes.get(
    "/info",
    summary="The default model, as text-embeddings-inference tells it",
    gives=Info,
    example=Info.example(),
)
async def get_info(request: Request, model: str | None = None) -> Info:
    """`?model=` asks for another one."""
    server: Server = request.app.state.server
    serving = server.serving
    settings, entry = serving.settings, await serving.entry(model)
    recipe = entry.recipe
    if recipe is None:
        raise InvalidRequest(
            f"model '{entry.folder.name}' cannot be served: {entry.reason}", "model"
        )
    embedding = {"pooling": "+".join(recipe.pooling)}
    reranker = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    is_reranker = recipe.is_reranker
    return Info(
        model_id=entry.folder.name,
        model_dtype=_dtype(serving, entry.folder.name),
        model_type={"reranker": reranker} if is_reranker else {"embedding": embedding},
        max_concurrent_requests=settings.max_queue_requests,
        max_input_length=recipe.max_length,
        max_batch_tokens=settings.max_batch_tokens,
        max_client_batch_size=settings.max_inputs,
        auto_truncate=True,
        tokenization_workers=1,
        version=server_version(),
    )


def _dtype(serving: Serving, name: str) -> str:
    resident = serving.residents.get(name)
    known = resident.model.describe() if resident and resident.model else {}
    return str(known.get("dtype", "float32"))
