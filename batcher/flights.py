"""Identical sequences that wait or run for the same model are computed once.

Each job's sequences keep their own place in the plan, so nobody waits for another's turn: when one
of several equals has been computed, the others have their row and are passed over when they come
up. One that comes up while its equal runs rides along, but within that very step it is computed
once more: it is urgent, and would wait for the end of a long step. Keys say what is equal. Needs
the lane's lock. Invariant: a sequence is registered until it has its row or its job has ended.
"""

from __future__ import annotations

from collections.abc import Hashable

from batcher.job import Job

Member = tuple[Job, int]
_Key = tuple[Hashable, Hashable]  # group, the sequence's own key
_Flight = tuple[Member, list[Member]]  # what runs, and those that ride along


class Flights:
    """`num_shared` counts rows that were not computed again."""

    def __init__(self, num_shared: int = 0) -> None:
        self.num_shared = num_shared
        self._waiting: dict[_Key, dict[Member, None]] = {}  # registered, running ones included
        self._running: dict[_Key, _Flight] = {}

    def add(self, job: Job) -> None:
        """Register a job's sequences; one without keys shares nothing."""
        for index, key in enumerate(job.keys or ()):
            self._waiting.setdefault((job.group, key), {})[job, index] = None

    def begin(self, members: list[Member], may_ride: bool = True) -> list[Member]:
        """Those of a step's members that must be computed; `may_ride`: unless an equal runs."""
        computed = []
        for member in members:
            job, index = member
            if job.ended or job.has_row(index):
                continue
            key = _key_of(member)
            if key is None:
                computed.append(member)
            elif key not in self._running:
                self._running[key] = member, []
                computed.append(member)
            elif may_ride or self._running[key][0] in computed:
                self._running[key][1].append(member)
            else:
                computed.append(member)
        return computed

    def done(self, member: Member) -> list[Member]:
        """Everybody whose row this one's is, itself included."""
        key = _key_of(member)
        if key is None:
            return [member]
        leader, _ = self._running.pop(key, (member, []))
        equals = self._waiting.pop(key, {}) | {member: None}
        computed = {member, leader} & equals.keys()  # the leader too, in a step that goes on
        self.num_shared += len(equals) - len(computed)
        return list(equals)

    def failed(self, member: Member) -> list[Member]:
        """Itself and those that rode along; equals that still wait will be tried on their own."""
        key = _key_of(member)
        if key is None or key not in self._running or self._running[key][0] != member:
            return [member]
        return [member, *self._running.pop(key)[1]]

    def drop(self, job: Job) -> None:
        """A job has ended before all its rows came."""
        for index, key in enumerate(job.keys or ()):
            equals = self._waiting.get((job.group, key))
            if equals is not None:
                equals.pop((job, index), None)
                if not equals:
                    del self._waiting[job.group, key]

    def __len__(self) -> int:
        """Keys that are registered: none once no job is open."""
        return len(self._waiting) + len(self._running)


def _key_of(member: Member) -> _Key | None:
    job, index = member
    return None if job.keys is None else (job.group, job.keys[index])
