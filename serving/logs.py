"""Log lines for people (text) or for machines (one JSON object a line). Never a user's text."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, Literal

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Our loggers write to stderr, and the web server's in the same form; its access lines are
    replaced by ours (api/http/frame.py)."""
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
