"""The queue that every executor has: jobs wait here, in order of priority, and are handed over while there is room."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import pickle
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from zemosaicd.model import Reason, ZemosaicdError
from zemosaicd.work.entry import Job

MAX_JOB_BYTES = 64 * 1024


class Quarantined(ZemosaicdError):
    """This job killed its worker each time it ran alone; it will not be run again (F9)."""


class WorkersCannotStart(ZemosaicdError):
    """No worker lives long enough to begin a job: the daemon ends, loudly, and is started again by its keeper.

    Never a job's fault: no frame and no tile may be given up for it.
    """


class ExecutorClosed(ZemosaicdError):
    """The executor was closed before this job had ended (F12)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A worker died under a job. `signal` 0: not known. `hung`: we killed it at its time limit (F11).

    `alone`: nothing ran beside it. `deaths`: how many deaths are held against the job now.
    """

    pid: int
    signal: int
    hung: bool
    alone: bool
    deaths: int


class Executor(Protocol):
    """Runs jobs. `capacity`: how many at once."""

    @property
    def capacity(self) -> int: ...

    async def start(self) -> None:
        """Bring the workers up; once, before the first `run`."""

    async def run(self, job: Job, *, priority: int = 0, timeout_s: float | None = None) -> Any:
        """The result of the job, or whatever it raised. Jobs of a lower `priority` go first, then in order of arrival.

        `timeout_s` counts from the job's own start. Raises ValueError for a job that pickles to 64 KiB or more,
        Quarantined, ExecutorClosed.
        """

    async def aclose(self, drain_s: float = 0.0) -> None:
        """Start nothing more, wait so long for what runs, abandon the rest. May be called again with less patience."""


@dataclass(slots=True, eq=False, kw_only=True)
class Item:
    """One job on its way."""

    job: Job
    payload: bytes
    priority: int
    order: int
    timeout_s: float | None
    future: asyncio.Future[Any]
    deaths: int = 0
    pid: int = 0
    alone: bool = False
    hung: bool = False
    timer: asyncio.TimerHandle | None = None

    def __lt__(self, other: Item) -> bool:
        return (self.priority, self.order) < (other.priority, other.order)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def settle(self, done: Future[bytes] | asyncio.Future[bytes]) -> None:
        if self.future.done():  # whoever waited was cancelled
            return
        if (error := done.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(pickle.loads(done.result()))

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class JobQueue:
    """The part that is the same everywhere: jobs in order of priority, handed over while there is room."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._order = itertools.count()
        self._heap: list[Item] = []
        self._flying: dict[int, Item] = {}
        self._closing = False

    @property
    def capacity(self) -> int:
        """How many jobs run at once."""
        return self._capacity

    async def run(self, job: Job, *, priority: int = 0, timeout_s: float | None = None) -> Any:
        """See Executor.run."""
        if self._closing:
            raise closed()
        item = Item(
            job=job,
            payload=_pickled(job),
            priority=priority,
            order=next(self._order),
            timeout_s=timeout_s,
            future=asyncio.get_running_loop().create_future(),
        )
        self._admit(item)
        self._feed()
        return await item.future

    async def aclose(self, drain_s: float = 0.0) -> None:
        """See Executor.aclose."""
        self._closing = True
        for item in self._withdraw():
            item.fail(closed())
        running = [item.future for item in self._flying.values() if not item.future.done()]
        if running:
            await asyncio.wait(running, timeout=drain_s)
        for item in self._flying.values():
            item.stop_timer()
            item.fail(closed())
        await self._stop()

    def _admit(self, item: Item) -> None:
        heapq.heappush(self._heap, item)

    def _withdraw(self) -> list[Item]:
        queued, self._heap = self._heap, []
        return queued

    def _feed(self) -> None:
        while not self._closing and (item := self._next()) is not None:
            self._hand(item)

    def _next(self) -> Item | None:
        while self._heap and self._room():
            item = heapq.heappop(self._heap)
            if not item.future.done():  # cancelled while it waited
                return item
        return None

    def _room(self) -> bool:
        raise NotImplementedError

    def _hand(self, item: Item) -> None:
        raise NotImplementedError

    async def _stop(self) -> None:
        raise NotImplementedError


def _pickled(job: Job) -> bytes:
    payload = pickle.dumps(job)
    if len(payload) >= MAX_JOB_BYTES:
        raise ValueError(
            f"{type(job).__name__} pickles to {len(payload)} bytes; a job stays below {MAX_JOB_BYTES}: pass paths"
        )
    return payload


def closed() -> ExecutorClosed:
    """What a job gets that was not begun before the executor closed."""
    return ExecutorClosed(Reason(rule="executor_closed", message="the daemon is stopping"))
