"""Phase 3 for one tile: tried until it is done, or its last try is spent (R4, F9, F10, F21)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from zemosaicd.core.events import JobStarted, TileDone, TileFailed
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.modes import MODES
from zemosaicd.model import FrameId, Plan, Reason, SessionFailed, TileSpec, ZemosaicdError
from zemosaicd.model import TileFailed as NoTile
from zemosaicd.shell import outputs
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.executors import Job, Quarantined
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger
from zemosaicd.shell.rebuild import Rebuilder
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.shell.space import DiskGate
from zemosaicd.work import jobs

RunJob = Callable[[Job, int], Awaitable[Any]]
"""Runs a job at a priority (lower first) within the configured time."""

FRAMES_FIRST, TILES_AFTER, IDLE_ONLY = 0, 1, 2
"""Priorities: a frame that arrives is not starved behind tiles (C7)."""

MAX_INTERRUPTED = 5
"""A job that was begun so often without an end is a poison job, or the power is; its tile becomes a hole (F21)."""

BAND_HALVINGS = 4


async def not_counted(engine: Engine, session: str, revision: int, job: str, attempt: int) -> None:
    """Takes an attempt back that an orderly stop cut off: five drained restarts make no hole (F12)."""
    before = JobStarted(session=session, revision=revision, job=job, attempt=attempt - 1)
    await asyncio.shield(engine.record(before))


async def with_smaller_bands(run: RunJob, job: jobs.MakeMosaic | jobs.MergeTiles) -> jobs.PhaseMade:
    """Runs the job; without memory for its band it is tried with half the band, down to an eighth (F10)."""
    for _ in range(BAND_HALVINGS):
        try:
            made: jobs.PhaseMade = await run(job, TILES_AFTER)
        except MemoryError:
            half = replace(job.settings, band_budget_bytes=job.settings.band_budget_bytes // 2)
            job = replace(job, settings=half)
        else:
            return made
    message = "no memory for a band: lower tiles.memory_mb or raise executor.memory_mb"
    raise SessionFailed(Reason(rule="out_of_memory", value=job.settings.band_budget_bytes, message=message))


async def with_others_ready(run: RunJob, job: Job, ready: jobs.GetReady, others: int) -> Any:
    """Runs the job. Meanwhile `others` workers load what comes next, if they have nothing to do; nobody waits for
    them.
    """
    main = asyncio.ensure_future(run(job, TILES_AFTER))  # in the queue before what follows
    ahead = [asyncio.ensure_future(run(ready, IDLE_ONLY)) for _ in range(others)]
    try:
        return await main
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)  # a worker that cannot do it will say so later


class TileMaker:
    """Makes master tiles for one engine."""

    def __init__(
        self,
        engine: Engine,
        run_job: RunJob,
        configs: SessionConfigs,
        layout: Layout,
        gate: DiskGate,
        caches: Rebuilder,
        log: Logger,
        capacity: int,
    ) -> None:
        self._engine = engine
        self._run = run_job
        self._configs = configs
        self._layout = layout
        self._gate = gate
        self._caches = caches
        self._log = log
        self._capacity = capacity

    async def result(self, state: SessionState, plan: Plan, spec: TileSpec) -> TileDone | TileFailed:
        """Tries a tile until it is done or its last try is spent; its caches are not released in between (R4)."""
        session, revision, config = state.session, state.revision, self._configs.of(state)
        output = self._layout.master_tile(session, spec.tile, MODES[plan.mode].tile_kind)
        # cores that no other tile of this session wants (C7): they leave no trace in the pixels
        waiting = len(plan.tiles) - len(state.done) - len(state.failed)
        threads = max(1, self._capacity // max(1, waiting))
        last = waiting <= self._capacity and state.mode.prepares
        ahead = jobs.GetReady(phase=5), self._capacity - 1 if last else 0
        settings = replace(self._configs.stack_settings(config, MODES[plan.mode]), threads=threads)
        reason = Reason(rule="interrupted", threshold=MAX_INTERRUPTED, message="begun too often without an end")
        name = f"tile {spec.tile}"
        first = state.attempts.get(name, 0) + 1
        for attempt in range(first, min(first + config.tiles.attempts, MAX_INTERRUPTED + 1)):
            await self._engine.record(JobStarted(session=session, revision=revision, job=name, attempt=attempt))
            try:
                without = await self._caches.ensure(state, [plan.frames[f] for f in spec.frames])
                self._refuse_empty(spec, without)
                job = jobs.StackTile(
                    plan_path=str(self._layout.plan_file(session, revision)),
                    tile=spec.tile,
                    without=tuple(without),
                    output=str(output),
                    settings=settings,
                )
                made = await self._gate.retrying(session, partial(with_others_ready, self._run, job, *ahead))
            except MemoryError:
                message = "no memory for its band: lower tiles.memory_mb or raise executor.memory_mb"
                reason = Reason(rule="out_of_memory", value=settings.band_budget_bytes, message=message)
                settings = replace(settings, band_budget_bytes=settings.band_budget_bytes // 2)  # F10
            except asyncio.CancelledError:
                await not_counted(self._engine, session, revision, name, attempt)
                raise
            except Quarantined as error:
                return TileFailed(session=session, revision=revision, tile=spec.tile, reason=error.reason)
            except ZemosaicdError as error:
                reason = error.reason
            except FileNotFoundError as error:  # a cache went while the tile was made: the next try makes it again
                reason = Reason(rule="file_missing", value=str(error.filename), message=f"{error.filename} has gone")
            except Exception as error:  # noqa: BLE001 - reported as this tile's failure
                self._log.exception("internal_error", session=session, subject=name)
                reason = Reason(rule="internal_error", value=type(error).__name__, message=str(error))
            else:
                outputs.log_notes(self._log, session, made.notes)
                figures = {**made.figures, "seconds": made.seconds, "peak_rss_mb": made.peak_rss_mb, "without": without}
                return TileDone(
                    session=session,
                    revision=revision,
                    tile=spec.tile,
                    path=str(output),
                    frames_used=len(spec.frames) - len(without),
                    figures=figures,
                )
            self._log.warning("tile_failed", session=session, tile=spec.tile, attempt=attempt, rule=reason.rule,
                              reason=reason.message or reason.rule)  # fmt: skip
        return TileFailed(session=session, revision=revision, tile=spec.tile, reason=reason)

    def _refuse_empty(self, spec: TileSpec, without: list[FrameId]) -> None:
        if len(without) == len(spec.frames):
            self._log.error("mastertile_error_no_valid_images_from_cache", tile_id=spec.tile)
            message = f"tile {spec.tile}: none of its {len(spec.frames)} caches could be had"
            raise NoTile(Reason(rule="mastertile_error_no_valid_images_from_cache", message=message))
