"""Several threads submit and cancel while batches run, preempt, fail and split: every job that was
accepted ends exactly once, with its own rows, and nothing is left."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batcher.batches import BatchFailed, Preempt
from batcher.jobs import Job
from batcher.worker import Worker, WorkerClosed
from tests.batcher.trouble import LACKS_MEMORY, TROUBLES, rows_of

PATIENCE_S = 30.0
URGENT = 8
NUM_THREADS, NUM_JOBS = 4, 150
HELD = ["held", "held too"]  # payloads of the batch that a test holds
OVERTAKES = "overtakes"  # that of the job which runs within it


class Key(str):
    """Whoever looks for it lets another thread go on, in the midst of what the lock must guard."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0)
        return super().__hash__()


class Sent:
    """An accepted job. `ends` has an entry for each time that it ended."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ends: list[None] = []
        self.ended = threading.Event()
        self.was_cancelled = False
        job.on_end = self._on_end

    def _on_end(self) -> None:
        self.ends.append(None)  # atomic, as a count would not be
        self.ended.set()

    def check(self) -> None:
        job = self.job
        assert self.ended.wait(PATIENCE_S)
        assert len(self.ends) == 1
        assert job.error is None or isinstance(job.error, BatchFailed | WorkerClosed)
        assert job.num_missing == 0 or self.was_cancelled or job.error is not None
        for payload, row in zip(job.payloads, job.rows, strict=True):
            assert row in (f"{job.group}{payload}", None)
        assert job.num_missing == job.rows.count(None)


class World:
    """A worker whose batches preempt thrice and go wrong now and then, and who sends it jobs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sent: list[Sent] = []
        self.is_held, self.may_go_on = threading.Event(), threading.Event()
        self.is_under_way = threading.Event()
        self.trouble = random.Random(seed)  # of the worker's thread alone
        self.worker = Worker(self.run, 50, max_urgent_tokens=URGENT)

    def run(self, group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[Any]:
        trouble = self.trouble.choice([*TROUBLES, *[""] * 7])
        if {*HELD, OVERTAKES} & set(payloads):
            trouble = LACKS_MEMORY if HELD[0] in payloads else ""
        if HELD[0] in payloads:
            self.is_held.set()
            assert self.may_go_on.wait(PATIENCE_S)
        for _ in range(3):
            if preempt is not None:
                preempt()
        return rows_of(group, payloads, trouble)

    def submit(self, group: str, payloads: Sequence[str], cost: int, has_keys: bool) -> Sent:
        """Raises WorkerClosed."""
        costs, keys = [cost] * len(payloads), [Key(payload) for payload in payloads]
        one = Sent(Job(group, payloads, costs, keys=keys if has_keys else None))
        self.worker.submit(one.job)
        self.sent.append(one)
        if len(self.sent) >= NUM_JOBS:
            self.is_under_way.set()
        return one

    def cancel(self, one: Sent) -> None:
        one.was_cancelled = True
        self.worker.cancel(one.job)

    def hold_a_batch(self) -> list[Sent]:
        """One long batch of two; an urgent job and an equal have come meanwhile, and it will lack
        memory once: what must happen at the least, whatever the threads are up to."""
        held = [self.submit("m", HELD, 20, True)]
        assert self.is_held.wait(PATIENCE_S)
        held.append(self.submit("n", [OVERTAKES], 1, False))
        held.append(self.submit("m", HELD[:1], 20, True))
        return held

    def play(self, number: int) -> None:
        """One thread's part."""
        rng = random.Random(100 * self.seed + number)
        own: list[Sent] = []
        for _ in range(NUM_JOBS):
            payloads = rng.choices("abcdefgh", k=rng.randint(1, 6))
            cost, has_keys = rng.choice([1, 4, 40]), rng.random() < 0.5
            try:
                own.append(self.submit(rng.choice("mn"), payloads, cost, has_keys))
            except WorkerClosed:
                return
            if rng.random() < 0.25:
                self.cancel(rng.choice(own))
            if rng.random() < 0.25:
                self.cancel(self.sent[rng.randrange(3, len(self.sent))])  # anybody's
            if rng.random() < 0.25:  # else all would be sent before most is computed
                assert own[-1].ended.wait(PATIENCE_S)


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """Threads take turns a hundred times as often as they usually do."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


def check_left_nothing(worker: Worker) -> None:
    assert (len(worker._jobs), worker.num_waiting_jobs, worker.num_waiting_tokens) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_every_job_ends_once_whoever_comes_and_goes_while_batches_run(seed: int) -> None:
    world = World(seed)
    held = world.hold_a_batch()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        playing = [pool.submit(world.play, number) for number in range(NUM_THREADS)]
        world.may_go_on.set()
        for part in playing:
            part.result()
    for one in world.sent:
        one.check()
    assert len(world.sent) == len(held) + NUM_THREADS * NUM_JOBS
    assert [one.job.error for one in held] == [None] * len(held)
    check_left_nothing(world.worker)
    assert world.worker.num_preemptions > 0
    assert world.worker.num_shared > 0
    assert world.worker.num_splits > 0
    assert world.worker.stop(PATIENCE_S)


@pytest.mark.parametrize("seed", range(6, 9))
def test_what_a_worker_accepted_before_it_was_stopped_ends_once(seed: int) -> None:
    world = World(seed)
    world.hold_a_batch()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        playing = [pool.submit(world.play, number) for number in range(NUM_THREADS)]
        world.may_go_on.set()
        assert world.is_under_way.wait(PATIENCE_S)
        world.worker.stop(0.0)
        for part in playing:
            part.result()
    for one in world.sent:
        one.check()
    check_left_nothing(world.worker)
    assert world.worker.stop(PATIENCE_S)
