"""Texts, or a client's token ids, to outputs in the form that an answer carries: arrays, base64,
weights by token. From an EmbedRequest to an Embedded; dialects and the Python door only name them.

A vector is cut, then normalized, as a whole numpy array; no Python float is ever made of a value.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.outputs import Sparse
from engine.text.tokens import Side, TextLimits
from serving.errors import InvalidRequest
from serving.models.resident import Resident
from serving.rows import Cost, Work, check_num_tokens, check_prompt, check_texts, compute
from serving.state import Call
from settings import Settings

_TINY = 1e-12  # below this norm a vector is left as it is, as torch's normalize does
_JINA_TASKS = ("retrieval.query", "retrieval.passage")
_LARGE = 32_768  # numbers whose forming is worth a thread


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """What a request says of the text before its texts; at most one of the four is used, and an
    empty one is as absent. `task` is Jina's word for `input_type`; its other tasks are ignored."""

    prompt_name: str | None = None
    input_type: str | None = None
    instruction: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest for one that is too long to go before each text."""
        for name in ("prompt_name", "input_type", "instruction"):
            check_prompt(getattr(self, name), name)


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """`texts` may be anything: what is not a text is refused by `field` and index. Without a
    `field` they have been checked.

    `token_ids` are a client's own, in place of texts: nothing is put before or around them.
    `outputs` are among dense, sparse, colbert and tokens. `max_length` lowers the model's limit, in
    tokens with special ones. `dimensions` out of range is an error if `strict`, else ignored.
    """

    texts: Sequence[Any] = ()
    field: str | None = "input"
    token_ids: Sequence[Sequence[int]] | None = None
    truncate: bool = True
    truncation_side: Side = "right"
    max_length: int | None = None
    add_special_tokens: bool = True
    prompt: PromptChoice = PromptChoice()
    outputs: tuple[str, ...] = ("dense",)
    dimensions: int | None = None
    strict: bool = True
    normalize: bool = True
    as_base64: bool = False
    sparse_as_text: bool = False
    keep_alive_s: float | None = None

    @property
    def inputs(self) -> Sequence[Any]:
        return self.texts if self.token_ids is None else self.token_ids

    @property
    def computed(self) -> tuple[str, ...]:
        """What the model has to compute: the dense output comes with every forward."""
        return ("dense", *(output for output in self.outputs if output != "dense"))


@dataclass(frozen=True, slots=True)
class Embedded:
    """`outputs[output][i]` belongs to text i: a row of an array, or base64; weights by token; token
    vectors. `load_s` is what loading the model took. Without texts `cost` is None."""

    model: str
    outputs: dict[str, Any]
    cost: Cost | None
    load_s: float
    num_tokens: int = 0


async def embed(call: Call, asked: str | None, wanted: EmbedRequest) -> Embedded:
    """By the model asked for. Without texts it is loaded and nothing computed.

    Raises NotFound, InvalidRequest, what `Call.lease` and `compute` raise, and the engine's errors
    about texts. What the model's files say suffices to refuse is refused before it is loaded.
    """
    serving, is_empty = call.serving, not wanted.inputs
    folder = await serving.find(asked)
    if wanted.token_ids is None and wanted.field is not None:
        check_texts(wanted.texts, serving.settings.max_inputs, wanted.field)
    if not is_empty and serving.residents.get(folder.name) is None:
        recipe = (await asyncio.to_thread(serving.catalog.entry, folder)).recipe
        if recipe is not None:
            check_embeds(folder.name, recipe, wanted)
            recipe.prompts.choose(*_given(wanted.prompt))
    async with call.lease(folder, wanted.keep_alive_s) as resident:
        outputs: dict[str, Any] = {output: [] for output in wanted.outputs}
        cost = None
        if not is_empty:
            outputs, cost = await _embed(call, resident, wanted)
        num_tokens = cost.num_tokens if cost else 0
        return Embedded(asked or folder.name, outputs, cost, resident.load_s, num_tokens)


async def _embed(
    call: Call, resident: Resident, wanted: EmbedRequest
) -> tuple[dict[str, Any], Cost]:
    model: Any = resident.model
    check_embeds(model.name, model, wanted)
    computed = wanted.computed
    work = tokenizing(model, wanted, _given(wanted.prompt))
    rows, cost = await compute(call, resident, [work], computed)

    def form() -> dict[str, Any]:
        return {output: _FORMS[output](rows, wanted, model) for output in wanted.outputs}

    if "sparse" in wanted.outputs and wanted.sparse_as_text:  # it asks the tokenizer
        return await call.serving.tokenizer.run(form), cost
    num_values = len(rows) * model.dim
    if "colbert" in wanted.outputs or "tokens" in wanted.outputs:
        num_values += cost.num_tokens * model.dim
    return await asyncio.to_thread(form) if num_values > _LARGE else form(), cost


def read_inputs(
    value: Any, field: str, settings: Settings
) -> tuple[Sequence[Any], Sequence[Sequence[int]] | None]:
    """Texts, or else token ids: of a string, a list of strings, a list of ids, or a list of those.

    Raises InvalidRequest. The texts are still to be checked.
    """
    if isinstance(value, str):
        value = [value]
    if value is None or value == []:
        raise InvalidRequest(f"{field} must not be empty", field)
    if not isinstance(value, list):
        raise InvalidRequest(f"invalid input type: {field} must be a string or a list", field)
    if type(value[0]) is int:  # and no bool
        value = [value]
    if not isinstance(value[0], list):
        return value, None
    if settings.token_ids == "reject":
        raise InvalidRequest(_REFUSAL.format(field=field), field)
    return (), read_id_lists(value, field, settings)


def read_id_lists(value: list[Any], field: str, settings: Settings) -> list[list[int]]:
    """Lists of ids, or one list of them. Raises InvalidRequest naming the limit or the index."""
    max_inputs = settings.max_inputs
    if not value or not isinstance(value[0], list):
        value = [value]
    if len(value) > max_inputs:
        raise InvalidRequest(
            f"{field} has {len(value)} lists of token ids, the limit is {max_inputs} (max_inputs)",
            field,
        )
    check_num_tokens(sum(len(ids) for ids in value if isinstance(ids, list)), settings)
    for index, ids in enumerate(value):
        if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
            raise InvalidRequest(
                f"invalid input type: {field}[{index}] is not a list of token ids", field
            )
    return value


_REFUSAL = (
    "{field} holds token ids, which this server refuses: the client has most likely used another "
    "model's tokenizer. Send texts; with LangChain's OpenAIEmbeddings set "
    "check_embedding_ctx_length=False. EMBEDDING_TOKEN_IDS=accept takes ids as they are"
)


def check_embeds(name: str, there: Any, wanted: EmbedRequest) -> None:
    """`there` is a model or a recipe. Raises InvalidRequest for a reranker, an output or a width
    that is not there, or a prompt for token ids."""
    if there.is_reranker:
        message = f"model '{name}' is a reranker: it scores pairs and has no vectors"
        raise InvalidRequest(message, "model")
    missing = [output for output in wanted.outputs if output not in (*there.outputs, "tokens")]
    if missing:
        message = f"model '{name}' has no {missing[0]} output; it has: {', '.join(there.outputs)}"
        raise InvalidRequest(message, "outputs")
    size = wanted.dimensions
    if wanted.strict and size is not None and not 1 <= size <= there.dim:
        raise InvalidRequest(f"dimensions must be 1 to {there.dim}, not {size}", "dimensions")
    given = zip(("prompt_name", "input_type", "instruction"), _given(wanted.prompt), strict=True)
    for field, value in given:
        if wanted.token_ids is not None and value is not None:
            message = f"{field}: token ids take no prompt; send text to have one"
            raise InvalidRequest(message, field)


def _given(prompt: PromptChoice) -> tuple[str | None, str | None, str | None]:
    task = prompt.task if prompt.task in _JINA_TASKS else None
    return prompt.prompt_name or None, prompt.input_type or task, prompt.instruction or None


def tokenizing(
    model: Any,
    wanted: EmbedRequest,
    prompt: tuple[str | None, str | None, str | None],
    max_tokens: int | None = None,
) -> Work:
    """The inputs, and how parts of them become tokens. `prompt` is a name, an input type and an
    instruction, of which the model makes what goes before each text."""
    inputs, outputs, is_text = wanted.inputs, wanted.computed, wanted.token_ids is None
    limits = TextLimits(
        max_length=min(n for n in (wanted.max_length, max_tokens, model.max_length) if n),
        truncate=wanted.truncate or max_tokens is not None,
        side=wanted.truncation_side,
        add_special_tokens=wanted.add_special_tokens,
    )

    before = model.prompt(*prompt)

    def tokenize(part: list[Any], first: int) -> Sequence[Any]:
        tokens: Sequence[Any]
        if is_text:
            tokens = model.tokenize(part, limits, before, outputs, first)
        else:
            tokens = model.tokens_of(part, limits, outputs, first)
        return tokens

    return Work(inputs, tokenize, len(before) if is_text else 0)


def _dense(rows: list[Any], wanted: EmbedRequest, model: Any) -> Any:
    in_range = wanted.dimensions if 1 <= (wanted.dimensions or 0) <= model.dim else None
    vectors = finish(np.stack([row.dense for row in rows]), in_range, wanted.normalize)
    return to_base64(vectors) if wanted.as_base64 else vectors


def _sparse(rows: list[Any], wanted: EmbedRequest, model: Any) -> list[Any]:
    texts_of = model.token_texts if wanted.sparse_as_text else None
    return [to_weights(row.sparse, texts_of) for row in rows if row.sparse is not None]


def _colbert(rows: list[Any], wanted: EmbedRequest, model: Any) -> list[Any]:
    matrices = [row.colbert for row in rows if row.colbert is not None]
    return [to_base64(matrix) for matrix in matrices] if wanted.as_base64 else matrices


def _tokens(rows: list[Any], wanted: EmbedRequest, model: Any) -> list[Any]:
    return [row.tokens for row in rows]


_FORMS = {"dense": _dense, "sparse": _sparse, "colbert": _colbert, "tokens": _tokens}


def finish(
    rows: NDArray[np.float32], dimensions: int | None = None, normalize: bool = True
) -> NDArray[np.float32]:
    """`[n, dim]` float32 -> `[n, dimensions]`: cut first, then L2 over what is left."""
    cut = rows[:, :dimensions]
    if normalize and len(cut) == 1:  # a query's: half the calls, which are cold after a forward
        wide = cut[0].astype(np.float64)
        cut = cut / np.float32(max(math.sqrt(wide @ wide), _TINY))
    elif normalize:
        norms = np.sqrt(np.einsum("nd,nd->n", cut, cut, dtype=np.float64))
        cut = cut / np.maximum(norms, _TINY)[:, None].astype(np.float32)
    return np.ascontiguousarray(cut, dtype=np.float32)


def to_base64(rows: NDArray[np.float32]) -> list[str]:
    """Each row's little-endian float32 bytes."""
    little = rows.astype("<f4", copy=False)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little]


def to_weights(
    sparse: Sparse, texts_of: Callable[[Sequence[int]], list[str]] | None = None
) -> dict[str, np.float32]:
    """`{token id: weight}`, or by the tokens' texts; of equal texts the largest weight counts."""
    if texts_of is None:
        return dict(zip(map(str, sparse.token_ids.tolist()), sparse.weights, strict=True))
    texts = texts_of(sparse.token_ids.tolist())
    weights: dict[str, np.float32] = {}
    for text, weight in zip(texts, sparse.weights, strict=True):
        weights[text] = max(weight, weights.get(text, weight))
    return weights
