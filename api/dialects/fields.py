"""Fields that more than one dialect takes, each checked and described once."""

from __future__ import annotations

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
from serving.scoring import ScoreRequest
from settings import parse_keep_alive

_MAX_OUTPUTS = 16


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _as_short_list(value: Any) -> Any:
    """Each output once, in the order asked."""
    if isinstance(value, list) and len(value) > _MAX_OUTPUTS:  # or each bad one would be named
        raise ValueError(f"must name at most {_MAX_OUTPUTS} outputs")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(dict.fromkeys(value))
    return [value] if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _read_limit(value: Any) -> Any:
    """-1 means the model's own limit, as when the field is absent."""
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
    """A request's body. Unknown fields are ignored, and null means absent."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(None, description="the default model when absent")
    keep_alive: KeepAlive = None


class PromptFields(BaseModel):
    """What is put before a text; at most one of these fields has an effect."""

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
        """An error names each unknown key of a few, but not each of a million."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            raise ValueError("knows dense, sparse and colbert only")
        return value

    @model_validator(mode="after")
    def _refuse_zeros(self) -> OutputWeights:
        if self.dense + self.sparse + self.colbert == 0:
            raise ValueError("at least one of dense, sparse, colbert must be above 0")
        return self


class RelevanceBody(Body, TruncateFields):
    """What /rerank and /score both take."""

    instruction: str | None = Field(None, description="the task, for models that take one")
    raw_scores: bool | None = Field(None, description="true: no sigmoid")
    use_activation: bool | None = Field(None, description="false: no sigmoid")
    weights: OutputWeights | None = Field(
        None, description="for an embedder with several outputs, such as bge-m3: hybrid score"
    )

    @property
    def wants_raw(self) -> bool:
        return bool(self.raw_scores) or self.use_activation is False

    def wanted(self, queries: list[Any], documents: list[Any], **more: Any) -> ScoreRequest:
        """The request for these two sides; `more` are fields of ScoreRequest."""
        return ScoreRequest(
            queries,
            documents,
            truncate=self.truncate is not False,
            truncation_side=self.truncation_side or "right",
            max_length=self.truncate_prompt_tokens,
            instruction=self.instruction or None,
            weights=Weights(**self.weights.model_dump()) if self.weights else None,
            has_objects=True,
            keep_alive_s=self.keep_alive,
            **more,
        )


class Answer(BaseModel):
    """The body of an answer, or an object within it."""

    @classmethod
    def example(cls) -> dict[str, Any]:
        """What the fields' own examples make together; a field without one is left out."""
        fields = cls.model_fields.items()
        return {name: field.examples[0] for name, field in fields if field.examples}


class Usage(Answer):
    """Tokens of all texts or pairs, special ones included."""

    prompt_tokens: int = Field(examples=[18])
    total_tokens: int = Field(examples=[18])


def usage_of(num_tokens: int) -> dict[str, int]:
    """`Usage` as a dialect answers it: nothing is generated, so the two are equal."""
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
