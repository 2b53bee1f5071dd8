"""The plan: what waits, and which sequences make the next step.

Weighted fair queueing over jobs, in tokens. It knows no clock, lock, thread, tensor or model, so
its policy is tested by tables. Each sequence carries a finish tag: `start + cost`, where `start` is
the virtual time at which its job came, or its predecessor's finish. The smallest finish goes first
and virtual time follows it (self-clocked fair queueing, Golestani 1994): a short job that comes
now goes before the rest of a long one, and the long one's next tag stays put while virtual time
moves towards it, so nobody starves. Jobs of few tokens can also be taken whole, ahead of the
others: the lane does so in the middle of a long step, and bounds how often.
Invariant: every sequence that is added is either taken exactly once or withdrawn.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

# Sequences of a step may stand for this many times the budget when what they share is counted for
# each: indices, and vectors of every token where a head wants them, take memory for all of it.
_MAX_SPREAD = 64


@dataclass(slots=True, eq=False)
class Claim:
    """One job's place in the plan. `costs` are its sequences' tokens, in order: what each adds to
    the one before it in the same step. `alone` is what each costs as the job's first in a step."""

    owner: Any
    group: Hashable
    costs: Sequence[int]
    alone: Sequence[int]
    finish: int = 0  # tag of the next sequence
    num_taken: int = 0
    num_waiting_tokens: int = 0
    is_urgent: bool = False  # of few tokens: `take_urgent` may take it
    withdrawn: bool = False  # or taken to its end: nothing of it waits

    def release(self) -> None:
        """Its place in a heap must not keep its texts."""
        self.withdrawn = True
        self.num_waiting_tokens = 0
        self.owner, self.costs, self.alone = None, (), ()


_Place = tuple[int, int, Claim]  # tag, order of coming


@dataclass(frozen=True, slots=True)
class Step:
    """Sequences of one group that run together: `members` are (owner, index within its job)."""

    group: Hashable
    members: list[tuple[Any, int]]
    num_tokens: int
    num_bulk_tokens: int = 0  # of jobs that are not urgent


