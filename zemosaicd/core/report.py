"""What is said of a finished mosaic: report.json and its verdict (SPEC section 10). Pure: state in, JSON values out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.supertiles import supers_of
from zemosaicd.model import FrameId, FramePlan, MosaicSpec, Plan, Reason

Figures = Mapping[str, Any]

GOOD, HOLES, SUSPECT = "good", "holes", "suspect"

UNASKED = ("duplicate", "stack_plan.not_named")

CACHE_LOST = Reason(rule="cache_lost", message="its cache was gone and could not be made again from the frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a figure may be. `read`: it, from the figures of the mosaic and of its plan; None: not measured."""

    rule: str
    read: Callable[[Figures, Figures], float | None]
    most: float
    message: str


def _figure(figures: Figures, *keys: str) -> Any:
    """A figure inside figures; None where a part of the way is not there, or it is not a finite number."""
    found: Any = figures
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _missing_stars(figures: Figures, _: Figures) -> float | None:
    """Share of the catalogue's stars that are not where they should be, where there are enough of them."""
    wanted, found = (_figure(figures, "certificate", "astrometry", key) for key in ("wanted", "stars"))
    return 1.0 - found / wanted if wanted is not None and wanted >= LEAST_WANTED_STARS else None


def _rms_px(figures: Figures, _: Figures) -> float | None:
    """Scatter of stars about the catalogue beyond a catalogue's own error, px."""
    rms = _figure(figures, "certificate", "astrometry", "rms_arcsec")
    return None if rms is None else max(0.0, rms - CATALOGUE_ERROR_ARCSEC) / (_figure(figures, "scale_arcsec") or 1.0)


def _worst_off(*keys: str) -> Callable[[Figures, Figures], float | None]:
    """How far the worst channel's ratio is from 1."""

    def read(figures: Figures, _: Figures) -> float | None:
        ratios = [float(v) for v in _figure(figures, *keys) or () if v is not None and math.isfinite(v)]
        return max((abs(v - 1.0) for v in ratios), default=None)

    return read


LEAST_WANTED_STARS = 10
CATALOGUE_ERROR_ARCSEC = 0.8
"""rms of Tycho-2's faint stars decades after their epoch, with some to spare."""
LEAST_USED_FRACTION = 0.5
"""A mosaic that leaves out more than half of the night is not what was asked for."""

LIMITS = (
    Limit(
        rule="seam",
        read=lambda figures, _: _figure(figures, "seams", "worst_sigma"),
        most=3.0,
        message="two tiles meet with a step that can be seen (in sigmas of the noise)",
    ),
    Limit(
        rule="tiles_disagree",
        read=lambda figures, _: _figure(figures, "seams", "gain_off_mag"),
        most=0.05,
        message="stars differ in brightness between tiles (mag)",
    ),
    Limit(
        rule="registration",
        read=lambda _, plan: _figure(plan, "residual_px"),
        most=0.5,
        message="frames do not lie on each other: stars double (px)",
    ),
    Limit(
        rule="astrometry",
        read=_rms_px,
        most=0.5,
        message="the mosaic's stars scatter about the catalogue (px, beyond the catalogue's own error)",
    ),
    Limit(
        rule="stars_missing",
        read=_missing_stars,
        most=0.5,
        message="stars of the catalogue are not where the mosaic's WCS says (share of them)",
    ),
    Limit(
        rule="flux_lost",
        read=_worst_off("injected", "flux_ratio"),
        most=0.05,
        message="injected stars came back with another flux (part of it)",
    ),
    Limit(
        rule="stars_moved",
        read=lambda figures, _: _figure(figures, "injected", "offset_px"),
        most=0.2,
        message="injected stars came back elsewhere (px)",
    ),
    Limit(
        rule="noise",
        read=_worst_off("certificate", "noise", "ratio"),
        most=1.0,
        message="the noise is not what WEIGHT says (ratio less 1)",
    ),
)


