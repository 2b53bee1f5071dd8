"""One model in memory or on its way there, and why a load may end without it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.folder.store import ModelFolder
from serving.errors import Unavailable

Fault = Callable[[], Exception]  # made anew for each waiter: a raised one keeps frames alive


class LoadTimeout(Unavailable):
    """The model is still on its way; the load goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 10)


class NoRoom(Unavailable):
    """The model does not fit beside what may not be unloaded."""


@dataclass(slots=True, eq=False)
class Resident:
    """A model in memory or on its way there; equal to itself alone, so that it can be a group.

    `num_bytes` is what loading was reckoned to need. `model` is None before and after its time.
    `num_users` counts leases, those that wait included; `num_running` batches, on the worker's
    thread, which calls `on_rest` when none runs any more.
    `loaded_at` is wall clock; `expires_at` is the loop's time, None while nothing counts down: in
    use, pinned, or kept for ever.
    """

    name: str
    folder: ModelFolder
    num_bytes: int = 0
    pinned: bool = False
    model: Any = field(default=None, repr=False)
    load_s: float = 0.0
    loaded_at: float = 0.0
    num_users: int = 0
    num_running: int = 0
    on_rest: Callable[[], None] | None = field(default=None, repr=False)
    expires_at: float | None = None
    keep_alive_s: float = 0.0
    held_up_by: str = ""  # names of busy models whose memory it waits for
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    loading: asyncio.Task[Fault | None] | None = field(default=None, repr=False)

    @property
    def loaded(self) -> tuple[str, float]:
        """This loading of the model, apart from those before and after."""
        return self.name, self.loaded_at

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.expires_at = None
