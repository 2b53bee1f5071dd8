"""POST /tokenize, as text-embeddings-inference (`inputs`) and vLLM (`prompt`) have it, and /decode.

No forward runs; a model that is not in memory is loaded for its tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, WithJsonSchema

from api.dialects.fields import Body
from api.dialects.inputs import read_id_lists
from api.http import schema, writing
from api.http.body import check, read_object, read_request
from api.http.dialects import speaks
from api.http.errors import BadRequest
from serving.server import Service, Serving
from serving.texts import check_texts
from settings import Settings

router = APIRouter(tags=["Tokens"])

_MAX_CHARS = 1_000_000  # of one text: what the one tokenizer thread does in some 0.2 s


class TokenizeBody(Body):
    """POST /tokenize with `inputs`"""

    inputs: Any = Field(None, description="a text or a list of texts")
    add_special_tokens: bool | None = Field(None, description="default true")
    prompt_name: str | None = Field(None, description="a prompt of the model, by its name")


class PromptBody(Body):
    """POST /tokenize with `prompt`"""

    prompt: str
    add_special_tokens: bool | None = Field(None, description="default true")
    return_token_strs: bool | None = Field(None, description="the tokens' texts too")


class SpelledToken(BaseModel):
    """`start` and `stop` count characters of the text; special tokens have none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class PromptTokens(BaseModel):
    """200 of POST /tokenize with `prompt`"""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


_SPELLED = [[{"id": 23, "text": "hello", "special": False, "start": 0, "stop": 5}]]


@router.post("/v1/tokenize", include_in_schema=False)
@router.post(
    "/tokenize",
    summary="Token ids of texts",
    responses=schema.gives(list[list[SpelledToken]] | PromptTokens, _SPELLED, "tei"),
    openapi_extra=schema.takes(
        TokenizeBody,
        as_tei={"inputs": ["why is the sky blue?", "hello"]},
        as_vllm={"prompt": "why is the sky blue?"},
    ),
)
async def post_tokenize(request: Request) -> Response:
    """With `inputs` as text-embeddings-inference answers, with `prompt` as vLLM does."""
    service: Service = request.app.state.service
    settings = service.admit()
    value = await read_object(request, settings.max_body_bytes)
    if value.get("prompt") is not None:
        speaks(request, "openai")
        if value.get("inputs") is not None:
            raise BadRequest("give inputs or prompt, not both", "prompt")
        return await _tokenize_prompt(request, service, check(value, PromptBody))
    speaks(request, "tei")
    body = check(value, TokenizeBody)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not isinstance(texts, list) or not texts:
        raise BadRequest("give inputs, a text or a list of texts, or prompt, a text", "inputs")
    _check_lengths(texts, settings, "inputs")
    async with service.lease(request, service.find(body.model), body.keep_alive) as serving:
        start = time.perf_counter()
        prompt = _prompt(serving, body.prompt_name)
        with_special = body.add_special_tokens is not False
        spelled = await _spell(service, serving, texts, with_special, prompt)
        headers = _headers(start)
    return Response(await writing.write(spelled), 200, headers, "application/json")


async def _tokenize_prompt(request: Request, service: Service, body: PromptBody) -> Response:
    assert service.settings is not None
    _check_lengths([body.prompt], service.settings, "prompt")
    async with service.lease(request, service.find(body.model), body.keep_alive) as serving:
        start = time.perf_counter()
        with_special = body.add_special_tokens is not False
        (tokens,) = await _spell(service, serving, [body.prompt], with_special)
        max_length, headers = serving.model.max_length, _headers(start)
    ids = [token["id"] for token in tokens]
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": max_length, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [token["text"] for token in tokens]
    return Response(await writing.write(answer), 200, headers, "application/json")


def _headers(start: float) -> dict[str, str]:
    """No forward runs, so there is no queue."""
    taken_ms = (time.perf_counter() - start) * 1e3
    return {"x-tokenization-time": f"{taken_ms:.2f}", "x-compute-tokens": "0"}


def _check_lengths(texts: list[Any], settings: Settings, field: str) -> None:
    check_texts(texts, settings.max_inputs, field)
    for index, text in enumerate(texts):
        if len(text) > _MAX_CHARS:
            raise BadRequest(
                f"{field}[{index}] has {len(text)} characters, the limit is {_MAX_CHARS}", field
            )


def _prompt(serving: Serving, prompt_name: str | None) -> str:
    if not prompt_name:
        return ""
    if serving.model.is_reranker:
        raise BadRequest(f"prompt_name: model '{serving.model.name}' is a reranker", "prompt_name")
    prompt: str = serving.model.prompt(prompt_name, None, None)
    return prompt


async def _spell(
    service: Service,
    serving: Serving,
    texts: Sequence[str],
    add_special_tokens: bool,
    prompt: str = "",
) -> list[list[dict[str, Any]]]:
    """Part after part, so that a bulk request lets a query pass."""

    def spell(text: str) -> list[dict[str, Any]]:
        tokens = serving.model.spell(text, add_special_tokens, prompt)
        return [
            {"id": t.id, "text": t.text, "special": t.special, "start": t.start, "stop": t.stop}
            for t in tokens
        ]

    spelled: list[list[dict[str, Any]]] = []
    async for part in service.in_parts(texts, lambda part, _: [spell(text) for text in part]):
        spelled += part
    return spelled


# Described, not checked, by pydantic: it would name each bad id of a million.
_ID_LIST = {"type": "array", "items": {"type": "integer"}}
_IDS = {
    "anyOf": [_ID_LIST, {"type": "array", "items": _ID_LIST}],
    "description": "one list or more",
}


class DecodeBody(Body):
    """POST /decode"""

    ids: Annotated[list[Any], WithJsonSchema(_IDS)]
    skip_special_tokens: bool | None = Field(None, description="default true")


@router.post(
    "/decode",
    summary="Token ids to text",
    responses=schema.gives(list[str], ["hello"], "tei"),
    openapi_extra=schema.takes(DecodeBody, one={"ids": [101, 102]}, two={"ids": [[101], [102]]}),
)
async def post_decode(request: Request) -> Response:
    """A text for each list of ids."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, DecodeBody, settings.max_body_bytes)
    lists = read_id_lists(body.ids, "ids", settings.max_inputs)
    skip = body.skip_special_tokens is not False
    async with service.lease(request, service.find(body.model), body.keep_alive) as serving:
        start = time.perf_counter()
        model = serving.model
        texts: list[str] = []

        def decode(part: list[list[int]], first: int) -> list[str]:
            return [model.decode(ids, skip, i) for i, ids in enumerate(part, first)]

        async for part in service.in_parts(lists, decode):
            texts += part
        headers = _headers(start)
    return Response(await writing.write(texts), 200, headers, "application/json")