def doubts(
    figures: Figures, plan_figures: Figures, *, pointing_only: bool = False, used_fraction: float = 1.0
) -> list[Reason]:
    """What of a mosaic is out of its limits; what was not measured is not held against it.

    `used_fraction`: of the session's frames, those that are in one of its mosaics.
    """
    found = []
    for limit in LIMITS:
        value = limit.read(figures, plan_figures)
        if value is not None and value > limit.most:
            found.append(Reason(rule=limit.rule, value=value, threshold=limit.most, message=limit.message))
    if pointing_only:
        found.append(Reason(rule="pointing_only", message="a frame was placed by the telescope's pointing alone"))
    if used_fraction < LEAST_USED_FRACTION:
        message = "most of the session's frames are in no mosaic (share that is)"
        found.append(Reason(rule="few_used", value=used_fraction, threshold=LEAST_USED_FRACTION, message=message))
    return found


def verdict(tiles_failed: int, doubted: Sequence[Reason]) -> str:
    """holes: tiles are missing; suspect: something measured is out of its limit; else good."""
    if tiles_failed:
        return HOLES
    return SUSPECT if doubted else GOOD


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
    figures = {**figures, "injected": _injected(state, spec)}
    supers = supers_of(spec, state.merged)
    doubted = doubts(
        figures,
        plan.figures,
        pointing_only=any(f.solver == "pointing" for f in _members(plan, spec)),
        used_fraction=used_fraction(state, plan),
    )
    report: dict[str, Any] = plain_numbers(
        {
            "session": state.session,
            "revision": state.revision,
            "mode": plan.mode,
            "mode_reason": state.opened.why if state.opened and state.opened.why else "session.mode",
            "mosaic": spec.name,
            "projection": {"name": spec.lattice.projection, "reason": spec.projection_reason},
            "islands": spec.parts,
            "key": state.planned.key,
            "frames": _frames(state, plan, spec, refused or {}),
            "tiles_total": len(spec.tiles),
            "num_master_tiles": sum(t in state.done for t in spec.tiles),
            "num_super_tiles": len(supers),
            "super_tiles": [dict(m.figures) for m in supers.values()],
            "tiles_failed": [_why(f.reason) | {"tile": f.tile} for f in failed],
            "mount_modes": {mode.value: n for mode, n in plan.mount_modes.items()},
            "solver": {f.path: f.solver for f in _members(plan, spec)},
            "astrometry": dict(plan.figures),
            "seams": figures.get("seams") or {},
            "second_pass": figures.get("second_pass"),
            "photometry": figures.get("photometry") or {},
            "picture": figures.get("picture") or {},
            "certificate": {**(figures.get("certificate") or {}), "injected": figures["injected"]},
            "phases": _phases(state, cost),
            "verdict": verdict(len(failed), doubted),
            "doubts": [_why(doubt) for doubt in doubted],
        }
    )
    return report


def used_fraction(state: SessionState, plan: Plan) -> float:
    """Of the frames that the session closed with, those that were planned for a mosaic. Twins do not count, nor do
    frames that the user's own plan does not name.
    """
    unasked = sum(left.reason.rule in UNASKED for left in plan.left_out)
    return len(plan.frames) / max(1, len(state.closed_set) - unasked)


def _injected(state: SessionState, spec: MosaicSpec) -> dict[str, Any]:
    """What came back of the stars that were put into the frames: of all tiles, the median a channel and the worst."""
    parts = [told for t in spec.tiles if t in state.done and (told := state.done[t].figures.get("injected"))]
    if not parts:
        return {}
    ratios = zip(*(p["flux_ratio"] for p in parts), strict=True)
    return {
        "stars": sum(p["stars"] for p in parts),
        "flux_ratio": [statistics.median(ratio) for ratio in ratios],
        "flux_worst": max((p["flux_worst"] for p in parts), key=lambda v: abs(v - 1.0)),
        "offset_px": statistics.median(p["offset_px"] for p in parts),
        "offset_max_px": max(p["offset_max_px"] for p in parts),
    }


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
    if merged := [m.figures for m in state.merged.values()]:
        phases["4.5"] = {
            "seconds": sum(float(m.get("seconds", 0.0)) for m in merged),
            "peak_rss_mb": max(float(m.get("peak_rss_mb", 0.0)) for m in merged),
            "predicted_mb": max(float(m.get("predicted_mb", 0.0)) for m in merged),
        }
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
