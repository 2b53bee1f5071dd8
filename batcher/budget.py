"""The budget of a step: the smallest that is within 3 % of the best rate on this device and model.

Found while running, from full steps: it tries a window of candidates in turn, so that noise hits
all, widens the window while its edge is what is wanted, settles, and looks at the neighbours again
from time to time. It knows no clock, plan, thread or tensor: it is told what a step took.
Invariant: what it gives is one of its candidates, whatever it was told.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

CANDIDATES = tuple(1 << power for power in range(7, 14))  # 128 to 8,192 tokens
# On a CPU longer steps gain nothing, and a noisy machine could make them look as if they did.
CPU_CANDIDATES = CANDIDATES[:5]

_START = (512, 1024, 2048)
_MIN_GAIN = 0.03  # of rate, for which a longer step is worth its wait
_NUM_OBSERVATIONS = 5  # the last of a candidate, whose median is its rate
_MAX_TRIES = 3 * _NUM_OBSERVATIONS  # steps that never come out full say nothing, for ever
_FULL = 0.9  # of the budget
_MAX_OVER = 1.25  # times the budget: a shared beginning comes on top; far more is one long text
# Full steps between two looks at the neighbours: ten steps of theirs are one in 64.
_SETTLED_STEPS = 64 * 2 * _NUM_OBSERVATIONS


@dataclass(slots=True)
class _Search:
    """One group's. `tries` are of the candidates that are being measured; empty: it has settled."""

    chosen: int
    rates: dict[int, deque[float]] = field(default_factory=dict)  # tokens per second
    tries: dict[int, int] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)  # candidates of this search, measurable or not
    num_settled_steps: int = 0

    def begin(self, *candidates: int) -> None:
        """Measure these, and forget what they were worth before."""
        self.tries = dict.fromkeys(sorted(candidates), 0)
        self.asked.update(candidates)
        for candidate in candidates:
            self.rates.pop(candidate, None)

    def note(self, candidate: int, num_tokens: int, seconds: float) -> None:
        self.tries[candidate] += 1
        if not _FULL * candidate <= num_tokens <= _MAX_OVER * candidate:
            return
        rates = self.rates.setdefault(candidate, deque(maxlen=_NUM_OBSERVATIONS))
        times = _NUM_OBSERVATIONS if seconds == math.inf else 1  # once is enough
        rates.extend([num_tokens / seconds] * times)

    def is_done(self, candidate: int) -> bool:
        return (
            len(self.rates.get(candidate, ())) >= _NUM_OBSERVATIONS
            or self.tries[candidate] >= _MAX_TRIES
        )

    def medians(self) -> dict[int, float]:
        """Of the candidates that were observed often enough; from the smallest on."""
        return {
            candidate: statistics.median(rates)
            for candidate, rates in sorted(self.rates.items())
            if len(rates) >= _NUM_OBSERVATIONS
        }


class StepBudget:
    """Tokens of the next step, by group (a model in memory). With one candidate: always that.

    `candidates` ascend. The caller asks `next`, runs the step and tells `observe`; both are
    O(number of candidates). Not thread-safe.
    """

    def __init__(self, candidates: Sequence[int] = CANDIDATES) -> None:
        assert candidates
        assert list(candidates) == sorted(set(candidates))
        assert candidates[0] > 0
        self._candidates = tuple(candidates)
        start = tuple(c for c in self._candidates if c in _START)
        self._start = start or self._candidates[len(self._candidates) // 2 :][:1]
        self._searches: dict[Hashable, _Search] = {}

    def next(self, group: Hashable) -> int:
        """Tokens of the group's next step."""
        search = self._search(group)
        waiting = [c for c in search.tries if not search.is_done(c)]
        if not waiting:
            return search.chosen
        return min(waiting, key=lambda candidate: search.tries[candidate])

    def settled(self, group: Hashable) -> int | None:
        """What it has settled on; None while it is looking."""
        search = self._search(group)
        return None if search.tries else search.chosen

    def observe(
        self, group: Hashable, budget: int, num_tokens: int, seconds: float, was_full: bool
    ) -> None:
        """A step with that budget took so long. `was_full`: more of the group waited than it took.

        A step that failed for memory took for ever: `seconds` is infinite.
        """
        if not was_full or seconds <= 0:
            return
        search = self._search(group)
        if not search.tries:
            search.num_settled_steps += 1
            if search.num_settled_steps >= _SETTLED_STEPS:
                self._look_again(search)
        elif budget in search.tries:
            search.note(budget, num_tokens, seconds)
            if all(search.is_done(candidate) for candidate in search.tries):
                self._decide(search)

    def forget(self, group: Hashable) -> None:
        """The group is gone."""
        self._searches.pop(group, None)

    def _search(self, group: Hashable) -> _Search:
        search = self._searches.get(group)
        if search is None:
            search = self._searches[group] = _Search(self._start[len(self._start) // 2])
            if len(self._candidates) > 1:
                search.begin(*self._start)
        return search

    def _decide(self, search: _Search) -> None:
        """Widen the window by one candidate, measured beside its neighbour and the best, or settle
        on the smallest that is good enough. One that never came out full is no part of it."""
        medians = search.medians()
        search.tries = {}
        search.num_settled_steps = 0
        if not medians:
            return
        best = max(medians, key=lambda candidate: medians[candidate])
        enough = (1 - _MIN_GAIN) * medians[best]
        good = [candidate for candidate, rate in medians.items() if rate >= enough]
        smallest, largest = min(medians), max(medians)
        search.chosen = good[0]
        for edge, direction, is_wanted in (
            (largest, 1, good == [largest]),
            (smallest, -1, good[0] == smallest),
        ):
            further = self._beside(edge, direction)
            if is_wanted and further is not None and further not in search.asked:
                search.begin(further, edge, best)
                return

    def _look_again(self, search: _Search) -> None:
        """At the neighbours; older observations are of another time."""
        beside = (self._beside(search.chosen, direction) for direction in (-1, 1))
        search.rates.clear()
        search.asked.clear()
        search.num_settled_steps = 0
        if len(self._candidates) > 1:
            search.begin(search.chosen, *(c for c in beside if c is not None))

    def _beside(self, candidate: int, direction: int) -> int | None:
        at = self._candidates.index(candidate) + direction
        return self._candidates[at] if 0 <= at < len(self._candidates) else None
