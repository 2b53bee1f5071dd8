"""Over the queue's limits: 429 at once in every dialect, whole job or nothing, no trace left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from batcher.admission import Admission
from tests.api.connections import send
from tests.api.error_shapes import dialect_by_path, fault_of
from tests.api.known_routes import POSTS, WORK
from tests.serving.fake_engine import NAME, FakeServer, serve_fake, until
from tests.serving.fake_models import TIMEOUT_S, write_model

LOOKS = ("/health", "/live", "/ready", "/metrics", "/v1/models", "/info", "/api/tags", "/api/ps")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """A server whose one place is taken for as long as it is there."""
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, NAME)
    with serve_fake(models_dir=root, max_queue_requests=1) as running, running.held_worker():
        yield running


@pytest.fixture
def sender() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def admission_of(server: FakeServer) -> Admission:
    return server.serving.admission


def until_empty(server: FakeServer) -> None:
    """A place is left after its answer has been sent."""
    admission = admission_of(server)
    until(
        lambda: (admission.num_requests, admission.num_reserving, admission.num_tokens) == (0, 0, 0)
    )


def waits(
    server: FakeServer, sender: ThreadPoolExecutor, num_jobs: int, texts: list[str]
) -> Future[httpx.Response]:
    """Send what is admitted, and come back when it waits as one of `num_jobs`."""
    sent = sender.submit(server.embed, {"input": texts})
    server.wait_for(lambda worker: worker.num_waiting_jobs == num_jobs)
    return sent


def check_refused(answer: httpx.Response, *words: str) -> None:
    fault = fault_of(answer, dialect_by_path(answer.request.url.path), 429)
    for each in words:
        assert each in fault.text
    assert int(answer.headers["retry-after"]) >= 1


def test_every_route_that_takes_a_body_is_work_but_one_that_looks() -> None:
    assert WORK | {"/api/show"} == POSTS


@pytest.mark.parametrize("path", sorted(WORK))
def test_one_request_too_many_is_refused_in_its_dialect(full: FakeServer, path: str) -> None:
    check_refused(full.post(path, {}), "1 requests are open, the limit is 1 (max_queue_requests)")
    with full.client() as client:  # and before its body is read
        check_refused(client.post(path, content=b"{"), "max_queue_requests")


@pytest.mark.parametrize("path", LOOKS)
def test_what_only_looks_is_answered_by_a_server_that_is_full(full: FakeServer, path: str) -> None:
    assert full.get(path).status_code == 200


def test_a_model_is_shown_and_a_wrong_method_is_told_by_a_server_that_is_full(
    full: FakeServer,
) -> None:
    assert full.post("/api/show", {}).status_code == 200
    assert full.get("/api/embed").status_code == 405


def test_health_tells_how_many_are_open(full: FakeServer) -> None:
    assert full.get("/health").json()["admitted_requests"] == 1


def test_refusals_are_counted(full: FakeServer) -> None:
    def samples() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(full.get("/metrics").text)
        each = (sample for family in families for sample in family.samples)
        return {(sample.name, *sample.labels.values()): sample.value for sample in each}

    before = samples()
    full.embed({"input": "a"})
    until(lambda: samples()["embedding_refused_total",] == before["embedding_refused_total",] + 1)
    assert samples()["embedding_requests_total", "/api/embed", "429"] >= 1
    assert samples()["embedding_admitted_requests",] == 1


@pytest.mark.parametrize(
    ("texts", "num_tokens"), [(["abcdefghij"], 12), (["abcd", "abcd"], 12), (["a"] * 4, 12)]
)
def test_tokens_too_many_are_refused_whole_in_one_text_or_in_several(
    sender: ThreadPoolExecutor, texts: list[str], num_tokens: int
) -> None:
    with serve_fake(max_queue_tokens=20) as server:
        with server.held_worker():  # 6 tokens
            waiting = waits(server, sender, 1, ["abc"])  # 5
            words = f"it holds 11 tokens and this request has {num_tokens} or more"
            check_refused(server.embed({"input": texts}), words, "20 (max_queue_tokens)")
            assert server.serving.worker.num_waiting_tokens == 5, "nothing of it is queued"
            fits = waits(server, sender, 2, ["abcdefg"])  # 9 more
            check_refused(server.embed({"input": "a"}), "it holds 20 tokens, the limit is 20")
        assert waiting.result().status_code == fits.result().status_code == 200
        until_empty(server)
        assert server.embed({"input": texts}).status_code == 200


def test_what_alone_is_over_the_limit_is_served_alone() -> None:
    with serve_fake(max_queue_tokens=5) as server:
        assert server.embed({"input": ["abcdefgh"] * 3}).status_code == 200
        until_empty(server)


def test_every_dialects_jobs_are_held_to_the_tokens(tmp_path: Path) -> None:
    write_model(tmp_path, NAME, max_length=64, has_heads=True)
    write_model(tmp_path, "ranker", "BertForSequenceClassification", max_length=64)
    pinned = [NAME, "ranker"]
    documents = [f"abcdefg{i}" for i in range(4)]
    with serve_fake(models_dir=tmp_path, pinned=pinned, max_queue_tokens=20) as server:
        with server.held_worker():
            for path, body in (
                ("/v1/embeddings", {"input": documents}),
                ("/api/embeddings", {"prompt": "abcdefgh" * 4}),
                ("/embed", {"inputs": documents}),
                ("/embed_sparse", {"inputs": documents}),
                ("/embed_all", {"inputs": documents}),
                ("/similarity", {"inputs": {"source_sentence": "a", "sentences": documents}}),
                ("/api/rerank", {"query": "a", "documents": documents}),
                ("/rerank", {"query": "a", "documents": documents, "model": NAME}),
                ("/score", {"text_1": "a", "text_2": documents}),
            ):
                check_refused(server.post(path, body), "max_queue_tokens")
            tei = server.post("/rerank", {"query": "a", "texts": documents})
            assert "max_queue_tokens" in fault_of(tei, "tei", 429).text
        until_empty(server)


def test_a_request_that_only_tokenizes_or_loads_holds_a_place(tmp_path: Path) -> None:
    write_model(tmp_path, NAME)
    write_model(tmp_path, "other")
    with serve_fake(models_dir=tmp_path, max_queue_requests=1) as server:
        for path, body in (("/api/generate", {}), ("/tokenize", {"inputs": "a"})):
            with ThreadPoolExecutor(1) as sender, server.engine.held_loads():
                loading = sender.submit(server.post, path, {**body, "model": "other"})
                until(lambda: server.num_waiting_for_loads == 1)
                check_refused(server.embed({"input": "a"}), "max_queue_requests")
            assert loading.result().status_code == 200
            until_empty(server)
            assert server.post("/api/generate", {"model": "other", "keep_alive": 0}).is_success
            until(lambda: server.resident_names == [NAME])
            until_empty(server)


def test_refusals_end_when_the_queue_has_drained(sender: ThreadPoolExecutor) -> None:
    with serve_fake(max_queue_requests=3) as server:
        for _ in range(3):
            with server.held_worker():
                admitted = [waits(server, sender, n, ["abc"]) for n in (1, 2)]
                refused = [sender.submit(server.embed, {"input": "abc"}) for _ in range(8)]
                for one in refused:
                    check_refused(one.result(), "3 requests are open")
            assert [one.result().status_code for one in admitted] == [200, 200]
            until_empty(server)
            assert server.embed({"input": "abc"}).status_code == 200
            until_empty(server)


def test_a_client_that_leaves_frees_its_place(sender: ThreadPoolExecutor) -> None:
    with serve_fake(max_queue_requests=2, max_queue_tokens=20) as server:
        with server.held_worker():
            with send(server.url, {"input": "abcdefghij"}):
                server.wait_for(lambda worker: worker.num_waiting_jobs == 1)
                assert admission_of(server).num_tokens == 6 + 12
            until(lambda: admission_of(server).num_requests == 1)
            assert admission_of(server).num_tokens == 6
            next_one = waits(server, sender, 1, ["abcdefghij"])
        assert next_one.result().status_code == 200
        until_empty(server)


class GoesAwayError(Exception):
    """What a client raises in the middle of its body."""


def test_a_body_that_never_comes_holds_its_place_until_the_client_is_gone() -> None:
    with serve_fake(max_queue_requests=1) as server:
        goes_on = threading.Event()

        def body() -> Iterator[bytes]:
            yield b'{"input": '
            assert goes_on.wait(TIMEOUT_S)
            raise GoesAwayError

        def send() -> None:
            with server.client() as client, pytest.raises(GoesAwayError):
                client.post("/api/embed", content=body())

        slow = threading.Thread(target=send)
        slow.start()
        until(lambda: admission_of(server).num_requests == 1)
        check_refused(server.embed({"input": "a"}), "max_queue_requests")
        goes_on.set()
        slow.join()
        until_empty(server)
        assert server.embed({"input": "a"}).status_code == 200


def explode(*arguments: object) -> None:
    raise RuntimeError("no")


@pytest.mark.parametrize("method", ["run", "tokenize", "costs"])
def test_what_fails_leaves_its_place(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_fake(max_queue_requests=1) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.model, method, explode)
            assert server.embed({"input": ["a", "b"]}).status_code == 500
        until_empty(server)


@pytest.mark.parametrize("body", [{"input": 5}, {"input": "a", "model": "nope"}, {"input": []}])
def test_what_is_refused_or_empty_leaves_its_place(body: dict[str, Any]) -> None:
    with serve_fake(max_queue_requests=1) as server:
        assert server.embed(body).status_code in (200, 400, 404)
        until_empty(server)


def test_a_key_is_asked_for_before_a_place() -> None:
    with serve_fake(max_queue_requests=1, api_key="secret") as server:
        place = admission_of(server).admit()
        assert server.embed({"input": "a"}).status_code == 401
        place.leave()


def test_retry_after_is_what_the_queue_will_take_at_the_measured_rate() -> None:
    with serve_fake(max_queue_requests=1) as server:
        with server.held_worker():  # 6 tokens

            def told(num_tokens: int, seconds: float) -> str:
                server.server.metrics.rate.count(num_tokens, seconds)
                answer = server.embed({"input": "a"})
                check_refused(answer)
                return str(answer.headers["retry-after"])

            assert server.embed({"input": "a"}).headers["retry-after"] == "5", "nothing is measured"
            assert told(2, 1e4) == "600"
            assert told(1000, 1e4) == "60"
            assert told(10**9, 1.0) == "1"
        until_empty(server)


def test_steps_tell_the_rate() -> None:
    with serve_fake() as server:
        assert server.server.metrics.rate.seconds_for(1) is None
        server.embed({"input": "abc"})
        until(lambda: server.server.metrics.rate.seconds_for(1) is not None)


def test_a_job_holds_what_it_costs_to_compute_and_nothing_once_its_rows_are_there(
    sender: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_fake(max_queue_tokens=20) as server:
        admission = admission_of(server)
        held: list[int] = []
        monkeypatch.setattr(
            server.server.metrics, "count_job", lambda *_: held.append(admission.num_tokens)
        )
        with server.held_worker():
            monkeypatch.setattr(server.model, "costs", lambda tokens: [1] * len(tokens))
            waiting = waits(server, sender, 1, ["abc", "abd"])
            assert admission.num_tokens == 6 + 2
        assert waiting.result().status_code == 200
        assert min(held) == 0
        until_empty(server)


def test_tokens_are_held_while_the_rest_is_still_tokenized(
    sender: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_fake(max_queue_tokens=100) as server:
        goes_on = threading.Event()
        tokenize = server.model.tokenize

        def slow(texts: list[str], *others: Any) -> Any:
            assert len(texts) > 1 or goes_on.wait(TIMEOUT_S)
            return tokenize(texts, *others)

        monkeypatch.setattr(server.model, "tokenize", slow)
        sent = sender.submit(server.embed, {"input": [*["a"] * 64, "b"]})  # two parts
        try:
            until(lambda: admission_of(server).num_tokens == 192)
            check_refused(server.embed({"input": "a"}), "it holds 192 tokens, the limit is 100")
        finally:
            goes_on.set()
        assert sent.result().status_code == 200
