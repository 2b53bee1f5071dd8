"""The budget of a step: the smallest that is within 3 % of the best rate on this device and model.

Found while running, from full steps. A window of candidates takes turns, in rounds: each computes
as many tokens as the largest, a few steps of one between those of another, and only rates of one
round are compared, so that a machine that is slow for a while is slow for all. Rounds go on until
each comparison is clear. The window widens while its edge is what is wanted; then the search
settles, and looks at the neighbours again from time to time.
It knows no clock, plan, thread or tensor: it is told what a step took.
Invariant: what it gives is one of its candidates, whatever it was told.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

CANDIDATES = tuple(1 << power for power in range(7, 14))  # 128 to 8,192 tokens
# On a CPU longer steps gain nothing (bench/results/step-budget-bge-small.json).
CPU_CANDIDATES = CANDIDATES[:5]

_START = (512, 1024, 2048)
_MIN_GAIN = 0.03  # of rate, for which a longer step is worth its wait
_CLEAR = 6  # more rounds that say one thing of a candidate than rounds that say the other
_MAX_ROUNDS = 25  # of a window; who is not clear by then is about as good as the bound
_MAX_MISSES = 15  # steps that did not come out full, one after the other: they never will
_FULL = 0.9  # of the budget
_MAX_OVER = 1.25  # times the budget: a shared beginning comes on top; far more is one long text
_SETTLED_STEPS = 32  # full ones, for each step of the search, until it looks at the neighbours


@dataclass(slots=True)
class _Turn:
    """What a candidate has done of its part of a round."""

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    num_misses: int = 0


@dataclass(slots=True)
class _Search:
    """One group's. `turns` are of the candidates that are being measured; empty: it has settled."""

    chosen: int
    turns: dict[int, _Turn] = field(default_factory=dict)  # the smallest first
    rounds: list[dict[int, float]] = field(default_factory=list)  # tokens per second
    asked: set[int] = field(default_factory=set)  # candidates of this search, measurable or not
    num_steps: int = 0  # of this search
    num_settled_steps: int = 0

    def begin(self, *candidates: int) -> None:
        self.turns = {candidate: _Turn() for candidate in sorted(set(candidates))}
        self.rounds = []
        self.asked.update(candidates)

    def next(self) -> int:
        """Whoever has done the least of its part."""
        largest = max(self.turns)
        return min(self.turns, key=lambda c: self.turns[c].num_steps / _num_steps(c, largest))

    def note(self, candidate: int, num_tokens: int, seconds: float) -> None:
        turn = self.turns[candidate]
        self.num_steps += 1
        if seconds == math.inf:
            del self.turns[candidate]
        elif _FULL * candidate <= num_tokens <= _MAX_OVER * candidate:
            turn.num_steps += 1
            turn.num_tokens += num_tokens
            turn.seconds += seconds
            turn.num_misses = 0
        else:
            turn.num_misses += 1
            if turn.num_misses >= _MAX_MISSES:
                del self.turns[candidate]
        if self.turns:
            self._end_round()

    def _end_round(self) -> None:
        largest = max(self.turns)
        if not all(turn.num_steps >= _num_steps(c, largest) for c, turn in self.turns.items()):
            return
        self.rounds.append({c: turn.num_tokens / turn.seconds for c, turn in self.turns.items()})
        self.turns = {candidate: _Turn() for candidate in self.turns}

    def best(self) -> int:
        """By the median of what each makes of a round."""
        shares: dict[int, list[float]] = {candidate: [] for candidate in self.turns}
        for rates in self.rounds:
            mean = statistics.geometric_mean(rates[candidate] for candidate in self.turns)
            for candidate, each in shares.items():
                each.append(rates[candidate] / mean)
        return max(shares, key=lambda candidate: statistics.median(shares[candidate]))

    def lead(self, candidate: int, best: int) -> int:
        """Rounds in which it is good enough beside the best, less those in which it is not."""
        good = sum(rates[candidate] >= (1 - _MIN_GAIN) * rates[best] for rates in self.rounds)
        return 2 * good - len(self.rounds)

    def is_over(self) -> bool:
        """Nobody is left to measure, each comparison is clear, or none will be."""
        if not self.turns or len(self.rounds) >= _MAX_ROUNDS:
            return True
        if len(self.rounds) < _CLEAR:
            return False
        best = self.best()
        return all(abs(self.lead(candidate, best)) >= _CLEAR for candidate in self.turns)


class StepBudget:
    """Tokens of the next step, by group (a model in memory). With one candidate: always that.

    `candidates` ascend. The caller asks `next`, runs the step and tells `observe`; both are
    O(number of candidates), but for the last step of a round. Not thread-safe.
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
        return search.next() if search.turns else search.chosen

    def settled(self, group: Hashable) -> int | None:
        """What it has settled on; None while it is looking."""
        search = self._search(group)
        return None if search.turns else search.chosen

    def observe(
        self, group: Hashable, budget: int, num_tokens: int, seconds: float, was_full: bool
    ) -> None:
        """A step with that budget took so long. `was_full`: more of the group waited than it took.

        A step that failed for memory took for ever: `seconds` is infinite.
        """
        if not was_full or seconds <= 0:
            return
        search = self._search(group)
        if not search.turns:
            search.num_settled_steps += 1
            if search.num_settled_steps >= _SETTLED_STEPS * search.num_steps:
                self._look_again(search)
        elif budget in search.turns:
            search.note(budget, num_tokens, seconds)
            if search.is_over():
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
        on the smallest that is good enough."""
        measured = list(search.turns)
        if measured:
            best = search.best()
            good = [c for c in measured if search.lead(c, best) >= 0]
            search.chosen = good[0]
            for edge, direction, is_wanted in (
                (measured[-1], 1, good == [measured[-1]]),
                (measured[0], -1, good[0] == measured[0]),
            ):
                further = self._beside(edge, direction)
                if is_wanted and further is not None and further not in search.asked:
                    search.begin(further, edge, best)
                    return
        search.turns = {}
        search.num_settled_steps = 0

    def _look_again(self, search: _Search) -> None:
        """At the neighbours; older rounds are of another time."""
        beside = (self._beside(search.chosen, direction) for direction in (-1, 1))
        search.asked.clear()
        search.num_steps = 0
        if len(self._candidates) > 1:
            search.begin(search.chosen, *(c for c in beside if c is not None))

    def _beside(self, candidate: int, direction: int) -> int | None:
        at = self._candidates.index(candidate) + direction
        return self._candidates[at] if 0 <= at < len(self._candidates) else None


def _num_steps(candidate: int, largest: int) -> int:
    """Of a round in which the largest has one."""
    return max(1, largest // candidate)
