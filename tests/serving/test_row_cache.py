"""The cache of recent rows: exact, bounded in bytes, off by default; equal texts run once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.outputs import Outputs, Sparse
from serving.row_cache import RowCache
from tests.serving.fake_engine import NAME, serve_fake

MODEL = ("m", 1.0)


def views(value: float, width: int = 8) -> Outputs:
    return Outputs(np.full(width, value, dtype=np.float32))


def test_what_is_kept_is_found_for_that_loading_of_the_model_alone() -> None:
    cache = RowCache(10_000)
    cache.keep(MODEL, ["a", "b"], [views(1), views(2)])
    found = cache.find(MODEL, ["b", "c", "a"])
    assert [None if row is None else row.dense[0] for row in found] == [2, None, 1]
    assert cache.find(("m", 2.0), ["a"]) == [None]
    assert (cache.num_hits, cache.num_misses) == (2, 2)


def test_a_kept_row_holds_no_more_than_itself() -> None:
    step = np.zeros((1000, 8), dtype=np.float32)
    cache = RowCache(10_000)
    cache.keep(MODEL, ["a"], [Outputs(step[3])])
    (row,) = cache.find(MODEL, ["a"])
    assert row.dense.base is None


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 400)), max_size=40))
def test_its_bytes_have_a_limit(entries: list[tuple[str, int]]) -> None:
    cache = RowCache(3_000)
    for key, width in entries:
        cache.keep(MODEL, [key], [views(1, width)])
        assert cache.num_bytes <= 3_000


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = RowCache(3_000)
    cache.keep(MODEL, ["a"], [views(1)])
    cache.keep(MODEL, ["big"], [views(1, 3_000)])
    assert cache.find(MODEL, ["big"]) == [None]
    assert cache.find(MODEL, ["a"]) != [None]


def test_all_views_count() -> None:
    cache = RowCache(100_000)
    sparse = Sparse(np.zeros(100, np.int64), np.zeros(100, np.float32))
    colbert = np.zeros((50, 8), np.float32)
    cache.keep(MODEL, ["a"], [Outputs(np.zeros(8, np.float32), sparse, colbert)])
    assert cache.num_bytes >= 100 * 12 + 50 * 32 + 32


def test_a_text_that_came_before_is_not_computed_again() -> None:
    with serve_fake(cache_bytes="1MB") as server:
        first = server.embed({"input": ["a", "b"]}).json()["embeddings"]
        again = server.embed({"input": ["b", "c", "a"]}).json()
        assert again["embeddings"][0] == first[1]
        assert again["embeddings"][2] == first[0]
        assert again["prompt_eval_count"] == 9
        assert server.engine.steps == [(NAME, 2), (NAME, 1)]
        assert server.embed({"input": ["a", "b", "c"]}).status_code == 200
        assert len(server.engine.steps) == 2
        metrics = server.get("/metrics").text
        assert "embedding_cache_hits_total 5.0" in metrics
        assert "embedding_cache_misses_total 3.0" in metrics


def test_without_a_cache_everything_is_computed() -> None:
    with serve_fake() as server:
        for _ in range(2):
            server.embed({"input": "a"})
        assert server.engine.steps == [(NAME, 1), (NAME, 1)]


def test_a_bad_row_is_named_by_its_place_in_the_request() -> None:
    with serve_fake(cache_bytes="1MB") as server:
        server.embed({"input": ["a", "b"]})
        run = server.model.run

        def spoil(step: Any) -> Any:
            rows = run(step)
            rows[0].dense[0] = float("nan")
            return rows

        server.model.run = spoil
        answer = server.embed({"input": ["a", "b", "z"]})
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("input 2: ")


def test_identical_requests_at_the_same_time_are_one_computation() -> None:
    with serve_fake() as server:
        answers: list[Any] = []

        def ask() -> None:
            answers.append(server.embed({"input": ["same", "text"]}).json()["embeddings"])

        with server.held_worker():
            clients = [threading.Thread(target=ask) for _ in range(5)]
            for client in clients:
                client.start()
            server.wait_for(lambda worker: worker.num_waiting_jobs == 5)
        for client in clients:
            client.join()
        assert len(answers) == 5
        assert all(answer == answers[0] for answer in answers)
        computed = sum(count for _, count in server.engine.steps)
        assert computed == 1 + 2  # the one that held the worker, and these once
        assert "embedding_coalesced_total 8.0" in server.get("/metrics").text
