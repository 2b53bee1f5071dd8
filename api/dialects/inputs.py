"""What a dialect calls input: texts, or token ids where the server takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.http.errors import BadRequest
from serving.texts import check_texts
from settings import Settings


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
        raise BadRequest(f"{field} must not be empty", field)
    if not isinstance(value, list):
        raise BadRequest(f"invalid input type: {field} must be a string or a list", field)
    if _is_id(value[0]):
        value = [value]
    if not isinstance(value[0], list):
        check_texts(value, settings.max_inputs, field)
        return Inputs(value)
    if settings.token_ids == "reject":
        raise BadRequest(_REFUSAL.format(field=field), field)
    return Inputs(token_ids=read_id_lists(value, field, settings.max_inputs))


def read_id_lists(value: list[Any], field: str, max_inputs: int) -> list[list[int]]:
    """Lists of ids, or one list of them. Raises 400 naming the limit or the index at fault."""
    if not value or not isinstance(value[0], list):
        value = [value]
    if len(value) > max_inputs:
        raise BadRequest(
            f"{field} has {len(value)} lists of token ids, the limit is {max_inputs} (max_inputs)",
            field,
        )
    for index, ids in enumerate(value):
        if not isinstance(ids, list) or not all(map(_is_id, ids)):
            raise BadRequest(f"invalid input type: {field}[{index}] is no list of token ids", field)
    return value


_REFUSAL = (
    "{field} holds token ids, which this server refuses: the client has most likely used another "
    "model's tokenizer. Send texts; with LangChain's OpenAIEmbeddings set "
    "check_embedding_ctx_length=False. EMBEDDING_TOKEN_IDS=accept takes ids as they are"
)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
