"""Phase 4.5 for one session after the other: super tiles made, or given up for their members."""

from __future__ import annotations

import asyncio

from zemosaicd.core.events import JobStarted, MergeFailed, TilesMerged
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.supertiles import members_done
from zemosaicd.model import ArtefactKind, Plan, Reason, SessionFailed, ZemosaicdError
from zemosaicd.shell import outputs
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.shell.space import DiskGate, still_needed_bytes
from zemosaicd.shell.tiles import MAX_INTERRUPTED, RunJob, not_counted, with_smaller_bands
from zemosaicd.work import jobs


class TileMerger:
    """Makes super tiles for one engine. One that cannot be made is no loss: its members go into the mosaic."""

    def __init__(
        self, engine: Engine, run_job: RunJob, configs: SessionConfigs, layout: Layout, gate: DiskGate, log: Logger
    ) -> None:
        self._engine = engine
        self._run = run_job
        self._configs = configs
        self._layout = layout
        self._gate = gate
        self._log = log
        self._announced: set[tuple[str, int]] = set()

    async def merge(self, state: SessionState, number: int) -> None:
        """Makes one super tile, and journals it or why not."""
        session, revision, plan = state.session, state.revision, state.plan
        if plan is None:
            raise ValueError(f"{session}: no plan in revision {revision}")
        self._announce(state, plan)
        await self._gate.room(session, still_needed_bytes(state), self._configs.of(state).service)
        name = f"super tile {number}"
        attempt = state.attempts.get(name, 0) + 1
        await self._engine.record(JobStarted(session=session, revision=revision, job=name, attempt=attempt))
        job = self._job(state, plan, number)
        try:
            if attempt > MAX_INTERRUPTED:
                raise SessionFailed(Reason(rule="interrupted", value=attempt, threshold=MAX_INTERRUPTED))
            made = await self._gate.retrying(session, lambda: with_smaller_bands(self._run, job))
        except asyncio.CancelledError:
            await not_counted(self._engine, session, revision, name, attempt)
            raise
        except ZemosaicdError as error:
            reason = error.reason
        except Exception as error:  # noqa: BLE001 - reported as this super tile's failure
            self._log.exception("internal_error", session=session, subject=name)
            reason = Reason(rule="internal_error", value=type(error).__name__, message=str(error))
        else:
            figures = {**made.figures, "seconds": made.seconds, "peak_rss_mb": made.peak_rss_mb}
            members = tuple(t for t, _ in job.members)
            await self._engine.record(
                TilesMerged(
                    session=session,
                    revision=revision,
                    tile=number,
                    path=job.output,
                    members=members,
                    figures=figures,
                )
            )
            outputs.log_notes(self._log, session, made.notes)
            return
        await self._engine.record(MergeFailed(session=session, revision=revision, tile=number, reason=reason))
        self._log.warning("super_tile_failed", session=session, tile=number, tiles=len(job.members), rule=reason.rule,
                          reason=reason.message or reason.rule)  # fmt: skip

    def forget(self, session: str, revision: int) -> None:
        """The revision is over."""
        self._announced.discard((session, revision))

    def _announce(self, state: SessionState, plan: Plan) -> None:
        """Says once a revision what will be merged."""
        if (state.session, state.revision) in self._announced:
            return
        self._announced.add((state.session, state.revision))
        for phase in ("4", "4.5"):
            if phase != state.mode.plan_phase:
                self._log.info("PHASE_UPDATE", session=state.session, phase=phase)
        merged = sum(len(members) for members in plan.supers.values())
        self._log.info("super_tiles_planned", session=state.session, super_tiles=len(plan.supers), tiles=merged,
                       alone=len(plan.tiles) - merged)  # fmt: skip

    def _job(self, state: SessionState, plan: Plan, number: int) -> jobs.MergeTiles:
        done = {t: state.done[t] for t in members_done(plan, number, state.done)}
        return jobs.MergeTiles(
            plan_path=str(self._layout.plan_file(state.session, state.revision)),
            tile=number,
            members=tuple((t, tile.path) for t, tile in done.items()),
            without=tuple(sorted({f for tile in done.values() for f in tile.figures["without"]})),
            output=str(self._layout.master_tile(state.session, number, ArtefactKind.SUPER_TILE)),
            settings=self._configs.mosaic_settings(self._configs.of(state)),
        )
