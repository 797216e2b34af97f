"""Prometheus metrics of the service."""

import os
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of a service, in a separate registry; labels contain no texts.

    With several workers, prometheus_client keeps the metrics in files of the folder `PROMETHEUS_MULTIPROC_DIR`, and
    each worker renders the sums over all workers.

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
        self._queue = Gauge(
            "trivium_queue_texts", "Waiting texts.", registry=self._registry, multiprocess_mode="livesum"
        )
        self._queue_length = queue_length

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, size: int, seconds: float) -> None:
        """Record the size and duration of a batch."""
        self._batches.observe(size)
        self._engine.inc(seconds)
        self._queue.set(self._queue_length())

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._queue.set(self._queue_length())
        if not (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")):
            return generate_latest(self._registry)
        for path in Path(folder).glob("gauge_live*.db"):
            if not _is_alive(int(path.stem.rpartition("_")[2])):
                path.unlink(missing_ok=True)  # another worker may have deleted it
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
