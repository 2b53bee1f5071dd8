"""Random arrivals, cancellations, failures and preemptions on a real worker: every job ends exactly
once, with its own rows, and nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.batches import BatchFailed, Preempt, RowFailed
from batcher.jobs import Job
from batcher.worker import Worker
from tests.batcher.trouble import TROUBLES, rows_of

PATIENCE_S = 30.0
URGENT = 8

SUBMIT = st.tuples(
    st.just("submit"),
    st.sampled_from("mn"),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6),
    st.sampled_from([1, 4, 40]),
    st.booleans(),
)
OTHER = st.tuples(st.sampled_from(["cancel", *TROUBLES]), st.integers(0, 20))
SCRIPT = st.lists(SUBMIT | OTHER, max_size=40)


@dataclass(slots=True, eq=False)
class Sent:
    job: Job
    ended: threading.Event
    num_ends: int = 0
    was_cancelled: bool = False


class World:
    """Plays the script: an event before each batch and at each preemption point, on the thread."""

    def __init__(self, script: list[Any]) -> None:
        self.script = list(reversed(script))
        self.sent: list[Sent] = []
        self.trouble: str = ""
        self.worker = Worker(self.run, 50, max_urgent_tokens=URGENT)

    def play(self) -> None:
        if not self.script:
            return
        what, *rest = self.script.pop()
        if what == "submit":
            self.submit(*rest)
        elif what == "cancel" and self.sent:
            one = self.sent[rest[0] % len(self.sent)]
            one.was_cancelled = one.was_cancelled or not one.job.ended
            self.worker.cancel(one.job)
        else:
            self.trouble = what

    def submit(self, group: str, payloads: list[str], cost: int, has_keys: bool) -> None:
        costs = [cost] * len(payloads)
        job = Job(group, payloads, costs, keys=payloads if has_keys else None)
        one = Sent(job, threading.Event())

        def on_end() -> None:
            one.num_ends += 1
            one.ended.set()

        job.on_end = on_end
        self.sent.append(one)
        self.worker.submit(job)

    def run(self, group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[Any]:
        for _ in range(3):
            self.play()
            if preempt is not None:
                preempt()
        trouble, self.trouble = self.trouble, ""
        return rows_of(group, payloads, trouble)


@settings(max_examples=150, deadline=None)
@given(SCRIPT)
def test_every_job_ends_once_with_its_own_rows(script: list[Any]) -> None:
    world = World(script)
    while world.script:
        world.submit("m", ["z"], 1, False)  # something to run, so that the script goes on
        assert world.sent[-1].ended.wait(PATIENCE_S)
    for one in world.sent:
        assert one.ended.wait(PATIENCE_S)
    assert len(world.worker._jobs) == 0
    assert world.worker.num_waiting_tokens == 0
    assert world.worker.stop(PATIENCE_S)
    for one in world.sent:
        assert one.num_ends == 1
        job = one.job
        if one.was_cancelled:
            continue
        if job.error is None:
            assert job.rows == [f"{job.group}{payload}" for payload in job.payloads]
        else:
            assert isinstance(job.error, (BatchFailed, RowFailed))
