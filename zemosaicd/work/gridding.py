"""Mode grid (D3) in a worker: the frames that a `stack_plan.csv` names, on butted cells of the sky.

A cell mixes frames of several pointings, so their flux scales and skies must hold over all of them (work.pointings).
What classic leaves to Phase 5, gain and level between tiles, is thus known before a pixel is stacked, and no cell has
to be mended.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zemosaicd.core.cells import deal_cells
from zemosaicd.core.modes import DEFAULT
from zemosaicd.core.stackplan import NAME, Row, StackPlan, parse, resolve, with_row
from zemosaicd.model import LeftOut, LogNote, Reason
from zemosaicd.work.jobs import PhaseMade, PlanGrid
from zemosaicd.work.meter import Meter
from zemosaicd.work.planfiles import GridRequest, read_grid
from zemosaicd.work.planning import Ways, finish, is_wide, plan_frames
from zemosaicd.work.pointings import one_scale, one_sky

MODE = "grid"
LARGEST_PLAN_BYTES = 64 << 20


def plan_grid(job: PlanGrid) -> PhaseMade:
    """Runs Phase 2 of mode grid and writes the plan."""
    meter = Meter()
    request = read_grid(Path(job.frames_path))
    rows, refused, notes = _rows(request)
    frames = [replace(f, facts=with_row(f.facts, rows[f.path])) for f in request.frames.frames if f.path in rows]
    refused += [
        LeftOut(frame=f.frame, path=f.path, reason=Reason(rule="stack_plan.not_named", message=f"not in {NAME}"))
        for f in request.frames.frames
        if f.path not in rows
    ]
    ways = Ways(scale=one_scale, level=one_sky, deal=deal_cells)
    plan, note = plan_frames(replace(request.frames, frames=tuple(frames)), refused, ways)
    if is_wide(plan):
        plan = replace(plan, mode=DEFAULT)
        notes.append(LogNote(level="warning", event="grid_mode_wide_fallback_mastertiles"))
    else:
        plan = replace(plan, mode=MODE, altaz_cleanup=False, altaz_decision="")  # section 6 leaves cells alone (V8)
    made = finish(plan, note, meter, Path(job.plan_path))
    return replace(made, notes=(*notes, *made.notes))


def _rows(request: GridRequest) -> tuple[dict[str, Row], list[LeftOut], list[LogNote]]:
    """What the session's plans say of its frames; without any plan every frame takes part as its header has it."""
    known: dict[str, Reason | None] = {f.path: None for f in request.frames.frames}
    known |= request.refused
    rows: dict[str, Row] = {}
    refused: list[LeftOut] = []
    notes: list[LogNote] = []
    for folder in request.folders:
        path = Path(folder) / NAME
        plan = _read(path)
        if plan is None:
            continue
        named, bad = resolve(plan, folder, known)
        rows |= named
        refused += [LeftOut(frame="", path=f"{path}:{r.line}", reason=r.reason) for r in bad]
        fields: dict[str, object] = {"path": str(path), "frames": len(named), "refused": len(bad)}
        notes.append(LogNote(level="info", event="stack_plan_read", fields=fields))
    if not notes:
        fields = {"folders": ", ".join(request.folders), "name": NAME}
        notes.append(LogNote(level="warning", event="stack_plan_absent", fields=fields))
        rows = {path: Row(line=0, file=path) for path, reason in known.items() if reason is None}
    return rows, refused, notes


def _read(path: Path) -> StackPlan | None:
    """A plan on disk; None where there is none."""
    try:
        with path.open("rb") as file:
            return parse(file.read(LARGEST_PLAN_BYTES))
    except FileNotFoundError:
        return None
