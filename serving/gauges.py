"""What a running server is at the moment of asking: queues, memory, models, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.state import Serving, Starting


class Gauges:
    """A collector for the server's registry."""

    def __init__(self, state: Callable[[], Starting | Serving]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing is collected while registering."""
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield _gauge("ready", "1 while requests are served", int(not state.fault))
        if isinstance(state, Starting):
            return
        worker, admission, cache = state.worker, state.admission, state.row_cache
        yield _gauge("queue_tokens", "Tokens that wait", worker.num_waiting_tokens)
        yield _gauge("queue_jobs", "Jobs that wait", worker.num_waiting_jobs)
        yield _counter(
            "cancelled",
            "Jobs withdrawn: their caller left, or their time was up",
            worker.num_cancelled,
        )
        yield _gauge(
            "admitted_requests", "Requests that compute or wait to", admission.num_requests
        )
        yield _counter("refused", "Requests refused because of overload", admission.num_refused)
        yield _counter("preemptions", "Short batches inside long ones", worker.num_preemptions)
        yield _counter("coalesced", "Rows that an identical sequence gave", worker.num_shared)
        yield _counter("splits", "Batches run again in halves for memory", worker.num_splits)
        hits = misses = size = 0
        if cache:
            hits, misses, size = cache.num_hits, cache.num_misses, cache.num_bytes
        yield _counter("cache_hits", "Rows from the cache", hits)
        yield _counter("cache_misses", "Rows not in it", misses)
        yield _gauge("cache_bytes", "Memory of the cache", size)
        models = [each for each in state.residents.resident() if each.model is not None]
        yield _gauge("resident_models", "Models in memory", len(models))
        family = GaugeMetricFamily(
            "embedding_model_bytes", "Memory that a model was reckoned to need", labels=["model"]
        )
        for resident in models:
            family.add_metric([resident.name], resident.num_bytes)
        yield family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"embedding_{name}", meaning, value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"embedding_{name}", meaning, value)
