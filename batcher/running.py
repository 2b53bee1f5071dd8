"""A step that runs: what of its time is its own, and what a nested one took."""

from __future__ import annotations

from dataclasses import dataclass

from batcher.plan import Step


@dataclass(slots=True, eq=False)
class Running:
    """`step` holds those sequences alone that it computes. Times: seconds of one clock, told."""

    step: Step
    budget: int  # 0: urgent jobs that went first
    was_full: bool  # more of its group would have come along
    started_at: float = 0.0
    nested_s: float = 0.0
    nested_splits: int = 0
    _resumed_at: float = 0.0

    def start(self, now: float) -> None:
        self.started_at = self._resumed_at = now

    def bulk_s(self, now: float) -> float:
        """What its bulk has had since it started, or since this was last asked."""
        seconds = now - self._resumed_at
        self._resumed_at = now
        return seconds * self.step.num_bulk_tokens / self.step.num_tokens

    def resume(self, now: float, nested_s: float, nested_splits: int) -> None:
        """After a nested step, which took so long."""
        self._resumed_at = now
        self.nested_s += nested_s
        self.nested_splits += nested_splits

    def own_s(self, now: float) -> float:
        """Without what was nested in it."""
        return now - self.started_at - self.nested_s
