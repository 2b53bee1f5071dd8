"""A step's forward and what may go wrong in it: each sequence gets its row or its failure.

A step that needs more memory than there is runs again in halves. Must not know threads or the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from batcher.job import Job

log = logging.getLogger("embedding.lane")

Pause = Callable[[], None]  # called by a forward between two layers, on the lane's thread
RunStep = Callable[[Hashable, list[Any], Pause | None], Sequence[Any]]
Member = tuple[Job, int]


def is_memory_error(error: BaseException) -> bool:
    """Python's own."""
    return isinstance(error, MemoryError)


class StepFailed(Exception):
    """The forward of this job's step raised; the cause is chained and logged, never shown."""

    def of(self, place: int) -> StepFailed:
        """As the job is told whose sequence it counts by `place`."""
        return self


class RowFailed(StepFailed):
    """One sequence has no answer, for a reason that may be told."""

    def of(self, place: int) -> StepFailed:
        """Equal sequences stand in different places of their requests."""
        return RowFailed(f"input {place}: {self}")


class StepRunner:
    """`run_step(group, payloads, pause)` gives one row a payload, in order; an Exception in a row's
    place is that sequence's failure. After `is_out_of_memory`, `free` is called and less is tried.
    """

    def __init__(
        self,
        run_step: RunStep,
        is_out_of_memory: Callable[[BaseException], bool],
        free: Callable[[], None],
    ) -> None:
        self._run_step = run_step
        self._is_out_of_memory = is_out_of_memory
        self._free = free
        self.num_splits = 0

    def run(self, group: Hashable, members: Sequence[Member], pause: Pause | None) -> list[Any]:
        """A row or a StepFailed a member. Only what is no Exception is raised."""
        payloads = [job.payloads[index] for job, index in members]
        error = None
        try:
            rows = self._run_step(group, payloads, pause)
            if len(rows) != len(payloads):  # no assert: it must hold under `python -O` too
                raise ValueError(f"{len(rows)} rows for {len(payloads)} sequences")
        except Exception as raised:
            error = raised
        if error is None:
            return _checked(rows, members)
        if not self._is_out_of_memory(error):
            return self._all_failed(members, error)
        del error  # with its traceback go the tensors of the failed try
        return self._in_halves(group, members, pause)

    def _in_halves(
        self, group: Hashable, members: Sequence[Member], pause: Pause | None
    ) -> list[Any]:
        self._free()
        if len(members) == 1:
            log.error("no memory for one sequence of %d tokens", _num_tokens(members))
            return [RowFailed("the model has not enough memory for it")]
        log.warning(
            "no memory for a step of %d sequences, %d tokens: it runs again in halves",
            len(members),
            _num_tokens(members),
        )
        self.num_splits += 1
        half = len(members) // 2
        return [
            *self.run(group, members[:half], pause),
            *self.run(group, members[half:], pause),
        ]

    def _all_failed(self, members: Sequence[Member], error: Exception) -> list[Any]:
        lengths = _lengths(members)
        log.error(
            "a step of %d sequences, tokens %s, failed", len(members), lengths, exc_info=error
        )
        failure = StepFailed("this step's forward failed")
        failure.__cause__ = error
        return [failure] * len(members)


def _checked(rows: Sequence[Any], members: Sequence[Member]) -> list[Any]:
    """Failures in rows' places are logged once a step: a broken model may have nothing else."""
    failed = [place for place, row in enumerate(rows) if isinstance(row, Exception)]
    if failed:
        log.error(
            "%d of a step's %d sequences failed, tokens %s: %s",
            len(failed),
            len(members),
            _lengths([members[place] for place in failed]),
            rows[failed[0]],
        )
    return [RowFailed(str(row)) if isinstance(row, Exception) else row for row in rows]


def _lengths(members: Sequence[Member]) -> list[int]:
    return sorted(job.costs[index] for job, index in members)


def _num_tokens(members: Sequence[Member]) -> int:
    return sum(job.costs[index] for job, index in members)
