"""Phase 2 in a worker: star lists and first solutions of a closed set -> the joint solution and the tile plan.

The result is a function of the frames in canonical order and the settings; how and when they arrived leaves no trace
(C7). The request and the plan are JSON files of the session, so that no array and no long list crosses a pipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core import mount
from zemosaicd.core.plan import (
    Deal,
    PlanSettings,
    Share,
    at_their_scales,
    canonical,
    kind_of,
    make_plan,
    pointings,
    reference_of,
    shares_of,
)
from zemosaicd.core.supertiles import with_supers
from zemosaicd.model import (
    FrameId,
    FramePlan,
    FrameSky,
    Grid,
    LeftOut,
    LogNote,
    Plan,
    PreparedFrame,
    Reason,
    Solution,
    Wcs,
)
from zemosaicd.science.distortion import ideal
from zemosaicd.science.fixed import fixed_pixels, without_fixed
from zemosaicd.science.merging import FrameStars
from zemosaicd.science.photometry import frame_scales
from zemosaicd.science.registration import JointSolution, Registered, solve_session
from zemosaicd.science.skylight import BlockMap, solve_skies
from zemosaicd.science.skylight import FrameSky as SeenSky
from zemosaicd.science.stars import StarList
from zemosaicd.science.tie import tie_session
from zemosaicd.science.trails import own_trails
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.jobs import PhaseMade, PlanSession
from zemosaicd.work.meter import Meter
from zemosaicd.work.planfiles import PlanRequest, read_request, write_plan

CONE_STEP_DEG = 0.3
CONE_MARGIN_DEG = 0.4


Stars = dict[FrameId, StarList]
FixedPixels = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """What modes that plan raw frames differ in; as it stands, classic.

    Transparency and sky of a frame hold within its pointing; where tiles mix pointings, `scale` and `level` (frames,
    fixed pixels, settings) make them hold over all. `deal`: pointings -> tiles.
    """

    scale: Callable[[list[FramePlan], Stars, PlanSettings], list[FramePlan]] = lambda frames, stars, settings: frames
    level: Callable[[list[FramePlan], FixedPixels, PlanSettings], list[FramePlan]] = lambda frames, fixed, settings: (
        frames
    )
    deal: Deal | None = None


def plan_session(job: PlanSession) -> PhaseMade:
    """Runs Phase 2 and writes the plan."""
    meter = Meter()
    request = read_request(Path(job.frames_path))
    plan, note = plan_frames(request, (), Ways())
    return finish(plan, note, meter, Path(job.plan_path))


def finish(plan: Plan, note: LogNote, meter: Meter, path: Path) -> PhaseMade:
    """Writes a plan with what it cost."""
    seconds, peak = meter.seconds, meter.peak_rss_mb
    write_plan(replace(plan, figures=plan.figures | {"seconds": seconds, "peak_rss_mb": peak}), path)
    return PhaseMade(notes=(note,), seconds=seconds, peak_rss_mb=peak)


def plan_frames(request: PlanRequest, refused: Sequence[LeftOut], ways: Ways) -> tuple[Plan, LogNote]:
    """The joint solution of the frames and their plan; `refused` have a reason already.

    Cells and sweeps need one tangent plane for all: where a mosaic is too wide for one, all mosaics are made as in
    classic (V8), which `is_wide` says of the plan.
    """
    prepared, left_out = _distinct(request.frames)
    left_out += refused
    prepared.sort(key=lambda f: (f.facts.observed_s or 0.0, f.frame))
    lists, fixed = without_fixed([_frame_stars(f) for f in prepared])
    solutions, untied = _solutions(prepared, lists)
    joint = _joint(prepared, lists, solutions)
    frames: list[FramePlan] = []
    for frame, solution, place in zip(prepared, solutions, joint.frames, strict=True):
        reason = _refusal(solution, untied.get(frame.frame), place)
        if reason is not None or solution is None or place.wcs is None:
            left_out.append(LeftOut(frame=frame.frame, path=frame.path, reason=reason or Reason(rule="unsolved")))
        else:
            frames.append(_frame_plan(frame, solution, place, request.mount_mode))
    frames = at_their_scales(frames)
    if ways.deal is not None and any(s.base.projection != sphere.TAN for s in _shares(frames, request.settings)):
        ways = Ways()
    stars = {f.frame: s.stars for f, s in zip(prepared, lists, strict=True)}
    frames = _with_transparency(frames, stars, request.settings)
    by_id = {f.frame: f for f in prepared}
    frames, light = _with_skies(_with_trails(frames, by_id, request.settings), by_id, request.settings)
    frames = ways.scale(frames, stars, request.settings)
    light["trails"] = float(sum(len(f.trails) for f in frames))
    hot = _fixed_pixels(prepared, lists, {f.frame: f.wcs for f in frames})
    plan = make_plan(ways.level(frames, hot, request.settings), left_out, request.settings, ways.deal)
    plan = with_supers(plan, request.settings.merge_overlap)
    figures = _figures(joint, fixed) | light | {"fixed_pixels": float(sum(len(p) for p in hot.values()))}
    plan = replace(plan, fixed_pixels=hot, figures=figures)
    fields: dict[str, object] = {
        "frames": len(frames),
        "stars": joint.stars,
        "residual_px": _rounded(plan.figures.get("residual_px")),
        "half_split_px": _rounded(plan.figures.get("half_split_px")),
        "anchor_rms_arcsec": _rounded(joint.anchor_rms_arcsec),
        "distortion_px": plan.figures.get("distortion_px"),
    }
    return plan, LogNote(level="info", event="session_registered", fields=fields)


def _shares(frames: Sequence[FramePlan], settings: PlanSettings) -> list[Share]:
    return shares_of(canonical(frames), settings)[0]


def is_wide(plan: Plan) -> bool:
    """Whether a mosaic of the plan lies on no tangent plane, so that all its tiles are classic's."""
    return any(m.lattice.projection != sphere.TAN for m in plan.mosaics)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _distinct(frames: Sequence[PreparedFrame]) -> tuple[list[PreparedFrame], list[LeftOut]]:
    """The same pixels under two names count once (F27)."""
    first: dict[FrameId, PreparedFrame] = {}
    twins: list[LeftOut] = []
    for frame in sorted(frames, key=lambda f: f.path):
        if frame.frame in first:
            reason = Reason(
                rule="duplicate", value=first[frame.frame].path, message="the same pixels under another name"
            )
            twins.append(LeftOut(frame=frame.frame, path=frame.path, reason=reason))
        else:
            first[frame.frame] = frame
    return list(first.values()), twins


