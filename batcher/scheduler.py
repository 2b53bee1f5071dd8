"""The scheduler: what waits, and which sequences make the next batch.

Weighted fair queueing over jobs, in tokens. It knows no clock, lock, thread, tensor or model, so
its policy is tested by tables. Each sequence carries a finish tag: `start + cost`, where `start` is
the virtual time at which its job came, or its predecessor's finish. The smallest finish goes first
and virtual time follows it (self-clocked fair queueing, Golestani 1994). A short job that comes now
goes before the rest of a long one, and the long one's next tag stays put while virtual time moves
towards it, so nobody starves. Jobs of few tokens are urgent: they can be taken ahead of the others,
which the worker does before and within a long batch, and limits. While urgent jobs are few, they
are taken in no other way, or they would ride in a long batch to its end. A crowd of them is also
taken by its tags, with everybody.
Invariant: every sequence that is added is either taken exactly once or withdrawn.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

# Bulk of more than this many times the urgent limit makes a long batch. A shorter one is soon over,
# and one of urgent jobs alone has nobody whose turn another urgent job should take.
_LONG = 2

# More waiting than this many times the urgent limit is a crowd: on their own these jobs would take
# as long as a batch of a thousand tokens, in which they can ride instead.
_CROWD = 4

# An urgent job has at most a quarter of the tokens of those whom it keeps waiting, on average. A
# small batch costs more per token than a full one: among similar texts it would only slow them all.
_SHORTER = 4

# The sequences of a batch may stand for this many times the budget when what they share is counted
# for each: indices, and vectors of every token where a head wants them, take memory for all of it.
_MAX_SPREAD = 64


@dataclass(slots=True, eq=False)
class Claim:
    """One job in the scheduler. `costs` are its sequences' tokens, in order: what each adds to the
    one before it in the same batch. `alone` is what each costs as the job's first in a batch."""

    owner: Any
    group: Hashable
    costs: Sequence[int]
    alone: Sequence[int]
    finish: int = 0  # tag of the next sequence
    num_taken: int = 0
    num_tokens: int = 0
    num_waiting_tokens: int = 0
    is_urgent: bool = False  # of few tokens
    withdrawn: bool = False  # or taken to its end: nothing of it waits

    def release(self) -> None:
        """Its entry in a heap must not keep its texts."""
        self.withdrawn = True
        self.num_waiting_tokens = 0
        self.owner, self.costs, self.alone = None, (), ()


