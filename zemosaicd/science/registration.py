"""The closed session's joint astrometric solution: every frame, every shared star, every lens, one least squares.

Stars of all frames are merged by their predicted places, tied to Tycho-2 anchors where they have one, and solved
with the frames and, where it pays, a distortion of each camera by Gauss-Newton (`science.joint`; recipe:
experiments-astrometry 7.3). Pixel positions are 0-based float64. Without anchors the solution keeps the place, turn and
scale of its start values about as they were. The result depends only on the frames and their order, which must be the
session's canonical one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import DISTORTION_TERMS, Distortion, Reason, Wcs
from zemosaicd.science.fixed import without_fixed
from zemosaicd.science.joint import (
    C128,
    F64,
    Anchors,
    Frames,
    Sightings,
    axes,
    basis_at,
    expected_pixels,
    frames_from,
    gauss_newton,
    ideal_pixels,
    robust_sigma,
    sky_at,
    wcs_of,
    weighted_rms,
)  # fmt: skip
from zemosaicd.science.lenses import NONE, Lens, Solved, fit_again, fit_with_lenses
from zemosaicd.science.merging import MERGE_PX, MIN_STARS, FrameStars, detections, merge

Array = NDArray[Any]

SPLIT_ROUNDS = 1
SPLIT_CELL_PX = 150.0
MAX_RESIDUAL_PX, MAX_HALF_SPLIT_PX, MAX_ERROR_PX = 0.5, 0.5, 0.3
ENOUGH_STARS = 8
"""Detections on a frame, and session stars where it should lie, from which no match means a wrong place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A frame's place in the joint solution.

    `wcs`, `distortion`: where ideal pixels lie, and how the camera bends them; the frame's own linear solution where
    `joint` is false (None: never solved). `residual_px`: length of its stars' median residual; `scatter_px`: their
    sigma per axis (1.4826 MAD); `error_px`: what that scatter leaves of the transform, rms over the frame.
    `half_split_px`: half the median difference between two solutions from disjoint stars, over the frame, with the
    session's common shift, turn and scale taken out: an estimate of the frame's registration error without truth, NaN
    where a half has fewer than 4 stars, or alone. `reason`: why the joint solution does not hold for it, or None; then
    `usable` says whether its own solution may serve.
    """

    wcs: Wcs | None
    joint: bool
    stars: int
    residual_px: float
    scatter_px: float
    error_px: float
    half_split_px: float
    distortion: Distortion | None = None
    usable: bool = True
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSolution:
    """Result of `solve_session`; `frames` in input order.

    `fixed`: detections left out because they stay on the sensor, over all frames. `chi`: robust sigma of the residuals
    over their expected sigma; `floor_px`: the noise floor s0 of a star's position that makes chi 1; `rms_px`: weighted
    rms per axis; `anchor_rms_arcsec`: weighted rms per axis of star - Tycho-2 (NaN without anchors).
    """

    frames: tuple[Registered, ...]
    lenses: tuple[Lens, ...]
    stars: int
    observations: int
    anchors: int
    fixed: int
    chi: float
    floor_px: float
    rms_px: float
    anchor_rms_arcsec: float


def solve_session(
    frames: Sequence[FrameStars], anchor_ra_deg: F64, anchor_dec_deg: F64, *, stars_per_frame: int = 120
) -> JointSolution:
    """Solve all frames of a closed session together (SPEC phase 3).

    `frames` in canonical order; those without a `wcs` take no part (tie them first: `science.tie`). Anchors: ICRS
    positions of catalogue stars over the field, shape (n,), may be empty. Of each frame the `stars_per_frame` brightest
    well-spread stars are used. Never raises for poor data: a frame of fewer than 4 shared stars keeps its start value.
    """
    unsolved = Reason(rule="astrometry.unsolved", message="no solution of its own and none by its neighbours")
    active = [i for i, f in enumerate(frames) if f.wcs is not None]
    if not active:
        nobody = tuple(_unmeasured(None, unsolved, usable=False) for _ in frames)
        return JointSolution(
            frames=nobody, lenses=(), stars=0, observations=0, anchors=0, fixed=0,
            chi=math.nan, floor_px=math.nan, rms_px=math.nan, anchor_rms_arcsec=math.nan,
        )  # fmt: skip
    used, fixed = without_fixed([frames[i] for i in active])
    cameras = list(dict.fromkeys((f.camera, f.width, f.height) for f in used))
    camera = [cameras.index((f.camera, f.width, f.height)) for f in used]
    start = frames_from([f.wcs for f in used if f.wcs is not None], [(f.width, f.height) for f in used], camera)
    lists = [detections(f, stars_per_frame) for f in used]
    catalogue = _unit_vectors(anchor_ra_deg, anchor_dec_deg)
    seen, stars, anchors = merge(lists, start, np.zeros((len(cameras), 2, DISTORTION_TERMS)), catalogue)
    solved = fit_with_lenses(start, seen, stars, anchors, cameras)
    better, stars, tied = merge(lists, solved.fit.frames, solved.fit.lenses, catalogue)
    if not (_same(seen.star, better.star) and _same(seen.pixel, better.pixel) and _same(anchors.place, tied.place)):
        seen, anchors, solved = better, tied, fit_again(solved, better, stars, tied, cameras)
    fit = solved.fit
    by_frame = dict(zip(active, _figures(used, start, solved, seen, _half_split(solved, seen, anchors)), strict=True))
    return JointSolution(
        frames=tuple(by_frame.get(i) or _unmeasured(None, unsolved, usable=False) for i in range(len(frames))),
        lenses=solved.lenses,
        stars=len(stars), observations=len(seen.frame), anchors=len(anchors.star), fixed=fixed,
        chi=fit.chi, floor_px=fit.floor, rms_px=weighted_rms(fit.residual, fit.weight),
        anchor_rms_arcsec=weighted_rms(fit.anchor_residual, fit.anchor_weight) / sphere.ARCSEC_RAD,
    )  # fmt: skip


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def sky_vectors(wcs: Wcs, x: F64, y: F64) -> F64:
    """Unit vectors, shape (n, 3), of 0-based pixel positions."""
    m = np.array(sphere.sky_matrix(wcs)).reshape(3, 3)
    v = np.stack([x, y, np.ones_like(x)], axis=-1) @ m.T
    return np.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True))


def _unmeasured(wcs: Wcs | None, reason: Reason, *, usable: bool) -> Registered:
    """A frame that takes no part in the joint solution."""
    nan = math.nan
    return Registered(
        wcs=wcs, joint=False, stars=0, residual_px=nan, scatter_px=nan, error_px=nan, half_split_px=nan,
        usable=usable, reason=reason,
    )  # fmt: skip


def _unit_vectors(ra_deg: F64, dec_deg: F64) -> F64:
    ra, dec = np.radians(np.asarray(ra_deg, np.float64)), np.radians(np.asarray(dec_deg, np.float64))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1).reshape(-1, 3)


def _half_split(solved: Solved, seen: Sightings, anchors: Anchors) -> F64:
    """`half_split_px` of each frame: two solutions from the two colours of a 150 px chessboard on the sky."""
    fit = solved.fit
    f, n = fit.frames, len(fit.frames.t)
    figure = np.full(n, math.nan)
    if not len(seen.frame):
        return figure
    east, north, centre = (b[0] for b in basis_at(fit.stars.sum(axis=0, keepdims=True)))
    cell = np.median(np.abs(f.z)) / SPLIT_CELL_PX
    depth = fit.stars @ centre
    colour = (np.floor(fit.stars @ east / depth * cell) + np.floor(fit.stars @ north / depth * cell)) % 2
    straight = replace(seen, pixel=ideal_pixels(f, fit.lenses, seen.frame, seen.pixel))
    both = np.ones(n, bool)
    sides: list[Frames] = []
    for side in (0, 1):
        half = straight.take(colour[seen.star] == side)
        both &= np.bincount(half.frame, minlength=n) >= MIN_STARS
        mine = colour[anchors.star] == side
        again = gauss_newton(
            f, np.zeros_like(fit.lenses), half, fit.stars, Anchors(anchors.star[mine], anchors.place[mine]),
            shapes=solved.shapes, free=[NONE] * len(fit.lenses), rounds=SPLIT_ROUNDS, floor=fit.floor,
        )  # fmt: skip
        sides.append(again.frames)
    if both.sum() < 2:
        return figure
    frame = np.repeat(np.flatnonzero(both), 25)
    steps = np.linspace(-0.95, 0.95, 5)
    grid = np.tile((steps[:, None] + 1j * steps[None, :]).reshape(-1), int(both.sum()))
    span = f.middle[frame]
    pixel = span + span.real * grid.real + 1j * span.imag * grid.imag
    a, b = (sky_at(s, frame, pixel) for s in sides)
    # What is common to all frames takes its share of each: 1/n of the variance.
    lost = math.sqrt(1 - 1 / int(both.sum()))
    miss = _without_common(a, b) * np.abs(f.z[frame])[:, None] / 2 / lost
    figure[both] = np.median(np.linalg.norm(miss, axis=1).reshape(-1, 25), axis=1)
    return figure


def _without_common(a: F64, b: F64) -> F64:
    """b - a (n, 3) without the rotation of the sphere and the scale about the mean that fit it best."""
    mean = a.mean(axis=0)
    generators = [np.cross(np.eye(3)[i], a) for i in range(3)] + [a - mean]
    design = np.stack([g.reshape(-1) for g in generators], axis=1)
    common, *_ = np.linalg.lstsq(design, (b - a).reshape(-1), rcond=None)
    return np.asarray((b - a) - (design @ common).reshape(-1, 3))


def _figures(
    frames: Sequence[FrameStars], start: Frames, solved: Solved, seen: Sightings, split: F64
) -> list[Registered]:  # fmt: skip
    """What each frame's place is worth; where the joint solution does not hold, whether its own may serve."""
    fit = solved.fit
    order = np.argsort(seen.frame, kind="stable")
    edges = np.searchsorted(seen.frame[order], np.arange(len(frames) + 1))
    result = []
    for i, frame in enumerate(frames):
        mine = order[edges[i] : edges[i + 1]]
        if not len(mine):
            result.append(_alone(frame, i, start, fit.stars))
            continue
        middle = _median(fit.residual[mine])
        scatter_px = robust_sigma(axes(fit.residual[mine] - middle))
        place = Registered(
            wcs=wcs_of(fit.frames, i), joint=True, stars=len(mine), residual_px=abs(middle), scatter_px=scatter_px,
            error_px=2 * scatter_px / math.sqrt(len(mine) - 2), half_split_px=float(split[i]),
            distortion=solved.lenses[int(fit.frames.camera[i])].distortion,
        )  # fmt: skip
        reason = _unacceptable(place)
        if reason is not None:
            own = seen.pixel[mine] - expected_pixels(start, seen.frame[mine], fit.stars[seen.star[mine]])
            place = replace(
                place, wcs=frame.wcs, distortion=None, joint=False, reason=reason, residual_px=abs(_median(own)),
                usable=abs(_median(own)) <= MAX_RESIDUAL_PX,
            )  # fmt: skip
        result.append(place)
    return result


