"""POST /tokenize, as text-embeddings-inference (`inputs`) and vLLM (`prompt`) have it, and /decode.

No forward runs; a model that is not in memory is loaded for its tokenizer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import BaseModel, Field, WithJsonSchema

from api.dialects.fields import Body
from api.http.body import begin, check, dumps, read_object, respond, respond_with
from api.http.errors import speaks
from api.http.routes import Routes
from engine.text.tokens import Token
from serving.embedding import read_id_lists
from serving.errors import InvalidRequest
from serving.rows import Cost, check_num_tokens, check_texts
from serving.state import Call
from settings import Settings

routes = Routes("Tokens", "tei")

_MAX_CHARS = 1_000_000  # of one text: what the one tokenizer thread does in some 0.2 s
_MAX_IDS = 262_144  # of one list, likewise: eight times what the longest models read


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


@routes.post(
    "/tokenize",
    openai=["/v1/tokenize"],
    summary="Token ids of texts",
    takes=TokenizeBody,
    examples={
        "as_tei": {"inputs": ["why is the sky blue?", "hello"]},
        "as_vllm": {"prompt": "why is the sky blue?"},
    },
    gives=list[list[SpelledToken]] | PromptTokens,
    example=_SPELLED,
)
async def post_tokenize(request: Request) -> Response:
    """With `inputs` as text-embeddings-inference answers, with `prompt` as vLLM does."""
    call: Call = request.scope["state"]["call"]
    value = await read_object(request)
    if value.get("prompt") is not None:
        speaks(request, "openai")
        if value.get("inputs") is not None:
            raise InvalidRequest("give inputs or prompt, not both", "prompt")
        return await _tokenize_prompt(call, check(value, PromptBody))
    speaks(request, "tei")
    body = check(value, TokenizeBody)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not isinstance(texts, list) or not texts:
        raise InvalidRequest("give inputs, a text or a list of texts, or prompt, a text", "inputs")
    _check_lengths(texts, call.serving.settings, "inputs")
    async with call.lease(await call.serving.find(body.model), body.keep_alive) as resident:
        start = time.perf_counter()
        prompt = _prompt(resident.model, body.prompt_name)
        with_special = body.add_special_tokens is not False
        written: list[bytes] = []
        async for part in _spell(call, resident.model, texts, with_special, prompt):
            written += await asyncio.to_thread(_write, part)
        cost = _cost(start)
        answer = await asyncio.to_thread(lambda: b"[" + b",".join(written) + b"]")
    return respond_with(answer, cost)


async def _tokenize_prompt(call: Call, body: PromptBody) -> Response:
    _check_lengths([body.prompt], call.serving.settings, "prompt")
    async with call.lease(await call.serving.find(body.model), body.keep_alive) as resident:
        start, model = time.perf_counter(), resident.model
        with_special = body.add_special_tokens is not False
        parts = _spell(call, model, [body.prompt], with_special)
        tokens = [token async for part in parts for each in part for token in each]
        max_length, cost = resident.model.max_length, _cost(start)
    ids = [token.id for token in tokens]
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": max_length, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [token.text for token in tokens]
    return await respond(answer, cost)


def _cost(start: float) -> Cost:
    """No forward runs."""
    return Cost(tokenization_ms=(time.perf_counter() - start) * 1e3)


def _check_lengths(texts: list[Any], settings: Settings, field: str) -> None:
    check_texts(texts, settings.max_inputs, field)
    for index, text in enumerate(texts):
        if len(text) > _MAX_CHARS:
            raise InvalidRequest(
                f"{field}[{index}] has {len(text)} characters, the limit is {_MAX_CHARS}", field
            )


def _prompt(model: Any, prompt_name: str | None) -> str:
    if not prompt_name:
        return ""
    if model.is_reranker:
        raise InvalidRequest(f"prompt_name: model '{model.name}' is a reranker", "prompt_name")
    prompt: str = model.prompt(prompt_name, None, None)
    return prompt


async def _spell(
    call: Call, model: Any, texts: Sequence[str], add_special_tokens: bool, prompt: str = ""
) -> AsyncIterator[Sequence[list[Token]]]:
    """Part after part, so that a bulk request lets a query pass; each text's tokens, which count
    as those of any request do."""

    def spell(part: list[str], first: int) -> list[list[Token]]:
        return [model.spell(text, add_special_tokens, prompt) for text in part]

    num_tokens = 0
    async for part in call.serving.tokenizer.in_parts(texts, spell, len(prompt)):
        num_tokens += sum(map(len, part))
        check_num_tokens(num_tokens, call.serving.settings)
        call.reservation.reserve(num_tokens)
        yield part


def _write(texts: Sequence[list[Token]]) -> list[bytes]:
    """Each text's part of the answer: its JSON takes a tenth of the memory of its tokens."""
    return [dumps(tokens) for tokens in texts]


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


@routes.post(
    "/decode",
    summary="Token ids to text",
    takes=DecodeBody,
    examples={"one": {"ids": [101, 102]}, "two": {"ids": [[101], [102]]}},
    gives=list[str],
    example=["hello"],
)
async def post_decode(request: Request) -> Response:
    """A text for each list of ids."""
    call, body = await begin(request, DecodeBody)
    lists = read_id_lists(body.ids, "ids", call.serving.settings)
    for index, ids in enumerate(lists):
        if len(ids) > _MAX_IDS:
            message = f"ids[{index}] has {len(ids)} token ids, the limit is {_MAX_IDS}"
            raise InvalidRequest(message, "ids")
    call.reservation.reserve(sum(map(len, lists)))
    skip = body.skip_special_tokens is not False
    async with call.lease(await call.serving.find(body.model), body.keep_alive) as resident:
        start, model = time.perf_counter(), resident.model
        texts: list[str] = []

        def decode(part: list[list[int]], first: int) -> list[str]:
            return [model.decode(ids, skip, i) for i, ids in enumerate(part, first)]

        async for part in call.serving.tokenizer.in_parts(lists, decode):
            texts += part
        cost = _cost(start)
    return await respond(texts, cost)