def _solutions(
    prepared: Sequence[PreparedFrame], lists: Sequence[FrameStars]
) -> tuple[list[Solution | None], dict[FrameId, Reason]]:
    """Each frame's first solution: its own, or a neighbour's star list (or the pointing, if no frame has one)."""
    facts = next((f.facts for f in prepared if f.facts.ra_deg is not None and f.facts.dec_deg is not None), None)
    pointing = (facts.ra_deg, facts.dec_deg) if facts else None
    scale = next((f.facts.scale_arcsec for f in prepared if f.facts.scale_arcsec), 0.0)
    tied = tie_session(lists, pointing_deg=pointing, scale_arcsec=scale)  # type: ignore[arg-type]
    solutions: list[Solution | None] = []
    reasons: dict[FrameId, Reason] = {}
    for frame, other in zip(prepared, tied, strict=True):
        if isinstance(other, Reason):
            reasons[frame.frame] = frame.unsolved or other
        solutions.append(frame.solution or (other if isinstance(other, Solution) else None))
    return solutions, reasons


def _frame_stars(frame: PreparedFrame) -> FrameStars:
    camera = f"{frame.facts.telescope}/{frame.facts.camera}/{frame.facts.binning}"
    stars, wcs = StarList.from_bytes(frame.stars), frame.solution.wcs if frame.solution else None
    return FrameStars(stars=stars, wcs=wcs, width=frame.facts.width, height=frame.facts.height, camera=camera)


def _joint(
    prepared: Sequence[PreparedFrame], lists: Sequence[FrameStars], solutions: Sequence[Solution | None]
) -> JointSolution:
    placed = [replace(stars, wcs=s.wcs if s else None) for stars, s in zip(lists, solutions, strict=True)]
    on_catalogue = [
        Grid(wcs=s.wcs, width=f.facts.width, height=f.facts.height)
        for f, s in zip(prepared, solutions, strict=True)
        if s is not None and s.solver != "pointing"
    ]
    ra, dec = _anchors(on_catalogue)
    return solve_session(placed, ra, dec)


