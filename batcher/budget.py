"""The budget of a step: the smallest that is within 3 % of the best rate on this device and model.

Found while running, from full steps. A window of candidates takes turns, in rounds: a few
steps of a small one for each of a large one, one after the other, and only rates of one round
are compared, so that a machine that is slow for a while is slow for all. Rounds go on until
each comparison is clear. The search climbs until nothing larger is better, then descends for as
long as what is smaller is good enough; from time to time it begins again.
It knows no clock, plan, thread or tensor: it is told what a step took.
Invariant: what it gives is one of its candidates, whatever it was told.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

CANDIDATES = tuple(1 << power for power in range(7, 14))  # 128 to 8,192 tokens
# On a CPU longer steps gain nothing (bge-small: bench/results/step-budget-bge-small.json).
CPU_CANDIDATES = CANDIDATES[:5]

_START = (512, 1024, 2048)
_MIN_GAIN = 0.03  # of rate, for which a longer step is worth its wait
_CLEAR = 6  # more rounds that say one thing of a candidate than rounds that say the other
_MAX_ROUNDS = 25  # of a window; who is not clear by then is about as good as the bound
_MAX_ROUND_STEPS = 8  # of one candidate: then it has been beside the others for long enough
_MAX_MISSES = 15  # steps in a row that say nothing of their budget: all texts are like that
_MIN_FULL = 0.6  # of the budget; what does not fit in is part of its rate
_MAX_FULL = 1.25  # times the budget: a shared beginning comes on top; far more is one long text
# Full steps until it begins again: so many for each step of the search, and at most.
_SETTLED_STEPS = 16
_MAX_SETTLED_STEPS = 2000


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
    too_large: float = math.inf  # the smallest that memory did not hold in this search
    is_descending: bool = False  # one candidate is measured beside the best
    num_steps: int = 0  # of this search
    num_settled_steps: int = 0

    def begin(self, *candidates: int) -> None:
        self.turns = {candidate: _Turn() for candidate in sorted(set(candidates))}
        self.rounds = []
        self.asked.update(candidates)

    def settle(self) -> None:
        self.turns = {}
        self.num_settled_steps = 0

    @property
    def is_stale(self) -> bool:
        """It has settled long ago."""
        limit = min(_SETTLED_STEPS * self.num_steps, _MAX_SETTLED_STEPS)
        return self.num_settled_steps >= limit

    def next(self) -> int:
        """Whoever has done the least of its part."""
        largest = max(self.turns)
        return min(self.turns, key=lambda c: self.turns[c].num_steps / _num_steps(c, largest))

    def note(self, candidate: int, num_tokens: int, seconds: float) -> bool:
        """Whether there may be something to decide on now."""
        turn = self.turns[candidate]
        self.num_steps += 1
        if _MIN_FULL * candidate <= num_tokens <= _MAX_FULL * candidate:
            turn.num_steps += 1
            turn.num_tokens += num_tokens
            turn.seconds += seconds
            turn.num_misses = 0
            return self._end_round()
        turn.num_misses += 1
        if turn.num_misses < _MAX_MISSES:
            return False
        del self.turns[candidate]
        return True

    def _end_round(self) -> bool:
        largest = max(self.turns)
        if not all(turn.num_steps >= _num_steps(c, largest) for c, turn in self.turns.items()):
            return False
        self.rounds.append({c: turn.num_tokens / turn.seconds for c, turn in self.turns.items()})
        self.turns = {candidate: _Turn() for candidate in self.turns}
        return True

    def is_over(self) -> bool:
        """Nobody is left to measure, each comparison is clear, or none will be."""
        if not self.turns or len(self.rounds) >= _MAX_ROUNDS:
            return True
        if len(self.rounds) < _CLEAR:
            return False
        best = self.best()
        return all(abs(self._lead(candidate, best)) >= _CLEAR for candidate in self.turns)

    def best(self) -> int:
        """By the median of what each makes of a round."""
        shares: dict[int, list[float]] = {candidate: [] for candidate in self.turns}
        for rates in self.rounds:
            mean = statistics.geometric_mean(rates[candidate] for candidate in self.turns)
            for candidate, each in shares.items():
                each.append(rates[candidate] / mean)
        return max(shares, key=lambda candidate: statistics.median(shares[candidate]))

    def smallest_good(self, best: int) -> int:
        """From the best down to the last before one that is not good enough."""
        chosen = best
        for candidate in sorted((c for c in self.turns if c < best), reverse=True):
            if self._lead(candidate, best) < 0:
                break
            chosen = candidate
        return chosen

    def _lead(self, candidate: int, best: int) -> int:
        """Rounds in which it is good enough beside the best, less those in which it is not."""
        good = sum(rates[candidate] >= (1 - _MIN_GAIN) * rates[best] for rates in self.rounds)
        return 2 * good - len(self.rounds)


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
        if len(self._candidates) == 1 or seconds <= 0:
            return
        search = self._search(group)
        if seconds == math.inf:
            if num_tokens <= _MAX_FULL * budget:
                self._avoid(search, budget)
        elif was_full and not search.turns:
            search.num_settled_steps += 1
            if search.is_stale:
                self._begin_again(search)
        elif (
            was_full
            and budget in search.turns
            and search.note(budget, num_tokens, seconds)
            and search.is_over()
        ):
            self._decide(search)

    def _search(self, group: Hashable) -> _Search:
        search = self._searches.get(group)
        if search is None:
            search = self._searches[group] = _Search(self._start[len(self._start) // 2])
            if len(self._candidates) > 1:
                search.begin(*self._start)
        return search

    def _decide(self, search: _Search) -> None:
        """Climb, descend, or settle."""
        if not search.turns:
            search.settle()
            return
        smallest, largest = min(search.turns), max(search.turns)
        above, below = self._beside(largest, 1), self._beside(smallest, -1)
        best = search.best()
        good = search.smallest_good(best)
        if best == largest and above and above < search.too_large and above not in search.asked:
            search.chosen = good
            search.begin(best, above)
        elif search.is_descending and good == largest:
            search.settle()  # on what was good enough before
        else:
            search.chosen = good
            search.is_descending = True
            if good == smallest and below:
                search.begin(below, best)
            else:
                search.settle()

    def _begin_again(self, search: _Search) -> None:
        """Around what was chosen; older rounds are of another time."""
        beside = (self._beside(search.chosen, direction) for direction in (-1, 1))
        search.asked.clear()
        search.too_large = math.inf
        search.is_descending = False
        search.num_steps = 0
        search.begin(search.chosen, *(c for c in beside if c is not None))

    def _avoid(self, search: _Search, budget: int) -> None:
        """Memory does not hold it: nor any larger."""
        search.num_steps += 1
        search.too_large = min(search.too_large, budget)
        fitting = [c for c in self._candidates if c < search.too_large] or self._candidates[:1]
        search.chosen = min(search.chosen, fitting[-1])
        search.turns = {c: turn for c, turn in search.turns.items() if c < search.too_large}
        if search.turns:
            return
        search.settle()
        if fitting[-1] < search.too_large:
            search.is_descending = False
            search.begin(fitting[-1])

    def _beside(self, candidate: int, direction: int) -> int | None:
        at = self._candidates.index(candidate) + direction
        return self._candidates[at] if 0 <= at < len(self._candidates) else None


def _num_steps(candidate: int, largest: int) -> int:
    """Of a round in which the largest has one."""
    return max(1, min(largest // candidate, _MAX_ROUND_STEPS))
