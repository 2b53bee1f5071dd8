"""What /metrics tells: counters that routes and the lane feed, gauges read when somebody asks.

One registry a Service, so that several apps may live in one process. Names start with `embedding_`;
units are in the names. Must not know HTTP bodies or models' insides.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from batcher.plan import Step

if TYPE_CHECKING:
    from serving.server import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768)


class Metrics:
    """Safe to call from any thread."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "status")
        self.tokens = self._counter("tokens", "Tokens that steps computed", "model")
        self.steps = self._counter("steps", "Steps", "model", "outcome")
        self.request_seconds = self._histogram(
            "request_seconds", "A request's head to its answer's end", _SECONDS, "route"
        )
        self.wait_seconds = self._histogram(
            "wait_seconds", "A job's wait for its first step", _SECONDS
        )
        self.run_seconds = self._histogram(
            "run_seconds", "A job's first step to its last row", _SECONDS
        )
        self.step_tokens = self._histogram("step_tokens", "Tokens in a step", _SIZES)
        self.step_sequences = self._histogram("step_sequences", "Texts or pairs in a step", _SIZES)
        self.step_seconds = self._histogram("step_seconds", "A step's forward", _SECONDS)
        self.registry.register(_State(service))
        self._rate = service.rate
        ProcessCollector(registry=self.registry)
        self.num_tokens = 0  # of all models
        # What is entered once an answer is on its way, so that no answer waits for it.
        self._waiting: deque[Callable[[], None]] = deque()

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"embedding_{name}", meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, buckets: Sequence[float], *labels: str
    ) -> Histogram:
        return Histogram(
            f"embedding_{name}", meaning, labels, buckets=buckets, registry=self.registry
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """`route` is a template, never a path that a client made up. After the answer is sent."""
        self._enter_waiting()
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def count_job(self, wait_s: float, run_s: float) -> None:
        self._waiting.append(lambda: self._enter_job(wait_s, run_s))

    def count_step(self, step: Step, seconds: float, is_done: bool) -> None:
        """Called on the lane's thread, where somebody waits for its lock."""
        model, num_tokens, num_sequences = _name(step.group), step.num_tokens, len(step.members)
        self.num_tokens += num_tokens
        if is_done:
            self._rate.count(num_tokens, seconds)
        self._waiting.append(
            lambda: self._enter_step(model, num_tokens, num_sequences, seconds, is_done)
        )

    def write(self, accept: str) -> tuple[bytes, str]:
        """The text that /metrics answers, and its media type."""
        self._enter_waiting()
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _enter_waiting(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may be at it, too
            while True:
                self._waiting.popleft()()

    def _enter_job(self, wait_s: float, run_s: float) -> None:
        self.wait_seconds.observe(wait_s)
        self.run_seconds.observe(run_s)

    def _enter_step(
        self, model: str, num_tokens: int, num_sequences: int, seconds: float, is_done: bool
    ) -> None:
        self.steps.labels(model, "done" if is_done else "failed").inc()
        self.tokens.labels(model).inc(num_tokens)
        self.step_tokens.observe(num_tokens)
        self.step_sequences.observe(num_sequences)
        self.step_seconds.observe(seconds)


def _name(group: Hashable) -> str:
    """A group of the plan is a resident model."""
    return str(getattr(group, "name", group))


class _State:
    """Gauges, read at the moment of asking."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing is collected while registering."""
        return []

    def collect(self) -> Iterator[Metric]:
        service = self._service
        ready = int(not service.unready_because)
        yield GaugeMetricFamily("embedding_ready", "1 while requests are served", ready)
        yield GaugeMetricFamily(
            "embedding_open_requests", "Requests being answered", service.num_requests
        )
        if service.lane is not None:
            lane = service.lane
            yield GaugeMetricFamily(
                "embedding_queue_tokens", "Tokens that wait", lane.num_waiting_tokens
            )
            yield GaugeMetricFamily("embedding_queue_jobs", "Jobs that wait", lane.num_waiting_jobs)
            yield CounterMetricFamily(
                "embedding_cancelled",
                "Jobs withdrawn: their client left, or their time was up",
                lane.num_cancelled,
            )
        if service.admission is not None:
            admission = service.admission
            yield GaugeMetricFamily(
                "embedding_open_jobs", "Requests that compute or wait to", admission.num_jobs
            )
            yield CounterMetricFamily(
                "embedding_refused", "Requests answered 429", admission.num_refused
            )
            yield CounterMetricFamily(
                "embedding_yields", "Short steps inside long ones", lane.num_yields
            )
            yield CounterMetricFamily(
                "embedding_shared", "Rows that an identical sequence gave", lane.num_shared
            )
            yield CounterMetricFamily(
                "embedding_splits", "Steps run again in halves for memory", lane.num_splits
            )
        cache = service.row_cache
        yield CounterMetricFamily("embedding_cache_hits", "Rows from the cache", cache.num_hits)
        yield CounterMetricFamily("embedding_cache_misses", "Rows not in it", cache.num_misses)
        yield GaugeMetricFamily("embedding_cache_bytes", "Memory of the cache", cache.num_bytes)
        if service.residents is not None:
            models = [r for r in service.residents.resident() if r.model is not None]
            yield GaugeMetricFamily("embedding_resident_models", "Models in memory", len(models))
            family = GaugeMetricFamily(
                "embedding_model_bytes",
                "Memory that a model was reckoned to need",
                labels=["model"],
            )
            for resident in models:
                family.add_metric([resident.name], resident.num_bytes)
            yield family
