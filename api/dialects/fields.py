"""Fields that more than one dialect takes, each checked and described once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from engine.outputs import Weights
from settings import parse_keep_alive

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


def _as_weights(given: OutputWeights | None) -> Weights | None:
    if given is None:
        return None
    weights = Weights(given.dense, given.sparse, given.colbert)
    if weights.dense + weights.sparse + weights.colbert == 0:
        raise ValueError("at least one of dense, sparse, colbert must be above 0")
    return weights


class RelevanceBody(Body, TruncateFields):
    """What /rerank and /score both take."""

    instruction: str | None = Field(None, description="the task, for models that take one")
    raw_scores: bool | None = Field(None, description="true: no sigmoid")
    use_activation: bool | None = Field(None, description="false: no sigmoid")
    weights: Annotated[OutputWeights | None, AfterValidator(_as_weights)] = Field(
        None, description="for an embedder with several outputs, such as bge-m3: hybrid score"
    )


class Usage(BaseModel):
    """Tokens of all texts or pairs, special ones included."""

    prompt_tokens: int
    total_tokens: int
