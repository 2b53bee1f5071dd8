"""A line for each request: what was asked, how it ended, how long it took; never a user's text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serving.configuration import JsonFormatter, configure_log
from tests.serving.fake_engine import FakeServer, serve_fake, until

SECRET = "my secret diary"


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Of the access log, from everything that runs in the test."""
    found: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    log = logging.getLogger("embedding.access")
    keeper, level = Keeper(), log.level
    log.addHandler(keeper)
    log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(keeper)
    log.setLevel(level)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serve_fake() as running:
        yield running


def last(records: list[logging.LogRecord]) -> dict[str, Any]:
    until(lambda: bool(records))  # it is written once the answer is on its way
    fields: dict[str, Any] = vars(records.pop())["fields"]
    return fields


def test_a_request_is_one_line_with_its_times_and_its_id(
    server: FakeServer, records: list[logging.LogRecord]
) -> None:
    answer = server.embed({"input": "abc"}, headers={"x-request-id": "mine-1"})
    assert answer.status_code == 200
    fields = last(records)
    assert not records
    assert fields["method"] == "POST"
    assert fields["path"] == "/api/embed"
    assert fields["status"] == 200
    assert fields["tokens"] == 5
    assert fields["request_id"] == "mine-1"
    assert fields["client"] == "127.0.0.1"
    assert {"total_ms", "queue_ms", "inference_ms", "tokenization_ms"} <= fields.keys()


def test_no_text_of_a_user_is_in_it(server: FakeServer, records: list[logging.LogRecord]) -> None:
    server.embed({"input": SECRET})
    server.embed({"input": SECRET, "model": SECRET})
    server.post(f"/api/embed?input={SECRET}", {"input": [SECRET, 5]})
    until(lambda: len(records) == 3)
    for record in records:
        assert SECRET not in record.getMessage()
        assert "secret" not in json.dumps(vars(record)["fields"])


def test_a_path_cannot_write_lines_of_its_own_or_fill_the_disk(
    server: FakeServer, records: list[logging.LogRecord]
) -> None:
    server.get("/a%0aINFO%20forged%1b[31m" + "x" * 5000)
    path = last(records)["path"]
    assert path.startswith("/a\\nINFO forged\\x1b[31m")
    assert len(path) < 1000


def test_probes_are_logged_for_debugging_only(
    server: FakeServer, records: list[logging.LogRecord]
) -> None:
    for path in ("/health", "/live", "/ready", "/metrics"):
        server.get(path)
        until(lambda: bool(records))
        assert records.pop().levelno == logging.DEBUG
    server.get("/api/tags")
    until(lambda: bool(records))
    assert records.pop().levelno == logging.INFO


def test_it_can_be_switched_off(records: list[logging.LogRecord]) -> None:
    with serve_fake(access_log=False) as silent:
        silent.embed({"input": "a"})
        silent.get("/api/tags")
    assert not records


def test_json_lines_carry_the_fields_themselves() -> None:
    record = logging.LogRecord("embedding.access", logging.INFO, "", 0, "%s", ("a=1",), None)
    record.fields = {"path": "/api/embed", "status": 200}
    line = json.loads(JsonFormatter().format(record))
    assert line["path"] == "/api/embed"
    assert line["status"] == 200
    assert "message" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_web_server_writes_in_our_form_and_no_access_lines(log_format: Any) -> None:
    ours, theirs = logging.getLogger("embedding"), logging.getLogger("uvicorn.error")
    access = logging.getLogger("uvicorn.access")
    kept = [(log, log.handlers[:], log.propagate, log.level) for log in (ours, theirs, access)]
    theirs.handlers[:] = [logging.StreamHandler()]
    try:
        configure_log("info", log_format)
        assert type(theirs.handlers[0].formatter) is type(ours.handlers[0].formatter)
        assert not access.hasHandlers()
    finally:
        for log, handlers, propagate, level in kept:
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)
