"""A compute thread that dies: its jobs fail, /health says so, a successor comes, a few times."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

import pytest

from batcher.batches import Preempt
from batcher.jobs import Job
from batcher.worker import Worker, WorkerClosed
from serving.server import MAX_RESTARTS, supervise
from tests.serving.fake_engine import FakeServer, serve_fake, until

PATIENCE_S = 30.0
dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def run(group: Hashable, payloads: list[Any], preempt: Preempt | None) -> list[Any]:
    if "die" in payloads:
        raise SystemExit
    return payloads


def kill(worker: Worker) -> None:
    thread = worker._thread  # it may have a successor at once
    worker.submit(Job("m", ["die"], [1]))
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


async def _comes_alive(worker: Worker) -> None:
    while not worker.alive:
        await asyncio.sleep(0.005)


@dies
def test_a_dead_thread_gets_a_successor_a_few_times() -> None:
    async def check() -> None:
        worker = Worker(run, 4)
        supervising = asyncio.create_task(supervise(worker, pause_s=0.0))
        for _ in range(MAX_RESTARTS):
            await asyncio.to_thread(kill, worker)
            await asyncio.wait_for(_comes_alive(worker), PATIENCE_S)
        await asyncio.to_thread(kill, worker)
        await asyncio.wait_for(supervising, PATIENCE_S)
        assert not worker.alive
        with pytest.raises(WorkerClosed):
            worker.submit(Job("m", ["a"], [1]))

    asyncio.run(check())


@dies
def test_old_deaths_are_forgotten() -> None:
    async def check() -> None:
        worker = Worker(run, 4)
        supervising = asyncio.create_task(supervise(worker, pause_s=0.0, window_s=0.0))
        for _ in range(MAX_RESTARTS + 2):
            await asyncio.to_thread(kill, worker)
            await asyncio.wait_for(_comes_alive(worker), PATIENCE_S)
        supervising.cancel()
        worker.stop(PATIENCE_S)

    asyncio.run(check())


def test_a_worker_that_was_stopped_is_left_alone() -> None:
    async def check() -> None:
        worker = Worker(run, 4)
        supervising = asyncio.create_task(supervise(worker, pause_s=0.0))
        await asyncio.to_thread(worker.stop, PATIENCE_S)
        await asyncio.wait_for(supervising, PATIENCE_S)
        assert not worker.alive

    asyncio.run(check())


@dies
def test_health_tells_the_truth_before_and_after() -> None:
    with serve_fake() as server:
        _die_in_the_next_step(server)
        assert server.embed({"input": "a"}).status_code == 503
        until(lambda: server.get("/health").status_code == 503)
        assert "died" in server.get("/ready").json()["reason"]
        assert server.get("/live").status_code == 200
        worker = server.serving.worker
        worker.revive()
        assert server.get("/health").status_code == 200
        assert server.embed({"input": "a"}).status_code == 200


def test_a_step_that_hangs_turns_health_red_until_it_ends() -> None:
    with serve_fake(batch_timeout_s=0.05) as server:
        with server.held_worker():
            until(lambda: server.get("/health").status_code == 503)
            assert "hangs" in server.get("/ready").json()["reason"]
            assert server.get("/live").status_code == 200
        until(lambda: server.get("/health").status_code == 200)


def _die_in_the_next_step(server: FakeServer) -> None:
    model = server.model
    once = [SystemExit()]
    run = model.run

    def die_once(step: Any) -> Any:
        if once:
            raise once.pop()
        return run(step)

    model.run = die_once


def test_a_vector_that_is_no_number_fails_its_own_request_and_names_it() -> None:
    with serve_fake() as server:
        model, run = server.model, server.model.run

        def spoil(step: Any) -> Any:
            rows = run(step)
            for tokens, row in zip(step, rows, strict=True):
                if ord("z") in tokens.ids:
                    row.dense[0] = float("nan")
            return rows

        model.run = spoil
        answer = server.embed({"input": ["a", "z", "b"]})
        assert answer.status_code == 500
        assert answer.json() == {"error": "input 1: the model's answer is not a finite number"}
        assert server.embed({"input": ["a", "b"]}).status_code == 200
