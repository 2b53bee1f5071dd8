"""Fields that more than one dialect takes, each checked and described once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from engine.outputs import Weights
from serving.errors import InvalidRequest
from settings import Settings, parse_keep_alive

_MAX_OUTPUTS = 16


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _as_short_list(value: Any) -> Any:
    """Each once, in the order asked."""
    if isinstance(value, list) and len(value) > _MAX_OUTPUTS:  # or each bad one would be named
        raise ValueError(f"must name at most {_MAX_OUTPUTS} outputs")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(dict.fromkeys(value))
    return [value] if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _read_limit(value: Any) -> Any:
    """-1 is as absent: the model's own."""
    value = _refuse_boolean(value)
    if value == -1:
        return None
    if isinstance(value, int) and value < 1:
        raise ValueError(f"must be -1 or at least 1, not {value}")
    return value


WholeNumber = Annotated[int, BeforeValidator(_refuse_boolean)]
Output = Literal["dense", "sparse", "colbert"]
Outputs = Annotated[
    list[Output] | None,
    BeforeValidator(_as_short_list),
    Field(description="outputs wanted of the one forward; default dense alone"),
]
Side = Annotated[Literal["left", "right"] | None, BeforeValidator(_lower)]
KeepAlive = Annotated[
    float | None,
    BeforeValidator(parse_keep_alive),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}),
    Field(
        description="how long the model stays after this request: seconds or a Go duration, "
        "negative for ever, 0 not at all; a model of EMBEDDING_MODEL always stays"
    ),
]
EncodingFormat = Annotated[
    Literal["float", "base64"] | None,
    Field(description="base64: each vector's little-endian float32 bytes"),
]


class Body(BaseModel):
    """A request's body. What a dialect does not know is ignored; null is as absent."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(None, description="the default model when absent")
    keep_alive: KeepAlive = None


class PromptFields(BaseModel):
    """What is put before a text; at most one of the three has an effect."""

    prompt_name: str | None = Field(None, description="a prompt of the model, by its name")
    input_type: str | None = Field(
        None, description="query, document, search_query, search_document, …: the model's prompt"
    )
    task: str | None = Field(None, description="Jina's word for it; other tasks are ignored")
    instruction: str | None = Field(
        None, description="a task for queries, in the model's own frame where it has one"
    )


class TruncateFields(BaseModel):
    """How vLLM's and OpenAI-like clients say where a text is cut."""

    truncate: bool | None = Field(None, description="false: a text too long is an error")
    truncate_prompt_tokens: Annotated[int | None, BeforeValidator(_read_limit)] = Field(
        None, description="longest text or pair in tokens; -1: the model's limit"
    )
    truncation_side: Side = Field(
        None, description="which end of a text too long is cut off; default right"
    )


_MAX_WEIGHT = 1e6


class OutputWeights(BaseModel):
    """How much each output of an embedder counts; a hybrid score is their weighted mean."""

    model_config = ConfigDict(extra="forbid")
    dense: Annotated[float, Field(ge=0, le=_MAX_WEIGHT, allow_inf_nan=False)] = 0.0
    sparse: Annotated[float, Field(ge=0, le=_MAX_WEIGHT, allow_inf_nan=False)] = 0.0
    colbert: Annotated[float, Field(ge=0, le=_MAX_WEIGHT, allow_inf_nan=False)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_names(cls, value: Any) -> Any:
        """Each of a few is named, a million are not."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            raise ValueError("knows dense, sparse and colbert only")
        return value


class RelevanceBody(Body, TruncateFields):
    """What /rerank and /score both take."""

    instruction: str | None = Field(None, description="the task, for models that take one")
    raw_scores: bool | None = Field(None, description="true: no sigmoid")
    use_activation: bool | None = Field(None, description="false: no sigmoid")
    weights: OutputWeights | None = Field(
        None, description="for an embedder with several outputs, such as bge-m3: hybrid score"
    )

    def is_raw(self) -> bool:
        return bool(self.raw_scores) or self.use_activation is False

    def output_weights(self) -> Weights | None:
        if self.weights is None:
            return None
        weights = Weights(self.weights.dense, self.weights.sparse, self.weights.colbert)
        if weights.dense + weights.sparse + weights.colbert == 0:
            raise InvalidRequest("weights: at least one of dense, sparse, colbert must be above 0")
        return weights


def text_of(item: Any, field: str) -> Any:
    """A text, or an object's `text`; what is not a text is refused where the texts are checked."""
    if isinstance(item, dict) and "text" not in item:
        raise InvalidRequest(f'{field}: each is a text, or an object with "text"', field)
    return item["text"] if isinstance(item, dict) else item


class Usage(BaseModel):
    """Tokens of all texts or pairs, special ones included."""

    prompt_tokens: int
    total_tokens: int


def usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


@dataclass(frozen=True, slots=True)
class Inputs:
    """Either texts, or one list of ids each."""

    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.texts if self.token_ids is None else self.token_ids)


def read_inputs(value: Any, field: str, settings: Settings) -> Inputs:
    """A string, a list of strings, a list of ids, or a list of those. Raises 400."""
    if isinstance(value, str):
        value = [value]
    if value is None or value == []:
        raise InvalidRequest(f"{field} must not be empty", field)
    if not isinstance(value, list):
        raise InvalidRequest(f"invalid input type: {field} must be a string or a list", field)
    if _is_id(value[0]):
        value = [value]
    if not isinstance(value[0], list):
        return Inputs(value)
    if settings.token_ids == "reject":
        raise InvalidRequest(_REFUSAL.format(field=field), field)
    return Inputs(token_ids=read_id_lists(value, field, settings.max_inputs))


def read_id_lists(value: list[Any], field: str, max_inputs: int) -> list[list[int]]:
    """Lists of ids, or one list of them. Raises 400 naming the limit or the index at fault."""
    if not value or not isinstance(value[0], list):
        value = [value]
    if len(value) > max_inputs:
        raise InvalidRequest(
            f"{field} has {len(value)} lists of token ids, the limit is {max_inputs} (max_inputs)",
            field,
        )
    for index, ids in enumerate(value):
        if not isinstance(ids, list) or not all(map(_is_id, ids)):
            raise InvalidRequest(
                f"invalid input type: {field}[{index}] is not a list of token ids", field
            )
    return value


_REFUSAL = (
    "{field} holds token ids, which this server refuses: the client has most likely used another "
    "model's tokenizer. Send texts; with LangChain's OpenAIEmbeddings set "
    "check_embedding_ctx_length=False. EMBEDDING_TOKEN_IDS=accept takes ids as they are"
)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
