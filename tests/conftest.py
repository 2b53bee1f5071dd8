"""What all tests share: a skip is a failure unless its marker says why, and one small server."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.servers import Server, start_server

# The same numbers on every processor: `auto` may take another type.
os.environ.setdefault("EMBEDDING_DTYPE", "float32")

_unexpected_skips: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and not item.get_closest_marker("weights")
        and not item.get_closest_marker("processor")
    ):
        # It travels to whoever runs the workers.
        report.is_unexpected_skip = True  # type: ignore[attr-defined]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if getattr(report, "is_unexpected_skip", False):
        _unexpected_skips.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected_skips and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nodeid in _unexpected_skips:
        terminalreporter.write_line(f"unexpected skip: {nodeid}", red=True)


@pytest.fixture(scope="session")
def stand_in_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server process with the stand-in's real weights, shared by the session."""
    empty: Path = tmp_path_factory.mktemp("no-models")
    with start_server(EMBEDDING_MODELS_DIR=str(empty)) as server:
        yield server
