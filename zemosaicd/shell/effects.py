"""Instructions carried out: each is a coroutine that runs jobs, and journals what came of them.

Order is always *journal the result -> release the caches -> unlink* (R4, R9). A job's own refusal becomes an event; a
disk that is full or gone pauses the session and is tried again (F8, F22); anything else a job raises is reported as
`internal_error` against that frame or tile, so that one strange file never stops the daemon.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from zemosaicd.core import canvas, lifecycle, mount
from zemosaicd.core.cleaning import doomed
from zemosaicd.core.events import (
    ArtefactMade,
    FramePrepared,
    FrameRejected,
    JobStarted,
    MosaicPublished,
    SessionCleaned,
    SessionEnded,
    SessionPlanned,
    TileDone,
)
from zemosaicd.core.lifecycle import Clean, End, Instruction, MakePlan, MergeTiles, Prepare, SessionState, StackTile
from zemosaicd.core.modes import MODES
from zemosaicd.core.report import build_report
from zemosaicd.core.supertiles import parts_of_mosaic, supers_of
from zemosaicd.model import (
    Artefact,
    ArtefactKind,
    LogNote,
    MosaicSpec,
    Plan,
    Reason,
    SessionFailed,
    ZemosaicdError,
)
from zemosaicd.shell import outputs
from zemosaicd.shell.caches import CacheTable
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.executors import Job
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger
from zemosaicd.shell.planners import PLANNERS
from zemosaicd.shell.rebuild import Rebuilder
from zemosaicd.shell.retention import clean_session
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.shell.space import DiskGate, frame_bytes, still_needed_bytes
from zemosaicd.shell.supertiles import TileMerger
from zemosaicd.shell.tiles import (
    FRAMES_FIRST,
    MAX_INTERRUPTED,
    RunJob,
    TileMaker,
    not_counted,
    with_others_ready,
    with_smaller_bands,
)
from zemosaicd.work import jobs, planfiles


class Effects:
    """Carries out instructions for one engine. `capacity`: how many jobs run at once.

    Of thousands of frames and tiles that are due only those take their turn that can soon run: so the floor of free
    space holds (F8), and a tile that never began is not blamed for a crash (F21).
    """

    def __init__(
        self,
        engine: Engine,
        run_job: RunJob,
        configs: SessionConfigs,
        layout: Layout,
        gate: DiskGate,
        log: Logger,
        capacity: int,
    ) -> None:
        self._engine = engine
        self._run = run_job
        self._configs = configs
        self._layout = layout
        self._gate = gate
        self._log = log
        self._capacity = capacity
        self._turns: dict[type[Instruction], asyncio.Semaphore] = {
            Prepare: asyncio.Semaphore(2 * capacity + 1),
            StackTile: asyncio.Semaphore(capacity),
            MergeTiles: asyncio.Semaphore(capacity),
        }
        self._tables: dict[tuple[str, int], CacheTable] = {}
        self._unreleased: dict[tuple[str, int], set[int]] = {}
        caches = self._rebuilder = Rebuilder(engine, self._run_into, configs, log)
        self._tiles = TileMaker(engine, run_job, configs, layout, gate, caches, log, capacity)
        self._merger = TileMerger(engine, run_job, configs, layout, gate, log)

    async def perform(self, instruction: Instruction) -> None:
        """Carries out one instruction; what came of it is journalled when this returns."""
        async with self._turns.get(type(instruction)) or nullcontext():
            if self._engine.draining:
                raise asyncio.CancelledError
            await self._perform(self._engine.states[instruction.session], instruction)

    async def _perform(self, state: SessionState, instruction: Instruction) -> None:
        match instruction:
            case Prepare():
                await self._prepare(state, instruction.path)
            case MakePlan():
                await self._plan(state)
            case StackTile():
                await self._stack(state, instruction.tile)
            case MergeTiles():
                await self._merger.merge(state, instruction.tile)
            case lifecycle.MakeMosaic():
                await self._mosaic(state, instruction.mosaic)
            case End():
                await self._end(state, instruction.outcome, instruction.reason)
            case Clean():
                await self._clean(state, instruction.outcome)
            case _:
                raise TypeError(f"no effect for {instruction}")

    # --- Phase 1 ---------------------------------------------------------------------------------------------------

    async def _prepare(self, state: SessionState, path: str) -> None:
        config = self._configs.of(state)
        record = state.frames[path]
        cache = self._layout.cache(state.session, path, record.fingerprint)
        artefact = Artefact(path=str(cache), kind=ArtefactKind.CACHE)
        await self._engine.record(ArtefactMade(session=state.session, artefact=artefact))
        await self._gate.room(state.session, frame_bytes(record.facts), config.service)
        job = jobs.PrepareFrame(
            path=path,
            cache=str(cache),
            budget=self._configs.budget(config),
            scale_arcsec=config.frames.pixel_scale_arcsec,
        )
        try:
            prepared = await self._run_into(state, cache.parent, job)
        except ZemosaicdError as error:
            reason = error.reason
        except OSError as error:
            reason = Reason(rule="unreadable", value=str(error.strerror), message=f"{path}: {error.strerror}")
        except Exception as error:  # noqa: BLE001 - one strange frame must not stop the daemon
            self._log.exception("internal_error", session=state.session, subject=path)
            reason = Reason(rule="internal_error", value=type(error).__name__, message=str(error))
        else:
            seen = record.fingerprint  # the file may have changed while it was prepared (C2)
            await self._engine.record(
                FramePrepared(session=state.session, path=path, prepared=prepared, fingerprint=seen)
            )
            outputs.log_prepared(self._log, state.session, prepared)
            return
        event = FrameRejected(session=state.session, path=path, fingerprint=record.fingerprint, reason=reason)
        await self._engine.record(event)
        outputs.log_rejected(self._log, state.session, path, reason)

    async def _run_into(self, state: SessionState, folder: Path, job: Job) -> Any:
        """Runs a job on a frame that writes into a folder of the session's, whenever the disk can take it."""

        async def attempt() -> Any:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return await self._run(job, FRAMES_FIRST)

        return await self._gate.retrying(state.session, attempt)

    # --- Phase 2 ---------------------------------------------------------------------------------------------------

    async def _plan(self, state: SessionState) -> None:
        session, revision, config = state.session, state.revision, self._configs.of(state)
        planner = PLANNERS[state.mode.planner]
        await self._let_go_of_plan(state)
        self._log.info("PHASE_UPDATE", session=session, phase=state.mode.plan_phase)
        request_file, plan_file = self._layout.frames_file(session, revision), self._layout.plan_file(session, revision)
        await self._engine.record(
            *(
                ArtefactMade(session=session, artefact=Artefact(path=str(p), kind=ArtefactKind.SCRATCH))
                for p in (request_file, plan_file)
            )
        )
        request, job = planner.request(state, config), planner.job(request_file, plan_file, state.plan)

        if state.mode.plans_by_pixels:
            await self._rebuilder.ensure(state, [r.prepared for r in state.frames.values() if r.prepared is not None])

        async def attempt() -> jobs.PhaseMade:
            await asyncio.to_thread(planfiles.write_request, request, request_file)
            others = self._capacity - 1 if state.mode.prepares else 0
            made: jobs.PhaseMade = await with_others_ready(self._run, job, jobs.GetReady(phase=3), others)
            return made

        try:
            made = await self._gate.retrying(session, attempt)
            plan = await asyncio.to_thread(planfiles.read_plan, plan_file)
        except Exception as error:  # noqa: BLE001 - reported as the session's failure
            await self._fail(state, error)
            return
        said = (*made.notes, *planner.notes(state, config, plan), *canvas.notes(plan))
        outputs.log_notes(self._log, session, said)
        key = outputs.content_key(plan, self._configs.content(config, state.mode))
        if key == state.last_key and outputs.all_there(state.last_published, self._layout.output):
            where = next(iter(state.last_published.values())).path
            reason = Reason(rule="unchanged", value=where, message=f"the same frames and settings as before: {where}")
            await self._end(state, "unchanged", reason)
            return
        outputs.log_plan(self._log, session, plan, made)
        planned = SessionPlanned(session=session, revision=revision, plan=plan, key=key)
        await self._engine.record(*self._to_make(session, plan), planned, *made_tiles(session, revision, plan))

    async def _let_go_of_plan(self, state: SessionState) -> None:
        """Before a step back (`Mode.steps_back`): the tiles that failed have ended, and nobody counts their caches."""

        def ended() -> bool:
            return not any(isinstance(i, StackTile) and i.session == state.session for i in self._engine.running())

        await self._engine.wait_for(ended)
        self._tables.pop((state.session, state.revision), None)
        self._unreleased.pop((state.session, state.revision), None)

    def _to_make(self, session: str, plan: Plan) -> list[ArtefactMade]:
        """The manifest's lines for tiles that are yet to be made; those that lie there are nobody's to delete (P9)."""
        wanted = [(MODES[plan.mode].tile_kind, t.tile) for t in plan.tiles if t.tile not in plan.made]
        wanted += [(ArtefactKind.SUPER_TILE, number) for number in plan.supers]
        paths = [(kind, self._layout.master_tile(session, number, kind)) for kind, number in wanted]
        return [ArtefactMade(session=session, artefact=Artefact(path=str(p), kind=kind)) for kind, p in paths]

    # --- Phase 3 ---------------------------------------------------------------------------------------------------

    async def _table(self, state: SessionState, plan: Plan) -> CacheTable:
        """The refcount table of this revision, built from the journal's plan and results, never from memory (R9)."""
        key = (state.session, state.revision)
        if key not in self._tables:
            self._log.info("PHASE_UPDATE", session=state.session, phase="3")
            users = {t.tile: [plan.frames[f].cache for f in t.frames] for t in plan.tiles}
            self._unreleased[key] = {t.tile for t in lifecycle.pending_tiles(state)}
            self._tables[key] = CacheTable(
                users,
                root=str(self._layout.caches(state.session)),
                retention=self._configs.of(state).cleanup.cache_retention,
                finished=set(state.done) | set(state.failed),
                log=self._log.bind(session=state.session),
            )
            await self._tables[key].start()
        return self._tables[key]

    async def _stack(self, state: SessionState, number: int) -> None:
        plan = _plan_of(state)
        spec = next(t for t in plan.tiles if t.tile == number)
        table = await self._table(state, plan)
        outputs.log_notes(self._log, state.session, [mount.gating_note(number, spec.mount_mode, plan.altaz_cleanup)])
        await self._gate.room(state.session, still_needed_bytes(state), self._configs.of(state).service)
        waiting = self._unreleased[state.session, state.revision]
        event = await self._tiles.result(state, plan, spec)
        await self._engine.record(event)
        await table.release(number)
        waiting.discard(number)
        if not waiting:
            await table.finish()
        if isinstance(event, TileDone):
            self._log.info("tile_stacked", session=state.session, tile=number, **event.figures)
        else:
            self._log.warning(
                "run_warn_phase3_master_tile_creation_failed_thread",
                session=state.session,
                stack_num=number,
                reason=event.reason.message or event.reason.rule,
            )

    # --- Phases 4 to 6 ---------------------------------------------------------------------------------------------

    async def _mosaic(self, state: SessionState, name: str) -> None:
        session, revision = state.session, state.revision
        plan = _plan_of(state)
        spec = next(m for m in plan.mosaics if m.name == name)
        for phase in ("5",) if state.merged or state.unmerged else ("4", "5"):  # Phase 4.5 came between them
            if phase != state.mode.plan_phase:
                self._log.info("PHASE_UPDATE", session=session, phase=phase)

        async def attempt() -> tuple[jobs.PhaseMade, dict[str, Any], Path]:
            folder = await asyncio.to_thread(self._layout.output_folder, state, plan, spec)  # each time: it may be away
            await self._engine.record(*(ArtefactMade(session=session, artefact=a) for a in outputs.intended(folder)))
            staged = await asyncio.to_thread(outputs.stage, folder, revision)
            await self._engine.record(ArtefactMade(session=session, artefact=staged.artefact()))
            made = await with_smaller_bands(self._run, self._mosaic_job(state, spec, staged))
            self._log.info("PHASE_UPDATE", session=session, phase="6")
            report = build_report(state, spec, made.figures, outputs.cost(made), refused)
            previous = state.last_published[name].revision if name in state.last_published else 0
            await outputs.publish(staged, report, previous)
            return made, report, folder / outputs.MOSAIC

        await self._gate.room(session, still_needed_bytes(state), self._configs.of(state).service)
        refused = await asyncio.to_thread(outputs.refused_beside, self._engine.journal, state)
        job_name = f"mosaic {name}"
        attempts = state.attempts.get(job_name, 0) + 1
        await self._engine.record(JobStarted(session=session, revision=revision, job=job_name, attempt=attempts))
        try:
            if attempts > MAX_INTERRUPTED:
                raise SessionFailed(Reason(rule="interrupted", value=attempts, threshold=MAX_INTERRUPTED))
            made, report, where = await self._gate.retrying(session, attempt)
        except asyncio.CancelledError:
            await not_counted(self._engine, session, revision, job_name, attempts)
            raise
        except Exception as error:  # noqa: BLE001 - reported as the session's failure
            await self._fail(state, error)
            return
        outputs.log_notes(self._log, session, made.notes)
        await self._engine.record(
            MosaicPublished(
                session=session,
                revision=revision,
                mosaic=name,
                path=str(where),
                verdict=str(report["verdict"]),
                figures={**made.figures, "seconds": made.seconds, "peak_rss_mb": made.peak_rss_mb},
            )
        )
        if success := MODES[plan.mode].success:
            outputs.log_notes(self._log, session, [LogNote(level="info", event=success)])
        self._log.info("mosaic_published", session=session, path=str(where), verdict=report["verdict"])
        for doubt in report["doubts"]:
            self._log.warning("mosaic_doubted", session=session, mosaic=name, **doubt)

    def _mosaic_job(self, state: SessionState, spec: MosaicSpec, staged: outputs.Staged) -> jobs.MakeMosaic:
        done = {t: state.done[t] for t in spec.tiles if t in state.done}
        return jobs.MakeMosaic(
            plan_path=str(self._layout.plan_file(state.session, state.revision)),
            name=spec.name,
            tiles=parts_of_mosaic(spec, state.done, state.merged),
            without=tuple(sorted({f for tile in done.values() for f in tile.figures["without"]})),
            mosaic=str(staged.mosaic),
            preview=str(staged.preview),
            session=state.session,
            revision=state.revision,
            settings=self._configs.mosaic_settings(self._configs.of(state)),
            supers=tuple((number, made.members) for number, made in supers_of(spec, state.merged).items()),
        )

    # --- endings ---------------------------------------------------------------------------------------------------

    async def _fail(self, state: SessionState, error: Exception) -> None:
        if isinstance(error, ZemosaicdError):
            reason = error.reason
        else:
            self._log.exception("internal_error", session=state.session, subject=state.session)
            reason = Reason(rule="internal_error", value=type(error).__name__, message=str(error))
        await self._end(state, "failed", reason)

    async def _end(self, state: SessionState, outcome: str, reason: Reason) -> None:
        event = SessionEnded(session=state.session, revision=state.revision, outcome=outcome, reason=reason)
        await self._engine.record(event)
        level = "error" if outcome == "failed" else "warning" if outcome == "empty" else "info"
        fields: dict[str, object] = {"outcome": outcome, "rule": reason.rule, "reason": reason.message or reason.rule}
        outputs.log_notes(self._log, state.session, [LogNote(level=level, event=f"session_{outcome}", fields=fields)])

    async def _clean(self, state: SessionState, outcome: str) -> None:
        """Phase 7, from the manifest."""
        session, revision = state.session, state.revision
        self._log.info("PHASE_UPDATE", session=session, phase="7")
        self._tables.pop((session, revision), None)
        self._unreleased.pop((session, revision), None)
        self._merger.forget(session, revision)
        policy = self._configs.cleanup_policy(self._configs.of(state))
        manifest = list(state.manifest.values())
        cleaned = await asyncio.to_thread(
            clean_session, manifest, policy, self._layout.session(session), self._log.bind(session=session)
        )
        event = SessionCleaned(
            session=session,
            revision=revision,
            removed=cleaned.removed,
            kept=cleaned.kept,
            outcome=outcome,
            kept_kinds=tuple(sorted({a.kind for a in doomed(manifest, policy)[1]})),
        )
        done = outputs.done_fields(state, outcome, cleaned)
        await self._engine.record(event)
        self._log.info("session_done", session=session, **done)


def made_tiles(session: str, revision: int, plan: Plan) -> list[TileDone]:
    """Tiles of the plan that lie there already: done before anything was begun."""
    return [
        TileDone(
            session=session,
            revision=revision,
            tile=t.tile,
            path=plan.made[t.tile],
            frames_used=len(t.frames),
            figures={"without": []},
        )
        for t in plan.tiles
        if t.tile in plan.made
    ]


def _plan_of(state: SessionState) -> Plan:
    if state.plan is None:
        raise ValueError(f"{state.session}: no plan in revision {state.revision}")
    return state.plan
