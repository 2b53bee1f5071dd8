"""The `openai` package asks again when it is told to, after as long as it is told to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
import openai._base_client as base_client
import pytest

from batcher.admission import Admission
from tests.serving.fake_engine import FakeServer, serve_fake, until

HELD_TOKENS = 6  # of what holds the worker


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """One place, and a rate of a token a second."""
    with serve_fake(max_queue_requests=1) as running:
        running.server.metrics.rate.count(1000, 1000.0)
        yield running


def admission_of(server: FakeServer) -> Admission:
    return server.serving.admission


def test_a_refused_call_is_made_again_after_retry_after(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    admission = admission_of(server)

    class Clock:
        """The client's time: while it sleeps, the queue drains."""

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            server.engine.may_run.set()
            until(lambda: admission.num_requests == 0)

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    monkeypatch.setattr(base_client, "time", Clock())
    url = f"{server.url}/v1"
    with server.held_worker(), openai.OpenAI(base_url=url, api_key="any", max_retries=2) as client:
        answer = client.embeddings.create(model="Fake-Model", input=["abc", "de"])
    assert [item.index for item in answer.data] == [0, 1]
    assert slept == [HELD_TOKENS]
    assert admission.num_refused == 1


def test_a_client_that_does_not_try_again_raises_its_rate_limit_error(server: FakeServer) -> None:
    url = f"{server.url}/v1"
    with server.held_worker(), openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError, match="max_queue_requests") as raised:
            client.embeddings.create(model="Fake-Model", input="abc")
        assert raised.value.response.headers["retry-after"] == str(HELD_TOKENS)
        assert raised.value.code == "rate_limit_exceeded"


def test_a_timeout_of_the_call_can_be_sent_along(server: FakeServer) -> None:
    url = f"{server.url}/v1"
    soon = {"x-request-timeout": "2"}
    with (
        openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="cannot be done in time"),
    ):
        client.embeddings.create(model="Fake-Model", input="abc", extra_headers=soon)
