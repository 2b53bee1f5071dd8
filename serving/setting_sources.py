"""Settings from variables, `.env` and flags, and what is wrong with them in one line."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from settings import PREFIX, ServeFlags, Settings


class BadSetting(Exception):
    """One or more settings cannot be used; the text names the variables."""


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
        field = re.search(r'for field "(\w+)"', str(error))
        name = f"{PREFIX}{field[1].upper()}: not valid JSON: " if field else ""
        raise BadSetting(f"{name}{error}") from error
    except UnicodeDecodeError as error:
        raise BadSetting(f".env is not UTF-8: {error.reason} at byte {error.start}") from error


_SECRET = {f"{PREFIX}API_KEY"}


def describe(error: ValidationError) -> str:
    """One line a fault: `EMBEDDING_THREADS: … (got 'many')`."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        name = PREFIX + str(fault["loc"][0]).upper().replace("-", "_")
        message = fault["msg"].removeprefix("Value error, ")
        got = "" if name in _SECRET else f" (got {fault['input']!r})"
        faults.setdefault(name, f"{name}: {message}{got}")
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
