"""Mode SDS (D2) in a worker: batches of a sweep as mega tiles, with its way back to mosaic-first and to classic.

A mega tile mixes pointings, as a cell does, so scales and skies are tied over all of them first (work.pointings).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zemosaicd.core.modes import DEFAULT
from zemosaicd.core.plan import PlanSettings, deal_groups
from zemosaicd.core.sweeps import deal_sweeps, without_blurred
from zemosaicd.model import FramePlan, LeftOut, LogNote, TileSpec, Wcs
from zemosaicd.work.jobs import PhaseMade, PlanSweep
from zemosaicd.work.meter import Meter
from zemosaicd.work.planfiles import read_request
from zemosaicd.work.planning import Ways, finish, is_wide, plan_frames
from zemosaicd.work.pointings import one_scale, one_sky

MODE = "sds"
CLASSIC = 2
"""The last rung (jobs.PlanSweep)."""
TO_CLASSIC = "sds_and_mosaic_first_failed_fallback_mastertiles"


def plan_sweep(job: PlanSweep) -> PhaseMade:
    """Runs Phase 2 of mode SDS and writes the plan; if one mosaic has to be classic, all are (V8)."""
    meter = Meter()
    request = read_request(Path(job.frames_path))
    notes: list[LogNote] = []
    blurred: list[LeftOut] = []

    def deal(
        groups: list[list[FramePlan]], base: Wcs, mosaic: str, first: int, settings: PlanSettings
    ) -> list[TileSpec]:
        if job.rung == CLASSIC:
            return deal_groups(groups, base, mosaic, first, settings)
        sharp, out = without_blurred(groups, base) if job.rung == 0 else (groups, [])
        tiles, said = deal_sweeps(sharp, base, mosaic, first, settings, failed=job.rung > 0)
        notes.extend(said)
        blurred.extend(out if tiles else ())
        return tiles or deal_groups(groups, base, mosaic, first, settings)

    plan, note = plan_frames(request, (), Ways(scale=one_scale, level=one_sky, deal=deal))
    if is_wide(plan) or job.rung == CLASSIC:
        why = "no mega tile of all frames could be made"
        if is_wide(plan):
            why = "a mosaic is too wide for one tangent plane, or shall have another projection"
        notes = [LogNote(level="warning", event=TO_CLASSIC, fields={"reason": why})]
    if any(n.event == TO_CLASSIC for n in notes):
        plan = replace(plan, mode=DEFAULT)
    else:
        left_out = (*plan.left_out, *blurred)
        plan = replace(plan, mode=MODE, altaz_cleanup=False, altaz_decision="", left_out=left_out)
    made = finish(plan, note, meter, Path(job.plan_path))
    return replace(made, notes=(*made.notes, *notes))
