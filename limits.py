"""Settings that bound what clients may hold at a time: heads, connections, bodies, answers.

Part of Settings (settings.py), which explains how they are set. Imports nothing of ours.
"""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class Limits(BaseSettings):
    """Everything here ends in an answer that names the limit, or in a closed connection."""

    max_connections: int = Field(
        4096, ge=1, description="open connections; more are closed at once, with a line in the log"
    )
    max_head_bytes: int = Field(
        65_536, ge=1024, description="bytes of a request's line and headers; more are 431 or 414"
    )
    head_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="seconds that a request's head may take to come, else 408"
    )
    max_queue_requests: int = Field(
        4096,
        ge=1,
        description="requests that compute or wait to; more are refused with 429 before their "
        "body is read. By default far more than a CPU does in a minute",
    )
    max_body_bytes: int = Field(64 << 20, ge=1024, description="bytes of one request's body")
    body_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86400,
        description="seconds that a request's body may take, else 408",
    )