def _median(values: C128) -> complex:
    return complex(np.median(values.real), np.median(values.imag))


def _alone(frame: FrameStars, i: int, start: Frames, stars: F64) -> Registered:
    """A frame that shares too few stars keeps its own place, unless its stars should have been the session's."""
    facing = stars[stars @ start.centre[i] > 0]
    pixel = expected_pixels(start, np.full(len(facing), i), facing)
    inside = (pixel.real >= 0) & (pixel.imag >= 0) & (pixel.real <= frame.width - 1) & (pixel.imag <= frame.height - 1)
    expected, mine = pixel[inside], frame.stars.x + 1j * frame.stars.y
    shared = sum(float(np.abs(mine - p).min(initial=math.inf)) <= MERGE_PX for p in expected.tolist())
    reason = Reason(
        rule="registration.min_stars", value=shared, threshold=MIN_STARS,
        message=f"{shared} of its {len(mine)} stars are among the {len(expected)} of the session there",
    )  # fmt: skip
    return _unmeasured(frame.wcs, reason, usable=min(len(expected), len(mine)) < ENOUGH_STARS)


def _unacceptable(place: Registered) -> Reason | None:
    """The first limit that a frame's figures break."""
    for name, value, limit, message in (
        ("residual_px", place.residual_px, MAX_RESIDUAL_PX, "the frame's stars lie off the session's stars"),
        ("error_px", place.error_px, MAX_ERROR_PX, "the frame's stars scatter too much about the session's"),
        ("half_split_px", place.half_split_px, MAX_HALF_SPLIT_PX, "two solutions from disjoint stars disagree"),
    ):
        if value > limit:
            return Reason(rule=f"registration.{name}", value=value, threshold=limit, message=message)
    return None
