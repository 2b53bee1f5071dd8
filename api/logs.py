"""Log lines for people (text) or for machines (one JSON object a line). Never a user's text."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, and the traceback when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Our loggers write to stderr; with json, the web server's do so in the same form."""
    formatter = JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    ours = logging.getLogger("embedding")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
    if log_format == "json":
        for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
            for other in logging.getLogger(name).handlers:
                other.setFormatter(formatter)
