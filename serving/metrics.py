"""What a running server counts: counters and histograms that requests and the worker feed.

One registry a Server, so that several may live in one process. Names start with `embedding_`; units
are in the names. Must not know models' insides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from batcher.admission import Rate
from batcher.scheduler import Batch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768)


class Metrics:
    """Safe to call from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rate = Rate()  # of the worker, in tokens a second
        self.tokens = self.counter("tokens", "Tokens that batches computed", "model")
        self.batches = self.counter("batches", "Batches", "model", "outcome")
        self.wait_seconds = self.histogram("wait_seconds", "A job's wait for its first batch")
        self.run_seconds = self.histogram("run_seconds", "A job's first batch to its last row")
        self.batch_tokens = self.histogram("batch_tokens", "Tokens in a batch", _SIZES)
        self.batch_sequences = self.histogram(
            "batch_sequences", "Texts or pairs in a batch", _SIZES
        )
        self.batch_seconds = self.histogram("batch_seconds", "A batch's forward")
        ProcessCollector(registry=self.registry)
        self.num_tokens = 0  # of all models
        # What is entered once an answer is on its way, so that no answer waits for it.
        self._waiting: deque[Callable[[], None]] = deque()

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"embedding_{name}", meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"embedding_{name}", meaning, registry=self.registry)

    def histogram(
        self, name: str, meaning: str, buckets: Sequence[float] = SECONDS, *labels: str
    ) -> Histogram:
        return Histogram(
            f"embedding_{name}", meaning, labels, buckets=buckets, registry=self.registry
        )

    def count_job(self, wait_s: float, run_s: float) -> None:
        self._waiting.append(lambda: self._enter_job(wait_s, run_s))

    def count_batch(self, batch: Batch, seconds: float, is_done: bool) -> None:
        """Called on the worker's thread, where somebody waits for its lock."""
        model, num_tokens, num_sequences = _name(batch.group), batch.num_tokens, len(batch.members)
        self.num_tokens += num_tokens
        if is_done:
            self.rate.count(num_tokens, seconds)
        self._waiting.append(
            lambda: self._enter_step(model, num_tokens, num_sequences, seconds, is_done)
        )

    def write(self, accept: str) -> tuple[bytes, str]:
        """As Prometheus' text, or OpenMetrics where `accept` names it; and the media type."""
        self.enter_waiting()
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def enter_waiting(self) -> None:
        """What was counted while answers waited."""
        while True:
            try:
                enter = self._waiting.popleft()
            except IndexError:  # done, perhaps by another thread
                return
            enter()

    def _enter_job(self, wait_s: float, run_s: float) -> None:
        self.wait_seconds.observe(wait_s)
        self.run_seconds.observe(run_s)

    def _enter_step(
        self, model: str, num_tokens: int, num_sequences: int, seconds: float, is_done: bool
    ) -> None:
        self.batches.labels(model, "done" if is_done else "failed").inc()
        self.tokens.labels(model).inc(num_tokens)
        self.batch_tokens.observe(num_tokens)
        self.batch_sequences.observe(num_sequences)
        self.batch_seconds.observe(seconds)


def _name(group: Hashable) -> str:
    """A group of the scheduler's is a resident model."""
    return str(getattr(group, "name", group))