class Plan:
    """Jobs wait here until their sequences are taken, at most `budget` tokens a step.

    Jobs of at most `max_urgent_tokens` may be taken by `take_urgent`.
    Cost per step: O(sequences of the step x log waiting jobs).
    """

    def __init__(self, max_urgent_tokens: int = 0) -> None:
        self.max_urgent_tokens = max_urgent_tokens
        self.num_waiting_jobs = 0
        self.num_waiting_tokens = 0
        self.num_bulk_tokens = 0  # those of jobs that are not urgent
        self._heaps: dict[Hashable, list[_Place]] = {}
        self._urgent: list[_Place] = []  # claims that wait in their group's heap too
        self._virtual_time = 0
        self._num_added = 0  # breaks ties between equal tags: first come, first served

    def add(
        self,
        owner: Any,
        group: Hashable,
        costs: Sequence[int],
        alone: Sequence[int] | None = None,
    ) -> Claim:
        """Queue one job's sequences. A step never mixes groups (a group is a model in memory).

        `alone` is for sequences that share a beginning, which each step computes once; by default
        nothing is shared.
        """
        alone = costs if alone is None else alone
        assert costs, "a job without sequences has nothing to wait for"
        assert min(costs) > 0, "every sequence costs at least one token"
        assert len(alone) == len(costs)
        claim = Claim(owner, group, costs, alone, finish=self._virtual_time + costs[0])
        claim.num_waiting_tokens = sum(costs)
        self._num_added += 1
        place = (claim.finish, self._num_added, claim)
        heapq.heappush(self._heaps.setdefault(group, []), place)
        claim.is_urgent = sum(alone) <= self.max_urgent_tokens
        if not claim.is_urgent:
            self.num_bulk_tokens += claim.num_waiting_tokens
        else:
            _drop_withdrawn(self._urgent)
            heapq.heappush(self._urgent, place)
        self.num_waiting_jobs += 1
        self.num_waiting_tokens += claim.num_waiting_tokens
        return claim

    def withdraw(self, claim: Claim) -> None:
        """Take back what of a job has not been taken yet. Twice, or too late, is harmless."""
        if claim.withdrawn or not claim.num_waiting_tokens:
            return
        self.num_waiting_jobs -= 1
        self.num_waiting_tokens -= claim.num_waiting_tokens
        if not claim.is_urgent:
            self.num_bulk_tokens -= claim.num_waiting_tokens
        claim.release()

    def owners(self) -> list[Any]:
        """The owners of all jobs that wait, in no order. O(waiting): for shutdown only."""
        return [
            claim.owner
            for heap in self._heaps.values()
            for _, _, claim in heap
            if not claim.withdrawn
        ]

    @property
    def next_group(self) -> Hashable | None:
        """Of the step that `take` would give."""
        heap = self._next_heap()
        return None if heap is None else heap[0][2].group

    def has_waiting(self, group: Hashable) -> bool:
        """Whether more of a group waits."""
        return any(not claim.withdrawn for _, _, claim in self._heaps.get(group, ())[:1])

    def take(self, budget: int) -> Step | None:
        """The next step, or None when nothing waits. One sequence over the budget runs alone.

        A beginning that the first sequence shares with those before it comes on top of the budget:
        else each step behind a long one would hold a single sequence.
        """
        heap = self._next_heap()
        if heap is None:
            return None
        group = heap[0][2].group
        members: list[tuple[Any, int]] = []
        begun: set[int] = set()  # claims that have a member in this step
        num_tokens = num_alone = num_bulk = limit = 0
        while heap:
            claim = heap[0][2]
            if claim.withdrawn:
                heapq.heappop(heap)
                continue
            own, alone = claim.costs[claim.num_taken], claim.alone[claim.num_taken]
            cost = own if id(claim) in begun else alone
            if not members:
                limit = budget + alone - own
            elif num_tokens + cost > limit or num_alone + alone > budget * _MAX_SPREAD:
                break
            begun.add(id(claim))
            members.append((claim.owner, claim.num_taken))
            num_tokens += cost
            num_alone += alone
            num_bulk += 0 if claim.is_urgent else cost
            self._advance(heap, claim, cost)
        return Step(group, members, num_tokens, num_bulk)

    @property
    def has_urgent(self) -> bool:
        """Whether `take_urgent` may give something. Cheap, and needs no lock."""
        return bool(self._urgent)

    def take_urgent(self) -> Step | None:
        """Whole jobs of few tokens, by their tags, whatever else waits: of one group, together at
        most `max_urgent_tokens`. None when there is none."""
        members: list[tuple[Any, int]] = []
        group: Hashable = None
        num_tokens = 0
        while self._urgent:
            claim = self._urgent[0][2]
            if not claim.withdrawn and not claim.num_taken:
                cost = sum(claim.alone)
                if members and (claim.group != group or num_tokens + cost > self.max_urgent_tokens):
                    break
                group = claim.group
                members += [(claim.owner, index) for index in range(len(claim.costs))]
                num_tokens += cost
                self._virtual_time = max(self._virtual_time, claim.finish)
                self.withdraw(claim)
            heapq.heappop(self._urgent)
        return Step(group, members, num_tokens) if members else None

    def _next_heap(self) -> list[_Place] | None:
        """The group whose head has the smallest tag; groups with nothing waiting are forgotten."""
        best: list[_Place] | None = None
        for group in list(self._heaps):
            heap = self._heaps[group]
            _drop_withdrawn(heap)
            if not heap:
                del self._heaps[group]
            elif best is None or heap[0][:2] < best[0][:2]:
                best = heap
        return best

    def _advance(self, heap: list[_Place], claim: Claim, cost: int) -> None:
        """Count the head as taken and re-tag its job by the next sequence. A beginning that was
        computed once more is charged to the job that needed it."""
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
            claim.release()
            return
        claim.finish += claim.costs[claim.num_taken]
        heapq.heapreplace(heap, (claim.finish, heap[0][1], claim))


def _drop_withdrawn(heap: list[_Place]) -> None:
    while heap and heap[0][2].withdrawn:
        heapq.heappop(heap)
