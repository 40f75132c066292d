"""Where jobs run: inline, or in a pool of worker processes, behind one protocol.

The queue stays here, so that arrivals are not starved behind tiles and anything that has not begun can be cancelled;
a pool is handed only as many jobs as it has workers, and one more. One dead worker costs every job of a
ProcessPoolExecutor its result (M11): the pool is built again, the jobs that were elsewhere are run again without
blame, and the one that was on the dead worker is run with nothing beside it; three deaths alone and it is
quarantined (M12, F9). Workers are forked from a template, which is warm before the first of them (shell.template).
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from zemosaicd.model import Reason
from zemosaicd.shell.jobqueue import (
    Death,
    Executor,
    ExecutorClosed,
    Item,
    JobQueue,
    Quarantined,
    WorkersCannotStart,
    closed,
)
from zemosaicd.shell.template import Template
from zemosaicd.work.entry import STARTED, Beginnings, Job, Nothing, begin, run_pickled, work

__all__ = ["Death", "Executor", "ExecutorClosed", "Inline", "Job", "Pool", "Quarantined", "WorkersCannotStart"]

MAX_DEATHS = 3
_MAX_BARREN = 3
_GRACE_S, _STOPPING_S, _AGAIN_S = 5.0, 0.05, 1.0


class Inline(JobQueue):
    """One job at a time, in a thread of this process: for `plan`, tests, and debugging. It cannot enforce timeouts."""

    def __init__(self) -> None:
        super().__init__(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing to bring up."""

    def _room(self) -> bool:
        return not self._flying

    def _hand(self, item: Item) -> None:
        self._flying[item.order] = item
        task = asyncio.create_task(self._work(item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, item: Item) -> None:
        done = asyncio.ensure_future(asyncio.to_thread(run_pickled, item.payload))
        await asyncio.wait([done])
        del self._flying[item.order]
        item.settle(done)
        self._feed()

    async def _stop(self) -> None:
        """A thread cannot be abandoned: what runs is waited for, its result is dropped."""
        if self._tasks:
            await asyncio.wait(self._tasks)


class Pool(JobQueue):
    """A ProcessPoolExecutor that survives its workers.

    `template`: what its workers are forked from, once it is warm; it ends with the pool. `memory_bytes`: what a job may
    allocate beyond the worker's imports (RLIMIT_AS). `eager`: all workers come up at the start, not each when there is
    work for it. `hasty`: `start` does not wait until they are up. `on_death` is called from the loop after each death
    that is put down to a job.
    """

    def __init__(
        self,
        workers: int,
        *,
        memory_bytes: int | None = None,
        template: Template | None = None,
        eager: bool = True,
        hasty: bool = False,
        max_deaths: int = MAX_DEATHS,
        on_death: Callable[[Job, Death], None] | None = None,
    ) -> None:
        super().__init__(workers)
        self._template = template or Template()
        self._beginnings = Beginnings(memory_bytes=memory_bytes, warm_up=self._template.warm_up)
        self._wanted, self._hasty = workers if eager else 1, hasty
        self._max_deaths = max_deaths
        self._on_death = on_death
        self._tokens = itertools.count()
        self._reports, self._reports_in = self._template.context.Pipe(duplex=False)
        self._pool: ProcessPoolExecutor | None = None
        self._workers: dict[int, BaseProcess] = {}
        self._suspects: deque[Item] = deque()
        self._lost: list[Item] = []
        self._ending = False
        self._grace: asyncio.TimerHandle | None = None
        self._burials: set[asyncio.Task[None]] = set()
        self._start: asyncio.Future[list[None]] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._warmed = False
        self._barren = 0

    async def start(self) -> None:
        """Bring the workers up, all at once. Raises WorkersCannotStart; if `hasty`, the first job does."""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._reports.fileno(), False)
        self._loop.add_reader(self._reports.fileno(), self._read_reports)
        self._warming = asyncio.create_task(self._warm())
        self._start = asyncio.gather(*(self.run(Nothing()) for _ in range(self._wanted)))
        if self._hasty:
            self._start.add_done_callback(lambda start: start.cancelled() or start.exception())
            return
        await self._start
        while len(self._workers) < self._wanted:  # a quick worker may do the next one's share, then ask again
            await asyncio.gather(*(self.run(Nothing()) for _ in range(self._wanted)))

    async def _warm(self) -> None:
        """Lets jobs go when there is something to fork workers from; the loop must not wait for that."""
        died = 0
        while not self._closing and died < _MAX_BARREN:
            try:
                self._template.start()  # here: its life follows this thread's
                await asyncio.to_thread(self._template.wait)
            except EOFError:  # it is made anew
                died += 1
            except OSError as error:  # for the caller to wait and try again (F8, F24)
                for item in self._withdraw():
                    item.fail(error)
                await asyncio.sleep(_AGAIN_S)
            else:
                self._warmed = True
                self._feed()
                return
        self._fail_all()

    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return tuple(self._workers)

    # --- handing over ----------------------------------------------------------------------------------------------

    def _withdraw(self) -> list[Item]:
        suspects, self._suspects = list(self._suspects), deque()
        return suspects + super()._withdraw()

    def _next(self) -> Item | None:
        if self._ending or any(item.alone for item in self._flying.values()):
            return None
        while self._suspects and not self._flying:
            item = self._suspects.popleft()
            if not item.future.done():
                item.alone = True
                return item
        return None if self._suspects else super()._next()

    def _room(self) -> bool:
        return self._warmed and len(self._flying) <= self._capacity

    def _hand(self, item: Item) -> None:
        token = next(self._tokens)
        try:
            future = self._submit(token, item.payload)
        except (BrokenProcessPool, EOFError):  # it, or its template, broke while idle; we were not told yet
            self._lost.append(item)
            self._end_pool()
            return
        except OSError as error:  # no process can be made now (F24): for the caller to wait and try again
            item.fail(error)
            self._end_pool(grace_s=None)
            return
        self._flying[token] = item
        future.add_done_callback(lambda done: self._call_soon(self._landed, token, done))

    def _submit(self, token: int, payload: bytes) -> Future[bytes]:
        if self._pool is None:
            arguments = (self._beginnings, self._reports_in)
            self._pool = ProcessPoolExecutor(
                self._capacity, mp_context=self._template.context, initializer=begin, initargs=arguments
            )
        before = set(multiprocessing.active_children())
        with self._template.forking():
            future = self._pool.submit(work, token, payload)
        # The pool's own thread may be asleep on an older list of workers when it spawns one: each is watched here too.
        for process in set(multiprocessing.active_children()) - before:
            self._workers[_pid(process)] = process
            self._loop.add_reader(process.sentinel, self._worker_ended, process)
        return future

    def _call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- what workers tell -----------------------------------------------------------------------------------------

    def _read_reports(self) -> None:
        with suppress(BlockingIOError):
            for token, pid in STARTED.iter_unpack(os.read(self._reports.fileno(), STARTED.size * 1024)):
                self._barren = 0
                if (item := self._flying.get(token)) is not None:
                    item.pid = pid
                    if item.timeout_s is not None:
                        item.timer = self._loop.call_later(item.timeout_s, self._hang, token)

    def _hang(self, token: int) -> None:
        item = self._flying.get(token)
        if item is not None and item.pid in self._workers:
            item.hung = True
            self._workers[item.pid].kill()  # it ignores SIGTERM

    def _landed(self, token: int, done: Future[bytes]) -> None:
        if token not in self._flying:  # given up when its pool ended
            return
        self._read_reports()  # the news that it had begun may still lie in the pipe
        item = self._flying.pop(token)
        item.stop_timer()
        if done.cancelled() or isinstance(done.exception(), BrokenProcessPool):
            self._lost.append(item)
            self._end_pool()
        else:
            item.settle(done)
        self._conclude_if_landed()
        self._feed()

    def _worker_ended(self, process: BaseProcess) -> None:
        self._loop.remove_reader(process.sentinel)
        if self._workers.get(_pid(process)) is process:
            self._end_pool()
            self._conclude_if_landed()

    # --- when a worker has died ------------------------------------------------------------------------------------

    def _end_pool(self, grace_s: float | None = _GRACE_S) -> None:
        """This pool is lost: let it hand out the results that it has, then find out who is to blame."""
        if self._ending or self._pool is None:
            return
        self._ending = True
        if grace_s is not None:  # a worker killed while it wrote a long result would leave the pool reading for ever
            self._grace = self._loop.call_later(grace_s, self._conclude)
        self._bury(self._pool)
        if not self._flying:
            self._loop.call_soon(self._conclude_if_landed)

    def _bury(self, pool: ProcessPoolExecutor) -> None:
        task = asyncio.ensure_future(asyncio.to_thread(pool.shutdown))
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    def _conclude_if_landed(self) -> None:
        if self._ending and not self._flying:
            self._conclude()

    def _conclude(self) -> None:
        self._stop_grace()
        self._read_reports()
        lost, self._lost = self._lost + list(self._flying.values()), []
        self._flying.clear()
        dead = self._kill_workers()
        self._ending, self._pool = False, None
        begun = [item for item in lost if item.pid]
        suspects = [item for item in begun if item.pid in dead] if dead else begun
        self._barren += bool(lost) and not begun
        for item in lost:
            item.stop_timer()
            if self._barren >= _MAX_BARREN:
                item.fail(_barren())
            elif self._closing:
                item.fail(closed())
            elif not item.future.done():
                self._again(item, suspect=item in suspects, exit_signal=dead.get(item.pid, 0))
        if self._barren >= _MAX_BARREN:
            self._fail_all()
        self._feed()

    def _fail_all(self) -> None:
        """No worker comes up: whoever waits is told."""
        self._barren = 0
        for item in self._withdraw():
            item.fail(_barren())

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _kill_workers(self) -> dict[int, int]:
        """End this pool's workers; returns those that had died, with the signal that ended them, 0 if not known.

        The pool's own thread may have known before we did, and told the others to leave: with 0, or with an error where
        their results were no longer taken. So where one was killed, only such count.
        """
        workers, self._workers = self._workers, {}
        codes: dict[int, int] = {}
        for pid, process in workers.items():
            self._loop.remove_reader(process.sentinel)
            code = process.exitcode
            if code is None:
                process.kill()
            elif code:
                codes[pid] = code
        killed = {pid: -code for pid, code in codes.items() if code < 0}
        return killed or dict.fromkeys(codes, 0)

    def _again(self, item: Item, *, suspect: bool, exit_signal: int) -> None:
        """Run a lost job again: beside others if it is innocent, alone if it may be what kills (M12)."""
        if suspect:
            item.deaths += item.alone or item.hung
            death = Death(pid=item.pid, signal=exit_signal, hung=item.hung, alone=item.alone, deaths=item.deaths)
            if self._on_death is not None:
                self._loop.call_soon(self._on_death, item.job, death)
            if item.deaths >= self._max_deaths:
                item.fail(self._quarantine(item, exit_signal))
                return
            self._suspects.append(item)
        elif item.alone:
            self._suspects.appendleft(item)
        else:
            self._admit(item)
        item.pid, item.alone, item.hung = 0, False, False

    def _quarantine(self, item: Item, exit_signal: int) -> Quarantined:
        how = "hung" if item.hung else f"died of {signal.Signals(exit_signal).name}" if exit_signal else "died"
        message = f"its worker {how}; {item.deaths} deaths alone, so it is not tried again"
        return Quarantined(Reason(rule="worker_died", value=item.deaths, threshold=self._max_deaths, message=message))

    # --- the end ---------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        pool, self._pool = self._pool, None
        idle = not self._flying
        self._flying.clear()
        for item in self._lost:
            item.fail(closed())
        if self._ending:
            self._ending = False
            self._stop_grace()
        elif pool is not None:
            self._bury(pool)
        if idle and self._burials:  # they leave by themselves when asked; those that do not are killed
            await asyncio.wait(self._burials, timeout=_GRACE_S / 2)
        if self._workers:
            self._kill_workers()
        if self._burials:
            await asyncio.wait(self._burials, timeout=_GRACE_S)
        if self._warming is not None:
            self._template.stop()
            while not self._warming.done():  # it may just have asked for another one
                await asyncio.wait([self._warming], timeout=_STOPPING_S)
                self._template.stop()
        if not self._reports.closed:
            asyncio.get_running_loop().remove_reader(self._reports.fileno())
            self._reports.close()
            self._reports_in.close()


def _pid(process: BaseProcess) -> int:
    assert process.pid is not None, "it was started"
    return process.pid


def _barren() -> WorkersCannotStart:
    message = f"{_MAX_BARREN} pools of workers died before one of them could begin a job"
    return WorkersCannotStart(Reason(rule="workers_cannot_start", threshold=_MAX_BARREN, message=message))
