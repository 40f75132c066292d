"""What is said of a finished mosaic: report.json and its verdict (SPEC section 10). Pure: state in, JSON values out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zemosaicd.core.lifecycle import SessionState
from zemosaicd.model import FrameId, FramePlan, MosaicSpec, Plan, Reason

GOOD, HOLES, SUSPECT = "good", "holes", "suspect"

SEAM_LIMIT_SIGMA = 3.0
"""A step across an overlap, in sigmas of its measurement and of the mosaic's own noise, above which it can be seen."""

ASTROMETRY_LIMIT_PX = 0.5
"""Median residual of the joint solution, above which stars double."""

LEAST_USED_FRACTION = 0.5
"""A mosaic that leaves out more than half of the night is not what was asked for."""

UNASKED = ("duplicate", "stack_plan.not_named")

CACHE_LOST = Reason(rule="cache_lost", message="its cache was gone and could not be made again from the frame")


def verdict(
    tiles_failed: int,
    seams_sigma: float | None,
    residual_px: float | None,
    pointing_only: bool,
    used_fraction: float = 1.0,
) -> str:
    """holes: tiles are missing; suspect: something measured is out of its limit; else good.

    `used_fraction`: of the session's frames, those that are in one of its mosaics.
    """
    if tiles_failed:
        return HOLES
    seen = (seams_sigma or 0.0) > SEAM_LIMIT_SIGMA or (residual_px or 0.0) > ASTROMETRY_LIMIT_PX
    return SUSPECT if seen or pointing_only or used_fraction < LEAST_USED_FRACTION else GOOD


def build_report(
    state: SessionState,
    spec: MosaicSpec,
    figures: Mapping[str, Any],
    cost: Mapping[str, float],
    refused: Mapping[str, Reason] | None = None,
) -> dict[str, Any]:
    """The report of one mosaic. `figures` are what Phases 4 to 6 measured; NaN becomes null.

    `refused`: files beside the session's frames that were refused before they had a session, and why.
    """
    plan = state.plan
    if plan is None or state.planned is None:
        raise ValueError(f"{state.session}: nothing planned to report on")
    failed = [state.failed[t] for t in spec.tiles if t in state.failed]
    seams = figures.get("seams") or {}
    pointing_only = any(f.solver == "pointing" for f in _members(plan, spec))
    report: dict[str, Any] = plain_numbers(
        {
            "session": state.session,
            "revision": state.revision,
            "mode": plan.mode,
            "mode_reason": state.opened.why if state.opened and state.opened.why else "session.mode",
            "mosaic": spec.name,
            "key": state.planned.key,
            "frames": _frames(state, plan, spec, refused or {}),
            "tiles_total": len(spec.tiles),
            "num_master_tiles": sum(t in state.done for t in spec.tiles),
            "tiles_failed": [_why(f.reason) | {"tile": f.tile} for f in failed],
            "mount_modes": {mode.value: n for mode, n in plan.mount_modes.items()},
            "solver": {f.path: f.solver for f in _members(plan, spec)},
            "astrometry": dict(plan.figures),
            "seams": seams,
            "photometry": figures.get("photometry") or {},
            "picture": figures.get("picture") or {},
            "phases": _phases(state, cost),
            "verdict": verdict(
                len(failed),
                seams.get("worst_sigma"),
                plan.figures.get("residual_px"),
                pointing_only,
                used_fraction(state, plan),
            ),
        }
    )
    return report


def used_fraction(state: SessionState, plan: Plan) -> float:
    """Of the frames that the session closed with, those that were planned for a mosaic. Twins do not count, nor do
    frames that the user's own plan does not name.
    """
    unasked = sum(left.reason.rule in UNASKED for left in plan.left_out)
    return len(plan.frames) / max(1, len(state.closed_set) - unasked)


def _members(plan: Plan, spec: MosaicSpec) -> list[FramePlan]:
    """The frames that were planned for this mosaic."""
    ids = dict.fromkeys(f for t in plan.tiles if t.tile in spec.tiles for f in t.frames)
    return [plan.frames[f] for f in ids]


