"""One batch that runs: its forward, what may go wrong in it, and whose time it takes.

Each sequence gets its row or its failure. A batch that needs more memory than there is runs again
in halves. This file knows no thread and no queue, and reads no clock: it is told the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from batcher.scheduler import Batch

log = logging.getLogger("embedding.worker")

Preempt = Callable[[], None]  # a forward calls it between two layers, on the worker's thread
RunBatch = Callable[[Hashable, list[Any], Preempt | None], Sequence[Any]]
Member = tuple[Any, int]  # a job, and the index of one of its sequences

_EARNED = 2 / 3  # seconds of urgent work for each second of long work: two fifths of the time
_MAX_SAVED_S = 1.0  # after a quiet time; more would let a burst stop the long work for longer
_MAX_DEBT_S = 10.0  # one batch that hung must not keep urgent jobs waiting for as long


def is_memory_error(error: BaseException) -> bool:
    """Whether it is Python's own MemoryError."""
    return isinstance(error, MemoryError)


class BatchFailed(Exception):
    """The forward of this job's batch raised. The cause is chained and logged, never shown."""

    def of(self, row_index: int) -> BatchFailed:
        """The error to show to the job that counts its sequence by `row_index`."""
        return self


class RowFailed(BatchFailed):
    """One sequence has no answer, for a reason that may be shown."""

    def of(self, row_index: int) -> BatchFailed:
        """Identical sequences have different indices in their requests."""
        return RowFailed(f"input {row_index}: {self}")


@dataclass(slots=True, eq=False)
class RunningBatch:
    """`batch` holds only the sequences that it computes. `riders` maps a member to the identical
    ones of the same batch, which take its row. Times are in seconds of one clock."""

    batch: Batch
    started_at: float
    resumed_at: float  # when its bulk last began to be counted
    riders: dict[Member, list[Member]] = field(default_factory=dict)
    nested_s: float = 0.0  # what urgent batches took in the middle of it

    def bulk_s(self, now: float) -> float:
        """The time that its bulk has had since it started, resumed, or since the last call."""
        seconds = now - self.resumed_at
        self.resumed_at = now
        return seconds * self.batch.num_bulk_tokens / self.batch.num_tokens

    def resume(self, now: float, nested_s: float) -> None:
        """Go on after a nested batch that took `nested_s`."""
        self.resumed_at = now
        self.nested_s += nested_s


class UrgentShare:
    """Urgent batches take less than half of the worker's time while long ones wait for them.

    An urgent batch may begin while urgent work has not spent more than long work has earned. With
    the cost of each change, and HTTP on the same cores, long work keeps two fifths of its rate.
    """

    def __init__(self) -> None:
        self._saved_s = 0.0
        self.may_begin = True

    def earn(self, seconds: float) -> None:
        """Long work ran for so long."""
        self._set(min(self._saved_s + seconds * _EARNED, _MAX_SAVED_S))

    def spend(self, seconds: float) -> None:
        """Urgent work ran for so long."""
        self._set(max(self._saved_s - seconds, -_MAX_DEBT_S))

    def _set(self, saved_s: float) -> None:
        self._saved_s = saved_s
        self.may_begin = saved_s >= 0


class BatchRunner:
    """`run_batch(group, payloads, preempt)` returns one row per payload, in order. An Exception in
    place of a row is the failure of that sequence. When `is_out_of_memory` says so of an error,
    `free` is called and the batch is tried again in halves.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        is_out_of_memory: Callable[[BaseException], bool],
        free: Callable[[], None],
    ) -> None:
        self._run_batch = run_batch
        self._is_out_of_memory = is_out_of_memory
        self._free = free
        self.num_splits = 0

    def run(
        self, group: Hashable, members: Sequence[Member], preempt: Preempt | None
    ) -> Sequence[Any]:
        """A row or a BatchFailed for each member. Raises only what is not an Exception."""
        payloads = [job.payloads[index] for job, index in members]
        error = None
        try:
            rows = self._run_batch(group, payloads, preempt)
            if len(rows) != len(payloads):  # not an assert: it must hold under `python -O` too
                raise ValueError(f"{len(rows)} rows for {len(payloads)} sequences")
        except Exception as raised:
            error = raised
        if error is None:
            for row in rows:
                if isinstance(row, Exception):
                    return _with_failures(rows, members)
            return rows
        if not self._is_out_of_memory(error):
            return _all_failed(members, error)
        del error  # its traceback keeps the tensors of the failed try alive
        return self._in_halves(group, members, preempt)

    def _in_halves(
        self, group: Hashable, members: Sequence[Member], preempt: Preempt | None
    ) -> list[Any]:
        self._free()
        num_tokens = sum(_lengths(members))
        if len(members) == 1:
            log.error("not enough memory for one sequence of %d tokens", num_tokens)
            return [RowFailed("the model has not enough memory for it")]
        log.warning(
            "not enough memory for a batch of %d sequences, %d tokens: it runs again in halves",
            len(members),
            num_tokens,
        )
        self.num_splits += 1
        half = len(members) // 2
        return [
            *self.run(group, members[:half], preempt),
            *self.run(group, members[half:], preempt),
        ]


def _all_failed(members: Sequence[Member], error: Exception) -> list[Any]:
    lengths = _lengths(members)
    log.error("a batch of %d sequences, tokens %s, failed", len(members), lengths, exc_info=error)
    failure = BatchFailed("this batch's forward failed")
    failure.__cause__ = error
    return [failure] * len(members)


def _with_failures(rows: Sequence[Any], members: Sequence[Member]) -> list[Any]:
    """Failed rows are logged once per batch: a broken model may produce nothing else."""
    failed = [index for index, row in enumerate(rows) if isinstance(row, Exception)]
    log.error(
        "%d of a batch's %d sequences failed, tokens %s: %s",
        len(failed),
        len(members),
        _lengths([members[index] for index in failed]),
        rows[failed[0]],
    )
    return [RowFailed(str(row)) if isinstance(row, Exception) else row for row in rows]


def _lengths(members: Sequence[Member]) -> list[int]:
    return sorted(job.costs[index] for job, index in members)
