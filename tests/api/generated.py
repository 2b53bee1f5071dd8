"""How hypothesis makes up requests: the same ones each time, and few, for each goes to a server."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings


def quick(max_examples: int) -> settings:
    """To decorate a test with."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
