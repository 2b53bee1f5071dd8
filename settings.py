"""Every setting of the server: its name, unit, default and reason.

Each is an environment variable `EMBEDDING_<NAME>`, a line of `.env`, or a flag of `embedding
serve`; serving/configuration.py reads them. A bad value refuses to start. Those that bound clients
are in limits.py; nothing else of ours is imported.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    field_validator,
)
from pydantic_settings import SettingsConfigDict

from limits import Limits

PREFIX = "EMBEDDING_"
# Old names, which still work: read_settings says so once.
RENAMED = {
    "max_step_tokens": "max_batch_tokens",
    "step_timeout_s": "batch_timeout_s",
    "yield": "preemption",
    "max_queue_jobs": "max_queue_requests",
}

_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_DURATION_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # micro sign
    "\u03bcs": 1e-6,  # Greek mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_MAX_DURATION_CHARS = 100  # matching is quadratic in the length


def split(names: str | None) -> list[str]:
    """The names between the commas; empty ones are left out."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def parse_keep_alive(value: Any) -> float | None:
    """Seconds or a Go duration ("1h30m") -> seconds; negative means for ever; None stays None.

    Source: Go's time.ParseDuration, which Ollama uses. Raises ValueError.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if not isinstance(value, str) or len(value) > _MAX_DURATION_CHARS:
        raise ValueError("must be seconds or a duration such as 5m")
    sign, text = (-1.0, value[1:]) if value.startswith("-") else (1.0, value.removeprefix("+"))
    parts = _DURATION_PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("must be seconds or a duration such as 5m, 1h30m or -1s")
    return sign * sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _renamed(**values: str) -> BeforeValidator:
    """Lower case, and new values for old ones."""

    def read(value: Any) -> Any:
        value = value.strip().lower() if isinstance(value, str) else value
        return values.get(value, value) if isinstance(value, str) else value

    return BeforeValidator(read)


def _parse_keep_alive_setting(value: Any) -> Any:
    """A variable is always text, so `300` is seconds here."""
    with contextlib.suppress(TypeError, ValueError):
        value = float(value)
    return parse_keep_alive(value.strip() if isinstance(value, str) else value)


class Settings(Limits):
    """All settings, validated. `Settings()` reads the environment and `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # a key in it would be in every traceback
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    models_dir: Path = Field(Path("models"), description="folder that holds one folder a model")
    model: str | None = Field(
        None,
        description="models to load at start and keep, separated by commas: names of folders "
        "below MODELS_DIR, or paths; the first is the default. When absent: bge-m3, else the "
        "first by name, or the stand-in all-MiniLM-L6-v2 when there is none",
    )
    device: str = Field("auto", description="auto, cpu, or a torch device: vacc, vacc:1, cuda, …")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        "auto", description="auto: on the CPU bfloat16 where it is faster and moves no vector"
    )
    layout: Annotated[Literal["auto", "unpadded", "padded"], _renamed(packed="unpadded")] = Field(
        "auto", description="unpadded runs no padding; auto: unpadded on the CPU, padded elsewhere"
    )
    linear: Annotated[Literal["auto", "prepacked", "plain"], _renamed(packed="prepacked")] = Field(
        "auto",
        description="prepacked: linear weights are laid out anew once for the CPU: faster, a "
        "private copy; plain: they stay memory-mapped; auto: prepacked where it works",
    )
    pooling: Literal["cls", "mean", "last", "max", "mean_sqrt_len", "weighted_mean"] | None = Field(
        None, description="overrides the pooling that the models' own files name, of every embedder"
    )
    max_length: int | None = Field(
        None,
        ge=3,
        description="longest input in tokens, special ones included, up to each model's positions",
    )
    prompts: dict[str, str] | None = Field(
        None, description="prompts by name as a JSON object, beside or over the models' own"
    )
    keep_alive: Annotated[float, BeforeValidator(_parse_keep_alive_setting)] = Field(
        300.0,
        description="how long a model that was loaded at first use stays after its last request: "
        "seconds or 5m, 1h; negative: for ever; 0: not at all",
    )
    max_model_bytes: ByteSize | None = Field(
        None,
        gt=0,
        description="memory for models, e.g. 8GB; the least recently used go first; by default "
        "what the machine or its cgroup has left",
    )
    load_timeout_s: float = Field(
        300.0, gt=0, le=86400, description="seconds that a request waits for its model to load"
    )
    # bge-small: 4 % more than with 1,024 (bench/results/batch-tokens-bge-small.json)
    max_batch_tokens: Annotated[int, _renamed(auto="2048")] = Field(
        2048, ge=1, le=1 << 20, description="tokens that run together in one batch"
    )
    max_urgent_tokens: int = Field(
        64,
        ge=1,
        le=4096,
        description="tokens of a job, far shorter than the others, that may preempt a long batch",
    )
    preemption: Literal["auto", "on", "off"] = Field(
        "auto",
        description="on: short jobs run between the layers of a long batch; auto: on the CPU",
    )
    threads: Literal["auto"] | int = Field(
        "auto", description="compute threads; auto: physical cores, CPU affinity and cgroup quota"
    )
    max_inputs: int = Field(10_000, ge=1, description="texts in one request")
    max_request_tokens: int = Field(
        8_388_608, ge=1, description="tokens in one request, all its texts or pairs together"
    )
    max_colbert_tokens: int = Field(
        32_768, ge=1, description="tokens in one request that asks for ColBERT vectors"
    )
    max_queue_tokens: int = Field(
        8_388_608,
        ge=1,
        description="tokens of all open requests together; more are refused with 429, but for one "
        "request alone. By default as many as one request may have: some 0.4 GB of token ids",
    )
    request_timeout_s: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds that a request may take; what cannot be done by then is not started. "
        "A request may ask for less in x-request-timeout",
    )
    cache_bytes: ByteSize = Field(
        ByteSize(0), ge=0, description="memory for vectors and scores of recent texts, e.g. 256MB"
    )
    token_ids: Literal["accept", "reject"] = Field(
        "reject",
        description="token ids as input: refused, since most clients that send them used another "
        "model's tokenizer; accept takes them as they are",
    )
    api_key: SecretStr | None = Field(
        None,
        description="key that requests must send as a bearer token, or several separated by "
        "commas; health, metrics, the page and the documentation stay open",
    )
    cors_origins: str | None = Field(
        None,
        description="origins whose pages may call from a browser, separated by commas; * for all",
    )
    access_log: bool = Field(True, description="a line for each request, never its text")
    batch_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86400,
        description="seconds after which a batch that still runs makes /health 503",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="seconds that SIGTERM gives running requests"
    )
    host: str = Field("0.0.0.0", description="address to listen on (serve.sh, embedding serve)")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on (likewise)")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines for people, or one JSON object a line"
    )

    @property
    def models(self) -> list[str]:
        """The names in `model`, in order; empty when none is set."""
        return split(self.model)

    @property
    def api_keys(self) -> list[str]:
        """The keys in `api_key`; empty: everybody may call."""
        return split(self.api_key.get_secret_value() if self.api_key else None)

    @property
    def allowed_origins(self) -> list[str]:
        """The origins in `cors_origins`; empty: no browser page of another origin may call."""
        return split(self.cors_origins)

    @field_validator("api_key")
    @classmethod
    def _check_keys(cls, api_key: SecretStr | None) -> SecretStr | None:
        """The message does not show them."""
        keys = split(api_key.get_secret_value() if api_key else None)
        if api_key is not None and not (keys and all(map(_KEY.fullmatch, keys))):
            raise ValueError("keys are printable ASCII without spaces, separated by commas")
        return api_key

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: str | None) -> str | None:
        for origin in split(origins):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin such as https://example.com:8443, or *"
                )
        return origins

    @field_validator("threads", mode="before")
    @classmethod
    def _read_threads(cls, number: Any) -> Any:
        value = str(number).strip().lower()
        if value == "auto":
            return value
        if not value.isdecimal() or not 1 <= int(value) <= 1024:
            raise ValueError("must be auto, or 1 to 1024")
        return int(value)

    @field_validator(
        *("device", "dtype", "pooling", "token_ids", "log_level", "log_format", "preemption"),
        mode="before",
    )
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value


class ServeFlags(Settings):
    """Serve models over HTTP. Each flag is also the environment variable EMBEDDING_<NAME>."""

    reload: bool = Field(False, description="restart when a source file changes (development)")

    def as_environment(self) -> dict[str, str]:
        """Every setting that was given, by flag or otherwise, as variables."""
        given = self.model_fields_set - {"reload"}
        return {PREFIX + name.upper(): _as_text(getattr(self, name)) for name in given}


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, dict) else str(value)