def _anchors(grids: Sequence[Grid]) -> tuple[np.ndarray, np.ndarray]:
    """Catalogue stars over all frames: one cone a distinct pointing, each star once. Degrees, float64 (n,)."""
    cones: list[sphere.Vector] = []
    found: set[tuple[float, float]] = set()
    for grid in grids:
        centre = sphere.centre_of(grid)
        if any(sphere.separation_deg(centre, c) < CONE_STEP_DEG for c in cones):
            continue
        cones.append(centre)
        stars = read_cone(*sphere.position(centre), sphere.field_radius_deg(grid) + CONE_MARGIN_DEG)
        found.update(zip(stars.ra_deg.tolist(), stars.dec_deg.tolist(), strict=True))
    ordered = np.array(sorted(found), np.float64).reshape(-1, 2)
    return ordered[:, 0].copy(), ordered[:, 1].copy()


def _refusal(solution: Solution | None, untied: Reason | None, place: Registered) -> Reason | None:
    """Why a frame takes no part: never solved, or neither the joint solution nor its own holds for its stars."""
    if solution is None:
        return untied or Reason(rule="unsolved", message="no solution from the catalogue or from a neighbour")
    return None if place.usable else place.reason


def _frame_plan(frame: PreparedFrame, solution: Solution, place: Registered, mount_mode: str) -> FramePlan:
    if place.wcs is None:
        raise ValueError(f"{frame.path}: a frame without a place")
    measures, facts = frame.measures, frame.facts
    return FramePlan(
        frame=frame.frame,
        path=frame.path,
        cache=frame.cache,
        facts=facts,
        wcs=place.wcs,
        solver=solution.solver,
        sky_adu=measures.sky_adu,
        noise_adu=measures.noise_adu,
        photon_adu=tuple(
            _photon_term(sky, noise, facts.electrons_per_adu)
            for sky, noise in zip(measures.sky_adu, measures.noise_adu, strict=True)
        ),
        transparency=(1.0,) * facts.channels,
        fwhm_px=measures.fwhm_px,
        stars=measures.stars,
        residual_px=place.residual_px,
        mount_mode=mount.frame_mode(facts, mount_mode),
        low_adu=measures.low_adu,
        high_adu=measures.high_adu,
        distortion=place.distortion,
    )


def _photon_term(sky_adu: float, noise_adu: float, electrons_per_adu: float | None) -> float:
    """ADU of variance an ADU of light: from EGAIN, else at least what the sky itself shows (all its noise photons).

    A camera's pedestal makes the second too small, never too large; star cores are then kept by the gradient term.
    """
    if electrons_per_adu:
        return 1.0 / electrons_per_adu
    return noise_adu**2 / sky_adu if sky_adu > 0.0 else 0.0


def _with_transparency(frames: Sequence[FramePlan], stars: Stars, settings: PlanSettings) -> list[FramePlan]:
    """Each frame's flux scale a channel against the best frame of its own pointing."""
    scaled: list[FramePlan] = []
    for kind in sorted({kind_of(f) for f in frames}):
        for group in pointings([f for f in frames if kind_of(f) == kind], settings):
            best = next(i for i, f in enumerate(group) if f.frame == reference_of(group))
            scales = frame_scales([ideal_stars(stars[f.frame], f) for f in group], [f.wcs for f in group], best)
            for frame, scale in zip(group, scales, strict=True):
                each = np.broadcast_to(np.array(scale.transparency), frame.facts.channels)
                scaled.append(replace(frame, transparency=_tuple(each)))
    return scaled


def ideal_stars(stars: StarList, frame: FramePlan) -> StarList:
    """The stars where they would be without the camera's distortion, as the frame's plain WCS has them."""
    if frame.distortion is None:
        return stars
    x, y = ideal(frame.distortion, stars.x, stars.y)
    return replace(stars, x=x, y=y)