def _why(reason: Reason) -> dict[str, Any]:
    return {"reason": reason.rule, "value": reason.value, "threshold": reason.threshold, "message": reason.message}


def _frames(state: SessionState, plan: Plan, spec: MosaicSpec, refused: Mapping[str, Reason]) -> dict[str, Any]:
    """Every frame of the session is in here: used, or left out with its rule, value and threshold (section 9).

    `elsewhere`: how many are in the session's other mosaics (filters); total = used + elsewhere + rejected.
    """
    rejected = [{"path": p, **_why(r.rejected)} for p, r in sorted(state.frames.items()) if r.rejected]
    rejected += [{"path": path, **_why(reason)} for path, reason in sorted(refused.items())]
    rejected += [{"path": left.path, **_why(left.reason)} for left in plan.left_out]
    used, lost = _fates(state, plan, spec)
    rejected += [{"path": path, **_why(reason)} for path, reason in sorted(lost.items())]
    known = {*state.closed_set, *refused, *(f.path for f in plan.frames.values()), *(f.path for f in plan.left_out)}
    return {
        "total": len(known),
        "used": len(used),
        "elsewhere": len(plan.frames) - len(_members(plan, spec)),
        "rejected": rejected,
        "list": [
            {
                "path": f.path,
                "stars": f.stars,
                "fwhm_px": f.fwhm_px,
                "transparency": f.transparency,
                "sky_adu": f.sky_adu,
                "noise_adu": f.noise_adu,
                "residual_px": f.residual_px,
            }
            for f in used
        ],
    }


def _fates(state: SessionState, plan: Plan, spec: MosaicSpec) -> tuple[list[FramePlan], dict[str, Reason]]:
    """Of the frames planned for a mosaic: those that are in it, and why the others (by path) are not."""
    used: dict[FrameId, None] = {}
    lost: dict[FrameId, Reason] = {}
    for tile in (t for t in plan.tiles if t.tile in spec.tiles):
        done, failed = state.done.get(tile.tile), state.failed.get(tile.tile)
        gone = done.figures.get("without", ()) if done else tile.frames
        lost.update(dict.fromkeys(gone, failed.reason if failed else CACHE_LOST))
        used.update(dict.fromkeys(f for f in tile.frames if f not in set(gone)))
    return [plan.frames[f] for f in used], {plan.frames[f].path: r for f, r in lost.items() if f not in used}


def _phases(state: SessionState, cost: Mapping[str, float]) -> dict[str, Any]:
    """Work in seconds of one worker and its peak memory, a phase; `predicted_mb` is what the plan allowed."""
    prepared = [r.prepared for r in state.frames.values() if r.prepared]
    plan = state.plan
    first = {
        "seconds": sum(p.seconds for p in prepared),
        "peak_rss_mb": max((p.peak_rss_mb for p in prepared), default=0.0),
        "predicted_mb": None,
    }
    tiles = [t.figures for t in state.done.values()]
    third = {
        "seconds": sum(float(t.get("seconds", 0.0)) for t in tiles),
        "peak_rss_mb": max((float(t.get("peak_rss_mb", 0.0)) for t in tiles), default=0.0),
        "predicted_mb": max((float(t.get("predicted_mb", 0.0)) for t in tiles), default=0.0),
    }
    second = {
        "seconds": plan.figures.get("seconds") if plan else None,
        "peak_rss_mb": plan.figures.get("peak_rss_mb") if plan else None,
        "predicted_mb": None,
    }
    phases = {"1": first, state.mode.plan_phase: second, "3": third, "5": dict(cost)}
    return {phase: costs for phase, costs in phases.items() if phase in state.mode.phases}


def plain_numbers(value: Any) -> Any:
    """JSON has no NaN: not-a-number and infinite become null; floats are kept to 6 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(v) for v in value]
    return value
