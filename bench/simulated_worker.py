"""A worker on a virtual clock, with the real scheduler and the real share of urgent work.

A batch costs what a model of costs says. These rules of batcher/worker.py are mirrored and no
others: a batch is what the scheduler gives as soon as the worker is free; a long batch can be
preempted before each part of a layer; then, and before long work goes on, an urgent batch runs if
the share lets it; each second of an outer batch earns its bulk's part, each second of an urgent one
is spent. No job is cancelled, fails or shares rows.
Must not know what is measured, nor torch. Invariant: the same jobs give the same times on every
machine; only `add_s` and `take_s`, the scheduler's own cost, are read off a real clock.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batcher.batches import UrgentShare
from batcher.scheduler import Batch, Scheduler


@dataclass(frozen=True, slots=True)
class CostModel:
    """A batch takes `fixed_s + token_s * tokens` seconds, each of `num_parts` as long: a layer is
    attention and the two halves of the feed-forward, and can be preempted before each."""

    name: str
    fixed_s: float
    token_s: float
    num_parts: int

    def seconds(self, num_tokens: int) -> float:
        return self.fixed_s + self.token_s * num_tokens


# bge-m3's shape on two AVX2 cores: a 16-token query 0.3 s, 1,024 tokens 6.3 s; 24 layers.
BGE_M3 = CostModel("bge-m3", 0.2, 0.006, 72)


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """One request: it comes, and ends when the last of its sequences has been computed. Its client
    is a kind and a number, as in "bulk 2"."""

    client: str
    costs: Sequence[int]
    then: Callable[[SimulatedWorker], None] | None = None  # what its client does with the answer
    num_missing: int = 0
    came_s: float = 0.0
    ended_s: float = math.inf
    came_at_token: int = 0  # tokens that the worker had computed by then
    ended_at_token: int = 0

    @property
    def kind(self) -> str:
        return self.client.partition(" ")[0]

    def wait_s(self, now_s: float) -> float:
        """Until its answer, or until now if it has none yet."""
        return min(self.ended_s, now_s) - self.came_s


class SimulatedWorker:
    """Send jobs, run, read `jobs`: all that have come, in that order.

    `max_urgent_tokens` 0: no batch is preempted.
    """

    def __init__(
        self, model: CostModel, max_batch_tokens: int = 1024, max_urgent_tokens: int = 64
    ) -> None:
        self.now_s = 0.0
        self.num_tokens = 0  # computed
        self.tokens_of: dict[str, int] = {}  # the same by client
        self.jobs: list[SimulatedJob] = []
        self.num_batches = self.num_preemptions = self.num_taken = 0
        self.add_s = self.take_s = 0.0  # wall seconds in the scheduler
        self.batches: list[Batch] | None = (
            None  # put a list there to keep them, in order of beginning
        )
        self._model = model
        self._max_batch_tokens = max_batch_tokens
        self._scheduler = Scheduler(max_urgent_tokens)
        self._share = UrgentShare()
        self._coming: list[tuple[float, int, SimulatedJob]] = []
        self._num_sent = 0

    def send(self, job: SimulatedJob, at_s: float) -> None:
        """The job comes at that time, or now if that is past."""
        self._num_sent += 1
        heapq.heappush(self._coming, (at_s, self._num_sent, job))

    def run(self, until_s: float = math.inf) -> None:
        """Until nothing is left to do, or until the batch that runs at `until_s` has ended."""
        while self.now_s < until_s:
            self._let_in()
            batch = self._take()
            if batch is not None:
                self._run(batch)
            elif self._coming:
                self.now_s = max(self.now_s, self._coming[0][0])
            else:
                return

    def _let_in(self) -> None:
        """Whoever has come by now."""
        while self._coming and self._coming[0][0] <= self.now_s:
            came_s, _, job = heapq.heappop(self._coming)
            job.came_s, job.came_at_token = came_s, self.num_tokens
            job.num_missing = len(job.costs)
            self.jobs.append(job)
            start = time.perf_counter()
            self._scheduler.add(job, "model", job.costs)
            self.add_s += time.perf_counter() - start

    def _take(self, urgent_alone: bool = False) -> Batch | None:
        start = time.perf_counter()
        if urgent_alone:
            batch = self._scheduler.take_urgent()
        else:
            batch = self._scheduler.take(self._max_batch_tokens, self._share.may_begin)
        self.take_s += time.perf_counter() - start
        if batch is not None:
            self.num_taken += len(batch.members)
            if self.batches is not None:
                self.batches.append(batch)
        return batch

    def _run(self, batch: Batch) -> None:
        if batch.is_urgent:
            self._run_urgent(batch)
            return
        num_parts = self._model.num_parts
        part_s = self._model.seconds(batch.num_tokens) / num_parts
        bulk_part = batch.num_bulk_tokens / batch.num_tokens
        if batch.num_bulk_tokens > self._scheduler.max_short_tokens:
            for _ in range(num_parts):
                self._preempt()
                self.now_s += part_s
                self._share.earn(part_s * bulk_part)
        else:
            self.now_s += part_s * num_parts
            self._share.earn(part_s * num_parts * bulk_part)
        self._finish(batch)

    def _preempt(self) -> None:
        self._let_in()
        if not self._scheduler.has_urgent or not self._share.may_begin:
            return
        batch = self._take(urgent_alone=True)
        if batch is not None:
            self.num_preemptions += 1
            self._run_urgent(batch)

    def _run_urgent(self, batch: Batch) -> None:
        taken_s = self._model.seconds(batch.num_tokens)
        self.now_s += taken_s
        self._share.spend(taken_s)
        self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        self.num_batches += 1
        self.num_tokens += batch.num_tokens
        for job, index in batch.members:
            self.tokens_of[job.client] = self.tokens_of.get(job.client, 0) + job.costs[index]
            job.num_missing -= 1
            if job.num_missing == 0:
                self._end(job)

    def _end(self, job: SimulatedJob) -> None:
        job.ended_s, job.ended_at_token = self.now_s, self.num_tokens
        if job.then is not None:
            job.then(self)


def fair_ends(jobs: Sequence[tuple[int, int]]) -> list[float]:
    """When each (came, tokens) job would end if every waiting job got equal service at any moment
    (processor sharing), in tokens computed. The worker is busy from the first to the last."""
    order = sorted(range(len(jobs)), key=lambda i: jobs[i][0])
    ends = [0.0] * len(jobs)
    waiting: list[tuple[float, int]] = []  # (what each waiting job will have got by its end, job)
    at = got = 0.0  # tokens computed; tokens that a job waiting since the start has got
    for next_job in [*order, None]:
        comes = math.inf if next_job is None else jobs[next_job][0]
        while waiting and at + (waiting[0][0] - got) * len(waiting) <= comes:
            last, job = heapq.heappop(waiting)
            at += (last - got) * (len(waiting) + 1)
            got, ends[job] = last, at
        if next_job is not None:
            if waiting:
                got += (comes - at) / len(waiting)
            at = max(at, comes)
            heapq.heappush(waiting, (got + jobs[next_job][1], next_job))
    return ends