_Entry = tuple[int, int, Claim]  # tag, order of coming


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one group that run together: `members` are (owner, index within its job)."""

    group: Hashable
    members: list[tuple[Any, int]]
    num_tokens: int
    num_bulk_tokens: int = 0  # of jobs that are not urgent
    is_urgent: bool = False  # taken ahead of the others


class _Queue:
    """What waits of one group: heaps of bulk and of urgent claims."""

    __slots__ = ("bulk", "urgent")

    def __init__(self) -> None:
        self.bulk: list[_Entry] = []
        self.urgent: list[_Entry] = []

    def first(self, with_urgent: bool) -> list[_Entry]:
        """The heap whose head goes next; an empty one when there is none."""
        _drop_withdrawn(self.bulk)
        if not with_urgent:
            return self.bulk
        _drop_withdrawn(self.urgent)
        if self.urgent and (not self.bulk or self.urgent[0] < self.bulk[0]):
            return self.urgent
        return self.bulk


class Scheduler:
    """Jobs wait here until their sequences are taken, at most `max_tokens` for each batch.

    Jobs of at most `max_urgent_tokens` are urgent if they are far shorter than the bulk that waits,
    or than that of the batch that was taken last. A batch with more than `max_short_tokens` of bulk
    is long: urgent jobs should not wait for it.
    Cost per batch: O(sequences of the batch x log waiting jobs).
    """

    def __init__(self, max_urgent_tokens: int = 0) -> None:
        self.max_urgent_tokens = max_urgent_tokens
        self.max_short_tokens = _LONG * max_urgent_tokens or math.inf
        self.num_waiting_jobs = 0
        self.num_waiting_tokens = 0
        self.num_bulk_tokens = 0  # those of jobs that are not urgent
        self._num_bulk_jobs = 0
        self._running = (0, 0)  # bulk jobs of the last batch, and all their tokens
        self._queues: dict[Hashable, _Queue] = {}
        self._virtual_time = 0
        self._num_added = 0  # breaks ties between equal tags: first come, first served

    def add(
        self,
        owner: Any,
        group: Hashable,
        costs: Sequence[int],
        alone: Sequence[int] | None = None,
    ) -> Claim:
        """Queue one job's sequences. A batch never mixes groups (a group is a model in memory).

        `alone` is for sequences that share a beginning, which each batch computes once. By default
        nothing is shared.
        """
        alone = costs if alone is None else alone
        assert costs, "a job without sequences has nothing to wait for"
        assert min(costs) > 0, "every sequence costs at least one token"
        assert len(alone) == len(costs)
        claim = Claim(owner, group, costs, alone, finish=self._virtual_time + costs[0])
        claim.num_tokens = claim.num_waiting_tokens = sum(costs)
        self._num_added += 1
        entry = (claim.finish, self._num_added, claim)
        queue = self._queues.setdefault(group, _Queue())
        claim.is_urgent = self._is_urgent(sum(alone))
        heapq.heappush(queue.urgent if claim.is_urgent else queue.bulk, entry)
        if not claim.is_urgent:
            self.num_bulk_tokens += claim.num_waiting_tokens
            self._num_bulk_jobs += 1
        self.num_waiting_jobs += 1
        self.num_waiting_tokens += claim.num_waiting_tokens
        return claim

    def _is_urgent(self, num_tokens: int) -> bool:
        """Whether a job of so many tokens is far shorter than those whom it would keep waiting."""
        bulk = [(self._num_bulk_jobs, self.num_bulk_tokens), self._running]
        means = [tokens / jobs for jobs, tokens in bulk if jobs]
        is_shorter = num_tokens * _SHORTER <= max(means, default=math.inf)
        return num_tokens <= self.max_urgent_tokens and is_shorter

    def withdraw(self, claim: Claim) -> None:
        """Take back what of a job has not been taken yet. Twice, or too late, is harmless."""
        if claim.withdrawn or not claim.num_waiting_tokens:
            return
        self.num_waiting_jobs -= 1
        self.num_waiting_tokens -= claim.num_waiting_tokens
        if not claim.is_urgent:
            self.num_bulk_tokens -= claim.num_waiting_tokens
            self._num_bulk_jobs -= 1
        claim.release()

    def take(self, max_tokens: int, may_overtake: bool = False) -> Batch | None:
        """The next batch, or None when nothing waits. A sequence over the limit runs alone.

        With `may_overtake`, urgent jobs come first if long work waits. A beginning that the first
        sequence shares with those before it comes on top of the limit: else each batch behind a
        long beginning would hold a single sequence.
        """
        is_long = self.num_bulk_tokens > self.max_short_tokens
        if may_overtake and is_long and self.has_urgent and (batch := self.take_urgent()):
            return batch
        with_urgent = not is_long or self._is_crowd
        group = self._next_group(with_urgent)
        if group is None:
            return None
        queue = self._queues[group]
        members: list[tuple[Any, int]] = []
        begun: set[int] = set()  # claims that have a member in this batch
        num_tokens = num_alone = num_bulk = limit = 0
        num_jobs = num_job_tokens = 0
        while heap := queue.first(with_urgent):
            claim = heap[0][2]
            own, alone = claim.costs[claim.num_taken], claim.alone[claim.num_taken]
            cost = own if id(claim) in begun else alone
            if not members:
                limit = max_tokens + alone - own
            elif num_tokens + cost > limit or num_alone + alone > max_tokens * _MAX_SPREAD:
                break
            if not claim.is_urgent and id(claim) not in begun:
                num_jobs += 1
                num_job_tokens += claim.num_tokens
            begun.add(id(claim))
            members.append((claim.owner, claim.num_taken))
            num_tokens += cost
            num_alone += alone
            num_bulk += 0 if claim.is_urgent else cost
            self._advance(heap, claim, cost)
        self._running = (num_jobs, num_job_tokens)
        return Batch(group, members, num_tokens, num_bulk)

    @property
    def has_urgent(self) -> bool:
        """Whether `take_urgent` may give something. Cheap, and needs no lock."""
        return self.num_waiting_tokens > self.num_bulk_tokens

    def take_urgent(self) -> Batch | None:
        """The urgent jobs that wait, by their tags, ahead of everything else: jobs of one group,
        together at most `max_urgent_tokens`. None when there is none. Virtual time stays: it counts
        the others' service, and would run ahead of what waits, to the harm of whoever comes next.
        """
        heads = []
        for group, queue in self._queues.items():
            _drop_withdrawn(queue.urgent)
            if queue.urgent:
                heads.append((queue.urgent[0], group))
        if not heads:
            return None
        _, group = min(heads, key=lambda head: head[0])
        heap = self._queues[group].urgent
        members: list[tuple[Any, int]] = []
        num_tokens = 0
        while heap:
            claim = heap[0][2]
            first, rest = claim.num_taken, sum(claim.costs[claim.num_taken + 1 :])
            cost = claim.alone[first] + rest
            if members and num_tokens + cost > self.max_urgent_tokens:
                break
            members += [(claim.owner, i) for i in range(first, len(claim.costs))]
            num_tokens += cost
            self.withdraw(claim)
            _drop_withdrawn(heap)
        return Batch(group, members, num_tokens, is_urgent=True)

    @property
    def _is_crowd(self) -> bool:
        """Whether so many urgent jobs wait that they are taken with the others, by their tags."""
        num_urgent = self.num_waiting_tokens - self.num_bulk_tokens
        return num_urgent > _CROWD * self.max_urgent_tokens

    def _next_group(self, with_urgent: bool) -> Hashable | None:
        """The group whose head has the smallest tag. Groups with nothing waiting are forgotten."""
        best: tuple[_Entry, Hashable] | None = None
        for group, queue in list(self._queues.items()):
            heap = queue.first(with_urgent)
            if heap and (best is None or heap[0] < best[0]):
                best = heap[0], group
            _drop_withdrawn(queue.urgent)
            if not heap and not queue.urgent:
                del self._queues[group]
        return None if best is None else best[1]

    def _advance(self, heap: list[_Entry], claim: Claim, cost: int) -> None:
        """Count the head as taken, and tag its job by the next sequence. A beginning that is
        computed once more is charged to the job that needs it."""
        own = claim.costs[claim.num_taken]
        claim.finish += cost - own
        self._virtual_time = max(self._virtual_time, claim.finish)
        self.num_waiting_tokens -= own
        if not claim.is_urgent:
            self.num_bulk_tokens -= own
        claim.num_waiting_tokens -= own
        claim.num_taken += 1
        if claim.num_taken == len(claim.costs):
            heapq.heappop(heap)
            self.num_waiting_jobs -= 1
            self._num_bulk_jobs -= not claim.is_urgent
            claim.release()
            return
        claim.finish += claim.costs[claim.num_taken]
        heapq.heapreplace(heap, (claim.finish, heap[0][1], claim))


def _drop_withdrawn(heap: list[_Entry]) -> None:
    while heap and heap[0][2].withdrawn:
        heapq.heappop(heap)
