"""Every setting of the server: its name, unit, default and reason.

Each is an environment variable `EMBEDDING_<NAME>`, a line of `.env`, or a flag of `embedding
serve`.
A bad value refuses to start and names the variable. Must not import torch.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

PREFIX = "EMBEDDING_"


class BadSetting(Exception):
    """One or more settings cannot be used; the text names the variables."""


class Settings(BaseSettings):
    """All settings, validated. `Settings()` reads the environment and `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    models_dir: Path = Field(Path("models"), description="folder that holds one folder a model")
    model: str | None = Field(
        None,
        description="model to serve: a folder's name below MODELS_DIR, or a path; by default "
        "bge-m3, else the first by name, or the stand-in all-MiniLM-L6-v2 when there is none",
    )
    device: str = Field("auto", description="auto, cpu, or a torch device: vacc, vacc:1, cuda, …")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="weights' type; auto: float32 on the CPU, float16 where that is safe"
    )
    layout: Literal["auto", "packed", "padded"] = Field(
        "auto", description="packed runs no padding; auto: packed on the CPU, padded elsewhere"
    )
    linear: Literal["auto", "packed", "plain"] = Field(
        "auto",
        description="packed: linear weights re-laid once for the CPU, faster, a private copy; "
        "plain: they stay memory-mapped; auto: packed where it works",
    )
    pooling: Literal["cls", "mean", "last"] | None = Field(
        None, description="overrides the pooling that the model's own files name"
    )
    max_length: int | None = Field(
        None, ge=3, description="longest input in tokens, special ones included"
    )
    max_step_tokens: int = Field(
        1024, ge=1, le=1 << 20, description="tokens that run together; more gains nothing on a CPU"
    )
    threads: Literal["auto"] | int = Field(
        "auto", description="compute threads; auto: physical cores, CPU affinity and cgroup quota"
    )
    max_inputs: int = Field(10_000, ge=1, description="texts in one request")
    max_body_bytes: int = Field(64 << 20, ge=1024, description="bytes of one request's body")
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="seconds that SIGTERM gives running requests"
    )
    host: str = Field("0.0.0.0", description="address to listen on (serve.sh, embedding serve)")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on (likewise)")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines for people, or one JSON object a line"
    )

    @field_validator("threads", mode="before")
    @classmethod
    def _read_threads(cls, threads: Any) -> Any:
        value = str(threads).strip().lower()
        if value == "auto":
            return value
        if not value.isdecimal() or not 1 <= int(value) <= 1024:
            raise ValueError("must be auto, or 1 to 1024")
        return int(value)

    @field_validator(
        "device", "dtype", "layout", "linear", "pooling", "log_level", "log_format", mode="before"
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
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in given}


def read_flags(arguments: list[str]) -> ServeFlags:
    """Flags over the environment. Prints and exits on --help; raises BadSetting."""
    with _naming_variables():
        return ServeFlags(
            _cli_parse_args=arguments,  # type: ignore[call-arg]
            _cli_prog_name="embedding serve",
        )


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment. Raises BadSetting that names every variable at fault."""
    with _naming_variables():
        return Settings(**overrides)


@contextlib.contextmanager
def _naming_variables() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise BadSetting(describe(error)) from error
    except SettingsError as error:
        raise BadSetting(str(error)) from error
    except UnicodeDecodeError as error:
        raise BadSetting(f".env is not UTF-8: {error.reason} at byte {error.start}") from error


def describe(error: ValidationError) -> str:
    """One line a fault: `EMBEDDING_THREADS: … (got 'many')`."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        name = PREFIX + str(fault["loc"][0]).upper().replace("-", "_")
        message = fault["msg"].removeprefix("Value error, ")
        faults.setdefault(name, f"{name}: {message} (got {fault['input']!r})")
    return "; ".join(faults.values())


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each EMBEDDING_ variable that is no setting: likely a slip of the pen."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    lines = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{name} is no setting and is ignored{hint}")
    return lines