def _with_skies(
    frames: Sequence[FramePlan], prepared: dict[FrameId, PreparedFrame], settings: PlanSettings
) -> tuple[list[FramePlan], dict[str, float | None]]:
    """Each frame's own sky against its pointing, and its camera's illumination; the latter in figures."""
    groups = [
        group
        for kind in sorted({kind_of(f) for f in frames})
        for group in pointings([f for f in frames if kind_of(f) == kind], settings)
    ]
    seen: list[list[SeenSky]] = []
    for group in groups:
        there = [sphere.homography(f.wcs, group[0].wcs) for f in group]
        seen.append(
            [
                SeenSky(
                    blocks=BlockMap.from_bytes(prepared[f.frame].blocks), to_common=way,
                    transparency=np.array(f.transparency), width=f.facts.width, height=f.facts.height,
                    camera=f.facts.sensor,
                )
                for f, way in zip(group, there, strict=True)
            ]
        )  # fmt: skip
    planes, light = solve_skies(seen)
    done: list[FramePlan] = []
    for group, skies, own in zip(groups, planes, seen, strict=True):
        illumination = light[own[0].camera]
        for frame, sky in zip(group, skies, strict=True):
            own_sky = FrameSky(
                slope_x=_tuple(sky.slope_x), slope_y=_tuple(sky.slope_y),
                light=_tuple(sky.light) if illumination.used else (),
                illumination=illumination.terms if illumination.used else (),
            )  # fmt: skip
            level = tuple(a if math.isfinite(a) else b for a, b in zip(_tuple(sky.level), frame.sky_adu, strict=True))
            done.append(replace(frame, sky_adu=level, sky=own_sky))
    used = [i for i in light.values() if i.used]
    figures: dict[str, float | None] = {
        "illumination_dimming": max((i.dimming for i in used), default=0.0),
        "illumination_doubt": _known(max((i.doubt for i in light.values()), default=math.nan)),
    }
    return done, figures


def _with_trails(
    frames: Sequence[FramePlan], prepared: dict[FrameId, PreparedFrame], settings: PlanSettings
) -> list[FramePlan]:
    """Each frame's trails that are its own, held against the frames of its pointing."""
    done: list[FramePlan] = []
    for kind in sorted({kind_of(f) for f in frames}):
        for group in pointings([f for f in frames if kind_of(f) == kind], settings):
            way = [sphere.homography(f.wcs, group[0].wcs) for f in group]
            size = group[0].facts.width, group[0].facts.height
            trails = own_trails([prepared[f.frame].trails for f in group], way, size)
            done += [replace(f, trails=own) for f, own in zip(group, trails, strict=True)]
    return done


def _fixed_pixels(
    prepared: Sequence[PreparedFrame], lists: Sequence[FrameStars], places: dict[FrameId, Wcs]
) -> FixedPixels:
    """The pixels of each sensor that are hot whatever the sky, from all its frames that have a place."""
    found: FixedPixels = {}
    for sensor in sorted({f.facts.sensor for f in prepared}):
        mine = [(f, s) for f, s in zip(prepared, lists, strict=True) if f.facts.sensor == sensor]
        suspects = [np.frombuffer(f.suspects, "<u4").astype(np.int64) for f, _ in mine]
        pixels = fixed_pixels(suspects, [replace(s, wcs=places.get(f.frame)) for f, s in mine])
        found[sensor] = tuple(int(p) for p in pixels)
    return found


def _tuple(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figures(joint: JointSolution, fixed: int) -> dict[str, float | None]:
    """The joint solution in figures: px of the frames, arcsec on the sky."""
    residuals = [p.residual_px for p in joint.frames if math.isfinite(p.residual_px)]
    errors = [p.error_px for p in joint.frames if math.isfinite(p.error_px)]
    splits = [p.half_split_px for p in joint.frames if math.isfinite(p.half_split_px)]
    return {
        "frames": float(sum(p.joint for p in joint.frames)),
        "stars": float(joint.stars),
        "anchors": float(joint.anchors),
        "fixed_detections": float(fixed + joint.fixed),
        "residual_px": float(np.median(residuals)) if residuals else None,
        "worst_residual_px": max(residuals, default=None),
        "error_px": float(np.median(errors)) if errors else None,
        "half_split_px": float(np.median(splits)) if splits else None,
        "floor_px": _rounded(joint.floor_px),
        "rms_px": _rounded(joint.rms_px),
        "chi": _rounded(joint.chi),
        "anchor_rms_arcsec": _rounded(joint.anchor_rms_arcsec),
        "lenses": float(sum(lens.distortion is not None for lens in joint.lenses)),
        "distortion_px": max((round(lens.corner_px, 3) for lens in joint.lenses if lens.distortion), default=None),
    }
