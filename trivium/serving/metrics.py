"""Prometheus metrics of the service."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of a service, in a separate registry; labels contain no texts.

    Args:
        queue_length: Function that returns the number of waiting texts.
    """

    def __init__(self, queue_length: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "trivium_requests", "Answered requests.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "trivium_request_seconds", "Seconds until a request is answered.", ["route"], registry=self._registry
        )
        self._batches = Histogram(
            "trivium_batch_texts", "Texts per batch.", registry=self._registry, buckets=BATCH_SIZES
        )
        self._engine = Counter("trivium_engine_seconds", "Seconds spent in the engine.", registry=self._registry)
        queue = Gauge("trivium_queue_texts", "Waiting texts.", registry=self._registry)
        queue.set_function(queue_length)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, size: int, seconds: float) -> None:
        """Record the size and duration of a batch."""
        self._batches.observe(size)
        self._engine.inc(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
