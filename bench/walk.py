"""The way of one request through the code, as the interpreter takes it.

    python -m bench.walk [--model FOLDER]

Starts the real app in this process, sends a warm one-text request of each route over a real socket
and records, by a profile hook on all threads, every function of this project that is entered. A
function that goes on after an await is not entered again, and a comprehension is part of its
function. Prints the files in the order in which
they are first entered, how often the way moved from one file to another, how often it came to each
file, and how many files it had seen when the job was queued. A run of at most 12 files that repeats
directly after itself counts once: the layers of a forward are one way, walked many times.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import opcode
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import uvicorn

from bench import measure
from bench.random_models import build
from engine.folder.store import STAND_IN

ROOT = Path(__file__).parent.parent
REQUESTS: dict[str, dict[str, Any]] = {
    "/api/embed": {"input": "why is the sky blue?"},
    "/v1/embeddings": {"input": "why is the sky blue?"},
    "/rerank": {"query": "what is a panda?", "documents": ["a bear"]},
}
_QUEUED = ("batcher", "submit")  # the folder and the function in which a job is queued
_FOLDERS = ("api", "serving", "batcher", "engine", "cli")
_AFTER_ANSWER_S = 0.2  # counts and the log line come when the answer is out
_PARTS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # frames of their own before 3.12
_MAX_PERIOD = 12  # files of a repeated run
_RESUME = opcode.opmap.get("RESUME", -1)


@dataclass(slots=True)
class Walk:
    """`entered` are files, one entry a function call, in order, each on one of `threads`;
    `queued_at` is where the job was queued."""

    entered: list[str] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    queued_at: int | None = None

    @property
    def moves(self) -> list[str]:
        """One entry each time that a thread's way came to another file, repeated runs once."""
        ways: dict[int, list[str]] = {}
        for file, thread in zip(self.entered, self.threads, strict=True):
            ways.setdefault(thread, []).append(file)
        return [file for way in ways.values() for file in collapsed(way)]

    @property
    def files(self) -> list[str]:
        """In the order of their first entry."""
        return list(dict.fromkeys(self.entered))

    @property
    def files_before_queue(self) -> list[str]:
        return list(dict.fromkeys(self.entered[: self.queued_at]))


def collapsed(entered: Sequence[str]) -> list[str]:
    """Without the second and further of equal runs that follow one another directly."""
    kept: list[str] = []
    for file in entered:
        kept.append(file)
        for period in range(1, min(_MAX_PERIOD, len(kept) // 2) + 1):
            if kept[-period:] == kept[-2 * period : -period]:
                del kept[-period:]
                break
    return kept


class Recorder:
    """A profile hook. Only what is entered while `walk` is set is kept."""

    def __init__(self) -> None:
        self.walk: Walk | None = None
        self._places: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        walk = self.walk
        if walk is None or event != "call":
            return
        code = frame.f_code
        place = self._places.get(code, "")
        if place == "":
            place = self._places[code] = _place(code)
        if place is None or not _is_fresh(frame):
            return
        walk.entered.append(place)
        walk.threads.append(threading.get_ident())
        folder, name = _QUEUED
        if walk.queued_at is None and code.co_name == name and place.startswith(folder):
            walk.queued_at = len(walk.entered)


def _place(code: CodeType) -> str | None:
    """Relative to the project; None for what is not of it, and for a part of a function."""
    path = Path(code.co_filename)
    if code.co_name in _PARTS or not path.is_absolute() or not path.is_relative_to(ROOT):
        return None
    place = path.relative_to(ROOT)
    is_ours = place.parts[0] in _FOLDERS or place.name in (
        "embedding.py",
        "limits.py",
        "settings.py",
    )
    return place.as_posix() if is_ours else None


def _is_fresh(frame: FrameType) -> bool:
    """False for a coroutine or generator that goes on after an await or a yield: it stands at a
    RESUME whose argument is not 0 (before Python 3.11 there is none: it stands at its start)."""
    at, code = frame.f_lasti, frame.f_code.co_code
    return at < 0 or (code[at] == _RESUME and code[at + 1] & 3 == 0)


def record(port: int, path: str, body: dict[str, Any], recorder: Recorder) -> Walk:
    """The walk of one warm request."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(3):
        _post(connection, path, body)
        time.sleep(_AFTER_ANSWER_S)
    walk = recorder.walk = Walk()
    _post(connection, path, body)
    time.sleep(_AFTER_ANSWER_S)
    recorder.walk = None
    connection.close()
    return walk


def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> None:
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content


def report(path: str, walk: Walk) -> dict[str, Any]:
    """Prints the files and gives the figures."""
    visits = Counter(walk.moves)
    before = len(walk.files_before_queue)
    print(f"POST {path}: {len(walk.files)} files, {before} before the job is queued,")
    print(f"  {len(walk.moves)} moves, at most {max(visits.values())} visits to one file")
    for number, file in enumerate(walk.files, 1):
        print(f"  {number:3}  {file}  ({visits[file]})")
    return {
        "files": len(walk.files),
        "files_before_queue": before,
        "moves": len(walk.moves),
        "most_visits": max(visits.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="name or path of a model; default: the stand-in")
    asked = parser.parse_args()
    os.environ["EMBEDDING_MODELS_DIR"] = folder = tempfile.mkdtemp()
    reranker = build("tiny-bge-reranker", Path(folder))  # what /rerank takes by default
    os.environ["EMBEDDING_MODEL"] = f"{asked.model or STAND_IN},{reranker}"
    recorder = Recorder()
    threading.setprofile(recorder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    thread = threading.Thread(target=_serve, args=(port,), daemon=True)
    thread.start()
    _wait_until_ready(port)
    figures = {
        path: report(path, record(port, path, body, recorder)) for path, body in REQUESTS.items()
    }
    measure.save("walk", figures)
    sys.stdout.flush()
    os._exit(0)


def _serve(port: int) -> None:
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    uvicorn.run("embedding:app", host="127.0.0.1", port=port, log_level="warning")


def _wait_until_ready(port: int) -> None:
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


if __name__ == "__main__":
    main()
