"""OpenAPI entries of routes that read their body themselves, so that any content type will do."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from api.http.dialects import Dialect
from api.http.errors import error_responses


def takes(kind: type[BaseModel], **examples: Any) -> dict[str, Any]:
    """For `openapi_extra`: the request's body with named examples."""
    content: dict[str, Any] = {"schema": _inlined(kind)}
    content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def gives(kind: Any, example: Any, dialect: Dialect) -> dict[int | str, dict[str, Any]]:
    """For `responses`: the answer with an example, and the dialect's errors."""
    success: dict[str, Any] = {"content": {"application/json": {"example": example}}}
    if kind is not None:
        success["model"] = kind
    return {200: success, **error_responses(dialect)}


def _inlined(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema without `$ref`: an entry of its own has no place for definitions."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if name := node.get("$ref"):
            own = {key: value for key, value in node.items() if key != "$ref"}
            return resolve({**definitions[name.rpartition("/")[2]], **own})
        return {key: resolve(value) for key, value in node.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
