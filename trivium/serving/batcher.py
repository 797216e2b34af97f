"""Batch jobs of concurrent requests, with a bounded queue.

A batch starts as soon as the engine is free and takes the jobs that have arrived by then, so that a single client
never waits for other requests, while many clients fill large batches.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from .limits import Refusal


class Batchable(Protocol):
    """A unit of work, such as one text; only jobs with the same key share a batch."""

    @property
    def key(self) -> Hashable:
        """Return the options that all jobs of a batch must have in common."""

    @property
    def cost(self) -> int:
        """Return the cost that counts toward `capacity`; each job of a batch costs as much as the largest."""


Job = TypeVar("Job", bound=Batchable)
Result = TypeVar("Result")


class Batcher(Generic[Job, Result]):
    """Run jobs in batches on one thread, in order of arrival.

    Args:
        run: Function that returns one result for each job of a batch.
        batch_size: Maximum number of jobs per batch.
        capacity: Maximum cost per batch; a single job may cost more.
        queue_size: Maximum number of waiting jobs.
        observe: Function called after each batch with its size and its duration in seconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Result]],
        batch_size: int,
        capacity: int,
        queue_size: int,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._run, self._observe = run, observe
        self._batch_size, self._capacity, self._queue_size = batch_size, capacity, queue_size
        self._waiting: deque[tuple[Job, asyncio.Future[Result]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._seconds = 1.0  # moving average of the seconds per batch

    def __len__(self) -> int:
        """Return the number of waiting jobs."""
        return len(self._waiting)

    @property
    def is_running(self) -> bool:
        """Return True between `start` and `stop`, unless the task has failed."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start running batches in the current event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run_batches())

    async def stop(self) -> None:
        """Finish all waiting jobs, then stop."""
        while self._waiting and self.is_running:
            await asyncio.wait([future for _, future in self._waiting])
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    async def submit(self, jobs: Sequence[Job]) -> list[Result]:
        """Run jobs, possibly in different batches, and return their results; cancellation removes waiting jobs.

        Raises:
            Refusal: The queue is full (status 429).
        """
        if len(self._waiting) + len(jobs) > self._queue_size:
            batches = (len(self._waiting) + len(jobs)) / self._batch_size
            raise Refusal(
                429,
                "The service is busy: its queue is full. Try again later.",
                retry_after=max(1, math.ceil(batches * self._seconds)),
            )
        loop = asyncio.get_running_loop()
        entries = [(job, loop.create_future()) for job in jobs]
        self._waiting.extend(entries)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(future for _, future in entries)))
        finally:
            for _, future in entries:
                future.cancel()  # has no effect on futures that already have a result
            if any(future.cancelled() for _, future in entries):
                self._waiting = deque(entry for entry in self._waiting if not entry[1].done())

    async def _run_batches(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take_batch()
            if not await self._run_batch(batch) and len(batch) > 1:
                # A single job may have made the batch fail: run each job alone, so that the remaining ones succeed.
                for entry in batch:
                    await self._run_batch([entry])

    def _take_batch(self) -> list[tuple[Job, "asyncio.Future[Result]"]]:
        """Take the first job, and as many jobs with the same key as fit in its batch, from the queue."""
        key, cost = self._waiting[0][0].key, 0
        batch: list[tuple[Job, asyncio.Future[Result]]] = []
        for entry in self._waiting:
            if entry[0].key != key:
                continue
            cost = max(cost, entry[0].cost)
            if batch and (len(batch) == self._batch_size or (len(batch) + 1) * cost > self._capacity):
                break
            batch.append(entry)
        taken = {id(entry) for entry in batch}
        self._waiting = deque(entry for entry in self._waiting if id(entry) not in taken)
        return batch

    async def _run_batch(self, batch: list[tuple[Job, "asyncio.Future[Result]"]]) -> bool:
        """Run a batch and set its results; return False if it fails and its jobs should be retried one at a time."""
        batch = [entry for entry in batch if not entry[1].done()]
        if not batch:
            return True
        start = time.perf_counter()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, [job for job, _ in batch]
            )
        except Exception as error:
            if len(batch) == 1 and not batch[0][1].done():
                batch[0][1].set_exception(error)
            return False
        seconds = time.perf_counter() - start
        self._seconds += 0.2 * (seconds - self._seconds)
        self._observe(len(batch), seconds)
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # the client may have disconnected
                future.set_result(result)
        return True
