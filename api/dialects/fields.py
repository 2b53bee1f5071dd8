"""Fields that more than one dialect takes, each checked and described once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from api.durations import parse_keep_alive
from api.http.errors import BadRequest
from serving.texts import PromptChoice

_MAX_VIEWS = 16


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _as_short_list(value: Any) -> Any:
    if isinstance(value, list) and len(value) > _MAX_VIEWS:  # or each bad one would be named
        raise ValueError(f"must name at most {_MAX_VIEWS} views")
    return [value] if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


WholeNumber = Annotated[int, BeforeValidator(_refuse_boolean)]
View = Literal["dense", "sparse", "colbert"]
Outputs = Annotated[
    list[View] | None,
    BeforeValidator(_as_short_list),
    Field(description="views wanted from the one forward; default dense alone"),
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


_JINA_TASKS = ("retrieval.query", "retrieval.passage")


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

    def prompt_choice(self) -> PromptChoice:
        """Empty ones are as absent."""
        task = self.task if self.task in _JINA_TASKS else None
        return PromptChoice(
            self.prompt_name or None, self.input_type or task, self.instruction or None
        )


class TruncateFields(BaseModel):
    """How vLLM's and OpenAI-like clients say where a text is cut."""

    truncate: bool | None = Field(None, description="false: a text too long is an error")
    truncate_prompt_tokens: WholeNumber | None = Field(
        None, description="longest text or pair in tokens; -1: the model's limit"
    )
    truncation_side: Side = Field(
        None, description="which end of a text too long is cut off; default right"
    )

    def max_length(self) -> int | None:
        """None: the model's own. Raises 400."""
        wanted = self.truncate_prompt_tokens
        if wanted is None or wanted == -1:
            return None
        if wanted < 1:
            raise BadRequest(
                f"truncate_prompt_tokens must be -1 or at least 1, not {wanted}",
                "truncate_prompt_tokens",
            )
        return wanted


class Usage(BaseModel):
    """Tokens of all texts or pairs, special ones included."""

    prompt_tokens: int
    total_tokens: int


def usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
