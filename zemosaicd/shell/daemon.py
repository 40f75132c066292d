"""The composition root: everything is built, started, watched and stopped here, in that order.

`start`, `serve` and `stop` are the three acts of a run; signals only set events. `process DIR` is the same daemon
with one watched folder, one session of all that lies there, and an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zemosaicd import __version__
from zemosaicd.checks import ConfigError
from zemosaicd.core import lifecycle
from zemosaicd.core.events import Event, FrameRemoved, SessionClosed
from zemosaicd.core.intake import IntakeRules
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.modes import mode_named
from zemosaicd.core.sessions import CloseCause, Closing, closing
from zemosaicd.model import Fingerprint
from zemosaicd.settings import Config
from zemosaicd.shell import requests
from zemosaicd.shell.effects import Effects
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.executors import Death, Executor, ExecutorClosed, Inline, Job, Pool, WorkersCannotStart
from zemosaicd.shell.intake import FrameIntake
from zemosaicd.shell.journal import Journal
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger
from zemosaicd.shell.outputs import FOLDER_MODE
from zemosaicd.shell.retention import expire_failed
from zemosaicd.shell.sessions import SessionConfigs, host_offset_s
from zemosaicd.shell.space import DiskGate
from zemosaicd.shell.status import make_status
from zemosaicd.shell.supervisor import DaemonStatus, Notifier, beat, keep_status, patiently, side_task, write_status
from zemosaicd.shell.template import Template, template_of
from zemosaicd.shell.watch import Batch, SystemClock, Watcher, WatchPolicy
from zemosaicd.work.store import set_mode

TICK_S = 0.5
"""How often closing times and requests are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """`process DIR`: what lies there, then the end. `split`: by night and target, as the daemon would."""

    folder: str
    split: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a running daemon is made of."""

    engine: Engine
    executor: Executor
    configs: SessionConfigs
    gate: DiskGate
    intake: FrameIntake
    watcher: Watcher
    notifier: Notifier


class Daemon:
    """One run over one state folder. `outcomes`: the sessions that `process` worked on, once they rest. `template`:
    what workers are forked from, if it has been begun already.
    """

    def __init__(
        self, config: Config, log: Logger, *, once: Once | None = None, reload: Callable[[], Config] | None = None,
        template: Template | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.layout = Layout(state=Path(config.paths.state), output=Path(config.paths.output))
        self.outcomes: dict[str, SessionState] = {}
        self.interrupted = False
        self.state = "starting"
        self._log = log
        self._gate = DiskGate(log, (self.layout.state, self.layout.output))
        self._once = once
        self._reload = reload
        self._template = template
        self._stop = asyncio.Event()
        self._abandon = asyncio.Event()
        self._closing = asyncio.Lock()
        self._close_next: dict[str, CloseCause] = {}
        self._clock = SystemClock()
        self._started_s = self._clock.wall()

    async def run(self) -> None:
        """The whole life. Raises Fatal for what cannot be started; an unexpected error of the engine is raised too."""
        self._make_folders()
        journal = await self._gate.retrying("", self._open_journal)
        executor = self._make_executor()
        try:
            self._log.info("daemon_started", version=__version__, pid=os.getpid(), state=str(self.layout.state))
            parts = self._build(journal, executor)
            self._listen(parts)
            await patiently(parts.notifier, executor.start())
            await self._serve(parts)
        finally:
            await executor.aclose(0.0)
            await journal.aclose()

    async def _open_journal(self) -> Journal:
        return Journal.open(self.layout.journal)  # blocks, and may: nothing runs yet

    # --- start -----------------------------------------------------------------------------------------------------

    def _make_folders(self) -> None:
        self.layout.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.layout.requests.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.layout.output, *map(Path, self.config.paths.incoming)):
            with contextlib.suppress(OSError):  # there already; or a share that is away: the watcher will say so
                folder.mkdir(parents=folder is self.layout.output)
                set_mode(folder, FOLDER_MODE)

    def _make_executor(self) -> Executor:
        table, mode = self.config.executor, mode_named(self.config.session.mode)
        if table.kind == "inline":
            return Inline()
        return Pool(
            table.workers or os.cpu_count() or 1,
            memory_bytes=table.memory_mb * 1_000_000,
            template=self._template or template_of(self.config),
            eager=self._once is None or mode.many_jobs,
            hasty=self._once is not None,
            on_death=self._on_death,
        )

    def _on_death(self, job: Job, death: Death) -> None:
        self._log.warning("worker_died", job=type(job).__name__, **asdict(death))

    def _build(self, journal: Journal, executor: Executor) -> Parts:
        """Who knows whom: from here on nobody asks for a part that was not handed over."""
        config, log, layout = self.config, self._log, self.layout
        gate, configs = self._gate, SessionConfigs(config)

        async def run_job(job: Job, priority: int) -> Any:
            try:
                return await executor.run(job, priority=priority, timeout_s=config.executor.job_timeout_s)
            except ExecutorClosed as error:
                raise asyncio.CancelledError from error  # we are stopping: the journal says what is left to do
            except WorkersCannotStart as error:
                engine.fail(error)
                raise asyncio.CancelledError from error

        capacity = executor.capacity
        engine = Engine(journal, gate, lambda engine: Effects(engine, run_job, configs, layout, gate, log, capacity))
        folder = "" if self._once is None or self._once.split else self._once.folder
        watcher = Watcher(
            config.paths.incoming,
            *_watching(config, once=self._once is not None),
            log=log,
            prune=(str(layout.output), str(layout.state)),
            known=journal.known if not folder else partial(_known_of_folder, journal, folder),
            clock=self._clock,
        )
        return Parts(
            engine=engine,
            executor=executor,
            configs=configs,
            gate=gate,
            intake=FrameIntake(engine, run_job, configs, gate, self._clock, log, folder),
            watcher=watcher,
            notifier=Notifier.from_environment(os.environ),
        )

    def _listen(self, parts: Parts) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal, parts)

    def _on_stop_signal(self) -> None:
        """The first asks for a drain, the second ends it (F13)."""
        (self._abandon if self._stop.is_set() else self._stop).set()

    def _on_reload_signal(self, parts: Parts) -> None:
        """SIGHUP: the new configuration if it is good, else the old one and an error (F34)."""
        if self._reload is None:
            return
        parts.notifier.reloading()
        try:
            fresh = self._reload()
        except ConfigError as error:
            self._log.error("config_kept", reason=str(error))
        else:
            parts.configs.base = fresh
            parts.watcher.reconfigure(*_watching(fresh, once=self._once is not None))
            self._log.info("config_reloaded")
            stale = [t for t in ("paths", "executor", "log", "service") if getattr(fresh, t) != getattr(self.config, t)]
            if stale:
                self._log.warning("config_needs_restart", tables=stale)
        parts.notifier.ready()

    # --- serve -----------------------------------------------------------------------------------------------------

    async def _serve(self, parts: Parts) -> None:
        engine, notifier = parts.engine, parts.notifier
        if recovered := engine.recover():
            self._log.info("journal_recovered", sessions=recovered)
        tasks = [
            asyncio.create_task(side_task(name, work, self._log), name=name) for name, work in self._side_tasks(parts)
        ]
        self.state = "running"
        notifier.ready("watching")
        self._log.info("daemon_ready", incoming=list(self.config.paths.incoming), output=str(self.layout.output))
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        main = asyncio.create_task(self._main(parts), name="main")
        try:
            everything: list[asyncio.Future[Any]] = [stop, main, engine.failure, *tasks]
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(parts)
            for ended in (engine.failure, main, *tasks):
                if ended.done() and not ended.cancelled():
                    ended.result()
        finally:
            for task in (stop, main, *tasks):
                task.cancel()
            await asyncio.gather(stop, main, *tasks, return_exceptions=True)
            engine.failure.cancel()
            self.state = "stopped"
            with contextlib.suppress(OSError):  # the status is a courtesy; a full disk must not spoil the stop
                await write_status(self.layout.status, self._status(parts))
            notifier.close()
            self._log.info("daemon_stopped")

    def _side_tasks(self, parts: Parts) -> list[tuple[str, Awaitable[object]]]:
        """What must last as long as the daemon (F14)."""
        status = partial(self._status, parts)
        side: list[tuple[str, Awaitable[object]]] = [
            ("status", keep_status(self.layout.status, status, parts.notifier, self._log)),
            ("heartbeat", beat(parts.notifier, parts.engine.trouble, self._log)),
        ]
        if self._once is None:
            side += [
                ("watch", parts.watcher.run(partial(self._deliver, parts))),
                ("closing", self._close_when_due(parts)),
                ("retention", expire_failed(parts.engine, self.layout, parts.configs, self._log)),
            ]
        return side

    def _status(self, parts: Parts) -> DaemonStatus:
        return make_status(
            self.state,
            self._started_s,
            parts.engine,
            parts.watcher,
            self._clock,
            parts.gate.paused,
            partial(self._closing_of, parts),
        )

    async def _main(self, parts: Parts) -> None:
        """What a run waits for: for ever, or for `process` until its sessions rest."""
        if self._once is None:
            await asyncio.Event().wait()
            return
        engine, intake = parts.engine, parts.intake
        await parts.watcher.run(partial(self._deliver, parts))
        folder, below = self._once.folder, engine.journal.sessions_below(self._once.folder)
        whole = not self._once.split
        ours = sorted(n for n, s in intake.scopes.items() if s.whole_folder == folder or (not whole and n in below))
        if whole:
            for name in ours:
                await self._follow_folder(parts, engine.load(name))
        open_now = ours
        while open_now:
            for name in open_now:
                await self._close(parts, name, CloseCause.PROCESS)
            await engine.wait_for(lambda: all(engine.at_rest(n) or not engine.load(n).closed for n in ours))
            # Of a run that was cut off a revision may have been under way; what came since makes the next one (F28).
            open_now = [name for name in ours if not engine.at_rest(name)]
        self.outcomes = {name: engine.load(name) for name in ours}

    async def _follow_folder(self, parts: Parts, state: SessionState) -> None:
        """`process` makes one session of all that DIR holds *now*: what was taken out goes, a new session.toml holds.

        Only a session that rests, or has not closed yet, can follow; one that was cut off is finished first.
        """
        if state.closed and not state.resting:
            return
        gone = await asyncio.to_thread(lambda: [p for p in state.frames if not os.path.lexists(p)])
        events: list[Event] = [FrameRemoved(session=state.session, path=path) for path in gone]
        settings = await parts.intake.settings_of_folder(self._once.folder if self._once else "")
        mode = parts.configs.mode(settings, state.opened.mode if state.opened else "").name
        if state.opened is not None and (state.opened.settings, state.opened.mode) != (settings, mode):
            events.append(replace(state.opened, settings=settings, mode=mode))
        if events:
            self._log.info("session_follows_folder", session=state.session, removed=len(gone))
            await parts.engine.record(*events)

    async def _deliver(self, parts: Parts, batch: Batch) -> None:
        await parts.intake.take(batch.settled, parts.watcher)
        for marker in batch.markers:
            set_at_ns = await asyncio.to_thread(_mtime_ns, marker)
            folder = str(Path(marker).parent) + os.sep
            for state in list(parts.engine.states.values()):
                written = [r.fingerprint.mtime_ns for path, r in state.frames.items() if path.startswith(folder)]
                # Older than a frame that it should close: yesterday's marker, left lying.
                if written and not state.resting and set_at_ns >= max(written):
                    await self._close(parts, state.session, CloseCause.MARKER)

    # --- closing ---------------------------------------------------------------------------------------------------

    async def _close_when_due(self, parts: Parts) -> None:
        """Closes sessions by quiet time, by time of day and on request (C3)."""
        while True:
            for path, request in list(requests.waiting(self.layout.requests)):
                if request is not None and request.verb == "close":
                    await self._close(parts, request.session, CloseCause.COMMAND)
                path.unlink(missing_ok=True)
            for state in list(parts.engine.states.values()):
                due = self._closing_of(parts, state)
                cause = due.cause if due is not None else None
                if not state.closed:
                    cause = self._close_next.pop(state.session, cause)
                if cause is not None:
                    await self._close(parts, state.session, cause)
                parts.engine.forget(state.session)
            await asyncio.sleep(TICK_S)

    def _closing_of(self, parts: Parts, state: SessionState) -> Closing | None:
        """What an open session waits for; None for one that is closed, has no frames, or waits for `process`."""
        if state.closed or not state.frames or self._once is not None:
            return None
        now_s = self._clock.monotonic()
        return closing(
            parts.configs.closing_policy(parts.configs.of(state)),
            now_s=now_s,
            last_arrival_s=parts.intake.last_arrival_s.setdefault(state.session, now_s),
            local_s=self._clock.wall() + host_offset_s(),
        )

    async def _close(self, parts: Parts, session: str, cause: CloseCause) -> None:
        """Closes a session's open revision; one that rests is done again only when somebody asks for it."""
        async with self._closing:  # a marker and a quiet time must not close the same revision twice
            await self._close_once(parts, session, cause)

    async def _close_once(self, parts: Parts, session: str, cause: CloseCause) -> None:
        if session not in parts.intake.scopes:
            self._log.warning("session_unknown", session=session)
            return
        state = parts.engine.load(session)
        if state.closed and lifecycle.has_late_frames(state):
            self._close_next[session] = cause  # meant for the frames that wait for the next revision
        asked = cause in (CloseCause.PROCESS, CloseCause.COMMAND)
        if (state.closed and not (asked and state.resting)) or not state.frames:
            return
        await parts.intake.settle_mode(state)
        event = SessionClosed(
            session=session, revision=state.revision + 1, cause=cause.value, closed_at=self._clock.wall()
        )
        self._log.info("session_closed", session=session, cause=cause.value, frames=len(state.frames))
        await parts.engine.record(event)

    # --- stop ------------------------------------------------------------------------------------------------------

    async def _drain(self, parts: Parts) -> None:
        """Nothing new, then what runs may end within drain_s; a second signal ends the wait (F12, F13)."""
        self.state = "stopping"
        self.interrupted = self._stop.is_set()
        parts.notifier.stopping("draining")
        drain_s = self.config.service.drain_s if self._stop.is_set() else 0.0
        if parts.engine.in_flight:
            self._log.info("daemon_draining", in_flight=parts.engine.in_flight, drain_s=drain_s)
            parts.notifier.extend_timeout(drain_s + 30.0)

        async def stop_executor() -> None:
            closing_down = asyncio.create_task(parts.executor.aclose(drain_s))
            abandon = asyncio.create_task(self._abandon.wait())
            await asyncio.wait({closing_down, abandon}, return_when=asyncio.FIRST_COMPLETED)
            abandon.cancel()
            if not closing_down.done():
                closing_down.cancel()
                await asyncio.gather(closing_down, return_exceptions=True)
                await parts.executor.aclose(0.0)

        await parts.engine.drain(stop_executor)


def _mtime_ns(path: str) -> int:
    """When a file was last written; -1 if it has gone."""
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return -1


def _known_of_folder(journal: Journal, folder: str, paths: Sequence[str]) -> Mapping[str, Fingerprint]:
    """What the session of this whole folder has judged; what other sessions took of it counts anew for `process`."""
    session = next((o.session for o in journal.opened() if o.whole_folder == folder), None)
    return {} if session is None else journal.known(paths, session)


def _watching(config: Config, *, once: bool) -> tuple[IntakeRules, WatchPolicy]:
    """Tables [watch] and [session] as far as the watcher goes."""
    watch = config.watch
    rules = IntakeRules(
        settle_s=watch.settle_s, give_up_s=watch.give_up_s, ignore=watch.ignore, marker=config.session.marker
    )
    return rules, WatchPolicy(scan_s=watch.scan_s, polling=watch.polling, once=once)
