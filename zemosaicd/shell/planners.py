"""What the planner of each mode works from (core.modes): a request on disk, and the job that answers it with a plan."""

from __future__ import annotations

from pathlib import Path

from zemosaicd.core import mount
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.stackplan import folders_of
from zemosaicd.model import LogNote, Plan
from zemosaicd.settings import Config
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.work import jobs
from zemosaicd.work.planfiles import GridRequest, PlanRequest, TilesRequest

Request = PlanRequest | GridRequest | TilesRequest
PlanJob = jobs.PlanSession | jobs.PlanGrid | jobs.PlanSweep | jobs.PlanTiles


class Frames:
    """Prepared raw frames become groups, tiles and their lattice (Phase 2)."""

    @staticmethod
    def request(state: SessionState, config: Config) -> PlanRequest:
        """All prepared frames, in the order of their paths."""
        return PlanRequest(
            frames=tuple(r.prepared for _, r in sorted(state.frames.items()) if r.prepared is not None),
            settings=SessionConfigs.plan_settings(config, state.mode),
            mount_mode=config.session.mount_mode,
        )

    @staticmethod
    def job(request: Path, plan: Path, before: Plan | None) -> PlanJob:
        """What answers it; `before`: the plan of which no tile could be made."""
        return jobs.PlanSession(frames_path=str(request), plan_path=str(plan))

    @staticmethod
    def notes(state: SessionState, config: Config, plan: Plan) -> list[LogNote]:
        """What is said of the session's mounts (M1, M2)."""
        counts = mount.summary(mount.frame_mode(r.facts, config.session.mount_mode) for r in state.frames.values())
        return list(mount.decision_notes(counts, plan.altaz_decision))


class Cells:
    """The frames that a stack_plan.csv names become cells of the sky (D3)."""

    @staticmethod
    def request(state: SessionState, config: Config) -> Request:
        """All prepared frames, and where a plan may lie; the user's file itself is read by the job."""
        return GridRequest(
            frames=Frames.request(state, config),
            folders=folders_of(state.closed_set, state.opened.whole_folder if state.opened else ""),
            refused={p: r.rejected for p, r in state.frames.items() if r.rejected is not None},
        )

    @staticmethod
    def job(request: Path, plan: Path, before: Plan | None) -> PlanJob:
        """What answers it; `before`: the plan of which no tile could be made."""
        return jobs.PlanGrid(frames_path=str(request), plan_path=str(plan))

    @staticmethod
    def notes(state: SessionState, config: Config, plan: Plan) -> list[LogNote]:
        """That the grid is made; of mounts only where the plan is classic's after all, for section 6 leaves cells alone
        (V8)."""
        if plan.altaz_decision:
            return Frames.notes(state, config, plan)
        return [LogNote(level="info", event="grid_mode_invoked", fields={"cells": len(plan.tiles)})]


class Sweeps:
    """Prepared raw frames become mega tiles that each cover the field (D2)."""

    @staticmethod
    def request(state: SessionState, config: Config) -> Request:
        """The same as classic's."""
        return Frames.request(state, config)

    @staticmethod
    def job(request: Path, plan: Path, before: Plan | None) -> PlanJob:
        """What answers it: batches, then one mega tile of all frames, then classic."""
        rung = 0 if before is None else 1 if len(before.tiles) > len(before.mosaics) else 2
        return jobs.PlanSweep(frames_path=str(request), plan_path=str(plan), rung=rung)

    @staticmethod
    def notes(state: SessionState, config: Config, plan: Plan) -> list[LogNote]:
        """Of mounts only where the plan is classic's after all (V8)."""
        return Frames.notes(state, config, plan) if plan.altaz_decision else []


class Tiles:
    """Tiles that lie there, ours or anybody's, become a grid (D4)."""

    @staticmethod
    def request(state: SessionState, config: Config) -> Request:
        """The tiles' paths."""
        paths = sorted(p for p in state.closed_set if state.frames[p].rejected is None)
        return TilesRequest(
            paths=tuple(paths),
            settings=SessionConfigs.plan_settings(config, state.mode),
            budget=SessionConfigs.budget(config),
        )

    @staticmethod
    def job(request: Path, plan: Path, before: Plan | None) -> PlanJob:
        """What answers it; `before`: the plan of which no tile could be made."""
        return jobs.PlanTiles(tiles_path=str(request), plan_path=str(plan))

    @staticmethod
    def notes(state: SessionState, config: Config, plan: Plan) -> list[LogNote]:
        """That Phases 1 to 3 are skipped, and for how many tiles."""
        return [LogNote(level="info", event="run_info_existing_master_tiles_mode", fields={"count": len(plan.tiles)})]


Planner = type[Frames] | type[Cells] | type[Sweeps] | type[Tiles]
PLANNERS: dict[str, Planner] = {"frames": Frames, "cells": Cells, "sweeps": Sweeps, "tiles": Tiles}
"""By the name that a mode gives (core.modes)."""
