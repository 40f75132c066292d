"""From settled files to frames of sessions: Phase 0 as the daemon runs it.

A settled file's header is read in a worker; the file is held (not whole yet), refused with its reason, or assigned to
its session by core.sessions. Nothing here decides; it asks the pure rules and journals their answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from zemosaicd.checks import ConfigError
from zemosaicd.core.course import course_of
from zemosaicd.core.events import Event, FrameAssigned, FrameRejected, SessionOpened
from zemosaicd.core.intake import Settled
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.modes import LEAST_TILES, MODES, Mode, choose
from zemosaicd.core.sessions import SessionPolicy, SessionScope, session_for
from zemosaicd.core.stackplan import NAME as STACK_PLAN
from zemosaicd.core.stackplan import folders_of
from zemosaicd.model import Fingerprint, Reason
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.log import Logger
from zemosaicd.shell.outputs import log_rejected
from zemosaicd.shell.sessions import SESSION_FILE, SessionConfigs, folder_settings, scope_of
from zemosaicd.shell.space import DiskGate
from zemosaicd.shell.tiles import FRAMES_FIRST, RunJob
from zemosaicd.shell.watch import Clock, Watcher
from zemosaicd.work.jobs import HeaderRead, ReadHeaders

HEADERS_A_JOB = 32

Tables = dict[str, dict[str, object] | ConfigError]
"""Folder -> what its session.toml sets, or why that cannot be used."""


class FrameIntake:
    """Assigns settled files to sessions. `whole_folder` makes one session of everything below it (process DIR)."""

    def __init__(
        self,
        engine: Engine,
        run_job: RunJob,
        configs: SessionConfigs,
        gate: DiskGate,
        clock: Clock,
        log: Logger,
        whole_folder: str = "",
    ) -> None:
        self._engine = engine
        self._run = run_job
        self._configs = configs
        self._gate = gate
        self._clock = clock
        self._log = log
        self._whole_folder = whole_folder
        self._scopes = {o.session: scope_of(o) for o in engine.journal.opened()}
        self._assigning = asyncio.Lock()
        self._lone: dict[str, HeaderRead] = {}  # by folder: a master tile that waits for another
        self.last_arrival_s: dict[str, float] = {}

    @property
    def scopes(self) -> dict[str, SessionScope]:
        """Every session that was ever opened, by its id."""
        return self._scopes

    async def take(self, settled: Sequence[Settled], watcher: Watcher) -> None:
        """Reads the headers of settled files, some at a time, and journals what each of them is."""
        tables = await self._tables_of({str(Path(s.path).parent) for s in settled}, watcher)
        parts = []
        for pictures in (False, True):
            alike = [s for s in settled if self._takes_pictures(tables[str(Path(s.path).parent)]) is pictures]
            parts += [(pictures, alike[i : i + HEADERS_A_JOB]) for i in range(0, len(alike), HEADERS_A_JOB)]
        read = await asyncio.gather(*(self._read(part, pictures) for pictures, part in parts))
        for answer in self._with_tiles([answer for part in read for answer in part], tables, watcher):
            await self._judge(answer, tables[str(Path(answer.path).parent)], watcher)

    async def _tables_of(self, folders: set[str], watcher: Watcher) -> Tables:
        """The session.toml that holds in each folder: of `process DIR`, DIR's own, whatever lies in subfolders (C7)."""
        found: Tables = {}
        for folder in sorted(folders):
            roots = watcher.roots
            where = self._whole_folder or folder
            try:
                found[folder] = await folder_settings(
                    str(Path(where) / SESSION_FILE), (where,) if self._whole_folder else roots, self._configs.base
                )
            except ConfigError as error:
                found[folder] = error
        return found

    def _takes_pictures(self, tables: dict[str, object] | ConfigError) -> bool:
        """Whether files in a folder of these settings are finished pictures; of one that cannot be read, raw frames."""
        return not isinstance(tables, ConfigError) and self._configs.mode(tables).takes_pictures

    async def _read(self, settled: Sequence[Settled], pictures: bool) -> list[HeaderRead]:
        files = tuple((s.path, s.fingerprint) for s in settled)
        job = ReadHeaders(files=files, budget=self._configs.budget(self._configs.base), pictures=pictures)
        try:
            return list(await self._gate.retrying("", partial(self._run, job, FRAMES_FIRST)))
        except Exception as error:  # noqa: BLE001 - a file that kills its reader is refused, file by file
            if len(settled) > 1:
                return [answer for one in settled for answer in await self._read([one], pictures)]
            reason = Reason(rule="unreadable", value=type(error).__name__, message=str(error))
            return [HeaderRead(path=files[0][0], fingerprint=files[0][1], reason=reason)]

    def _with_tiles(self, answers: Sequence[HeaderRead], tables: Tables, watcher: Watcher) -> list[HeaderRead]:
        """Where folders shall find out their mode and hold master tiles alone, these are taken (D4).

        A tile that is alone so far waits for another, unless all that there is has been seen (`process`).
        """
        folders: dict[str, list[HeaderRead]] = {}
        for answer in answers:
            folders.setdefault(self._whole_folder or str(Path(answer.path).parent), []).append(answer)
        return [answer for folder, some in folders.items() for answer in self._of_folder(folder, some, tables, watcher)]

    def _of_folder(self, folder: str, answers: list[HeaderRead], tables: Tables, watcher: Watcher) -> list[HeaderRead]:
        settings = tables[str(Path(answers[0].path).parent)]
        if isinstance(settings, ConfigError) or not self._configs.auto(settings):
            return answers
        if not any(a.tile is not None for a in answers):
            return answers
        waited = self._lone.pop(folder, None)
        if waited is not None and waited.path not in {a.path for a in answers}:
            watcher.take_over(waited.path, waited.fingerprint)
            answers = [waited, *answers]
        tiles = sum(a.tile is not None for a in answers)
        before = [self._engine.load(name).mode for name in self._engine.journal.sessions_below(folder)]
        known = sum(mode.takes_pictures for mode in before) * LEAST_TILES
        frames = sum(a.facts is not None for a in answers) + sum(mode.prepares for mode in before)
        if MODES[choose(tiles=tiles + known, frames=frames).mode].takes_pictures:
            return [
                replace(a, facts=a.tile, reason=None, incomplete=False) if a.tile is not None else a for a in answers
            ]
        if frames or self._whole_folder:
            return [replace(a, incomplete=False) if a.tile is not None else a for a in answers]
        (self._lone[folder],) = (replace(a, incomplete=True) for a in answers if a.tile is not None)
        return [replace(a, incomplete=a.incomplete or a.tile is not None) for a in answers]

    async def settle_mode(self, state: SessionState) -> None:
        """Before a session closes: whether its raw frames have a plan or are a sweep, where it shall find that out."""
        opened = state.opened
        if opened is None or not state.mode.prepares or not self._configs.auto(opened.settings):
            return
        folders = folders_of(state.frames, opened.whole_folder)
        plans = [str(Path(folder) / STACK_PLAN) for folder in folders]
        there = await asyncio.to_thread(lambda: tuple(p for p in plans if Path(p).is_file()))
        facts = [record.facts for record in state.frames.values() if record.rejected is None]
        course = await asyncio.to_thread(course_of, facts)
        choice = choose(frames=len(state.frames), stack_plans=there, course=course)
        if (opened.mode, opened.why) != (choice.mode, choice.why):
            await self._engine.record(replace(opened, mode=choice.mode, why=choice.why))
        self._log.info("mode_chosen", session=state.session, mode=choice.mode, reason=choice.why)

    async def _judge(self, answer: HeaderRead, tables: dict[str, object] | ConfigError, watcher: Watcher) -> None:
        reason = answer.reason
        if answer.incomplete and reason is not None:
            reason = self._hold(answer.path, answer.fingerprint, reason, watcher)
            if reason is None:
                return
            reason = answer.reason if answer.tile is not None else reason
        if reason is None and answer.facts is not None:
            if isinstance(tables, ConfigError):
                self._log.error("session_toml_invalid", frame=answer.path, reason=str(tables))
                held = Reason(rule="session_toml", message=str(tables))
                self._hold(answer.path, answer.fingerprint, held, watcher)  # never refused: the frame itself is good
            else:
                await self._assign(answer, tables)
            return
        if reason is not None:
            event = FrameRejected(session="", path=answer.path, fingerprint=answer.fingerprint, reason=reason)
            await self._engine.record(event)
            log_rejected(self._log, "", answer.path, reason)

    async def settings_of_folder(self, folder: str) -> dict[str, object]:
        """The session.toml of this very folder. Raises ConfigError."""
        return await folder_settings(str(Path(folder) / SESSION_FILE), (folder,), self._configs.base)

    def _hold(self, path: str, fingerprint: Fingerprint, reason: Reason, watcher: Watcher) -> Reason | None:
        """Not usable yet: looked at again later, or refused when its time is over (F6)."""
        final = watcher.hold(path, fingerprint, reason)
        if final is None:
            self._log.info(
                "frame_waiting", frame=Path(path).name, rule=reason.rule, reason=reason.message or reason.rule
            )
        return final

    async def _assign(self, answer: HeaderRead, settings: dict[str, object]) -> None:
        facts = answer.facts
        if facts is None:
            raise ValueError(f"{answer.path}: no facts to assign by")
        config = self._configs.with_settings(settings)
        choice = None if answer.tile is None else choose(tiles=LEAST_TILES)
        mode = self._configs.mode(settings, choice.mode if choice else "")
        policy = self._configs.session_policy(config)
        folder = self._whole_folder
        if folder:
            policy = SessionPolicy(join=True)
        elif policy.join:
            folder = str(_joined_folder(Path(answer.path)))
        async with self._assigning:  # two frames of a new target must not open it twice
            scope = session_for(
                facts,
                fallback_observed_s=answer.fingerprint.mtime_ns / 1e9,
                known=self._scopes.values(),
                policy=policy,
                folder=folder,
            )
            events: list[Event] = []
            if self._configs.auto(settings) and self._other_kind(scope, answer):
                await self._refuse(answer, scope)
                return
            if scope.id not in self._scopes:
                self._scopes[scope.id] = scope
                events.append(_opened(scope, settings, mode, self._clock.wall(), choice.why if choice else ""))
                self._log.info("session_opened", session=scope.id, night=scope.night, target=scope.target)
                self._log_first_phase(scope, mode)
            elif self._engine.load(scope.id).resting:
                self._log.info("session_reopened", session=scope.id, frame=Path(answer.path).name)
                self._log_first_phase(scope, mode)
            self.last_arrival_s[scope.id] = self._clock.monotonic()
            events.append(
                FrameAssigned(session=scope.id, path=answer.path, fingerprint=answer.fingerprint, facts=facts)
            )
            await self._engine.record(*events)
        self._log.debug("frame_settled", session=scope.id, frame=Path(answer.path).name)

    def _other_kind(self, scope: SessionScope, answer: HeaderRead) -> bool:
        known = scope.id in self._scopes
        return known and self._engine.load(scope.id).mode.takes_pictures != (answer.tile is not None)

    async def _refuse(self, answer: HeaderRead, scope: SessionScope) -> None:
        """Raw frames and finished pictures make no mosaic together."""
        message = f"session {scope.id} is of the other kind: raw frames and finished pictures do not mix"
        reason = Reason(rule="session.kind", value=scope.id, message=message)
        event = FrameRejected(session="", path=answer.path, fingerprint=answer.fingerprint, reason=reason)
        await self._engine.record(event)
        log_rejected(self._log, "", answer.path, reason)

    def _log_first_phase(self, scope: SessionScope, mode: Mode) -> None:
        if mode.prepares:
            self._log.info("PHASE_UPDATE", session=scope.id, phase="1")


def _joined_folder(path: Path) -> Path:
    """The folder whose session.toml joins what lies below it."""
    return next((f for f in path.parents if (f / SESSION_FILE).is_file()), path.parent)


def _opened(scope: SessionScope, settings: dict[str, object], mode: Mode, wall_s: float, why: str) -> SessionOpened:
    return SessionOpened(
        session=scope.id,
        night=scope.night,
        target=scope.target,
        telescope=scope.telescope,
        ra_deg=scope.ra_deg,
        dec_deg=scope.dec_deg,
        field_radius_deg=scope.field_radius_deg,
        whole_folder=scope.whole_folder,
        settings=settings,
        opened_at=wall_s,
        mode=mode.name,
        why=why,
    )
