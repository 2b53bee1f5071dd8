"""Settings from variables, `.env` and flags, what is wrong with them in one line, and the log.

Old names of settings still work. A log line is for people (text) or for machines (one JSON object
a line) and never holds a user's text.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import SettingsError

from settings import PREFIX, RENAMED, ServeFlags, Settings

log = logging.getLogger("embedding")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRET = {f"{PREFIX}API_KEY"}


class BadSetting(Exception):
    """One or more settings cannot be used; the text names the variables."""


def read_flags(arguments: list[str]) -> ServeFlags:
    """Flags over the environment. Prints and exits on --help; raises BadSetting."""
    with _naming_variables():
        return ServeFlags(  # type: ignore[call-arg]
            **_read_old_names({}),
            _cli_parse_args=[_new_flag(argument) for argument in arguments],
            _cli_prog_name="embedding serve",
        )


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment. Raises BadSetting that names every variable at fault."""
    with _naming_variables():
        return Settings(**_read_old_names(overrides))


def _read_old_names(given: dict[str, Any]) -> dict[str, Any]:
    """`given` and what the environment or `.env` sets by an old name and not by the new one."""
    set_by_file = dotenv_values(".env") if given.get("_env_file", ".env") else {}
    there = {name.upper(): value for name, value in {**set_by_file, **os.environ}.items()}
    for old, new in RENAMED.items():
        value = there.get(PREFIX + old.upper())
        if value and new not in given and not there.get(PREFIX + new.upper()):
            given = {**given, new: value}
    return given


def _new_flag(argument: str) -> str:
    """A flag by its old name becomes the new one."""
    name, equals, value = argument.partition("=")
    new = RENAMED.get(name.removeprefix("--").replace("-", "_")) if name[:2] == "--" else None
    return f"--{new.replace('_', '-')}{equals}{value}" if new else argument


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


def describe(error: ValidationError) -> str:
    """One line a fault: `EMBEDDING_THREADS: … (got 'many')`."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        name = PREFIX + str(fault["loc"][0]).upper().replace("-", "_")
        message = fault["msg"].removeprefix("Value error, ")
        got = "" if name in _SECRET else f" (got {fault['input']!r})"
        faults.setdefault(name, f"{name}: {message}{got}")
    return "; ".join(faults.values())


def odd_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each EMBEDDING_ variable that has an old name, or that is no setting at all: most
    likely a typing error."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    old = {PREFIX + name.upper(): PREFIX + new.upper() for name, new in RENAMED.items()}
    lines = []
    for name in sorted(environ):
        upper = name.upper()
        if upper in old:
            lines.append(f"{name} is now called {old[upper]}; the old name still works")
        elif upper.startswith(PREFIX) and upper not in known:
            near = difflib.get_close_matches(upper, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{name} is no setting and is ignored{hint}")
    return lines


def read_settings_quietly() -> Settings:
    """For a command, whose output says the rest: without a level of the user's own only warnings
    are logged. Raises BadSetting."""
    settings = read_settings()
    is_set = "log_level" in settings.model_fields_set
    configure_log(settings.log_level if is_set else "warning", settings.log_format)
    return settings


class JsonFormatter(logging.Formatter):
    """time, level, logger, then the fields of an access line, or a message and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line |= {"message": record.getMessage()} if fields is None else fields
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_log(level: str, log_format: str) -> None:
    """Our loggers write to stderr, and the web server's in the same form; its access lines are
    replaced by ours. Then a line for each odd variable."""
    formatter = JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    ours = logging.getLogger("embedding")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        for other in logging.getLogger(name).handlers:
            other.setFormatter(formatter)
    theirs = logging.getLogger("uvicorn.access")
    theirs.handlers.clear()  # uvicorn then makes no line at all
    theirs.propagate = False
    for line in odd_variables():
        log.warning("%s", line)
