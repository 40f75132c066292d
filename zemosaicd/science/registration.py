"""The closed session's joint astrometric solution: every frame, every shared star, one sparse least squares.

Stars of all frames are merged by their predicted places, tied to Tycho-2 anchors where they have one, and solved
with the frames by Gauss-Newton (`science.joint`; recipe: experiments-astrometry 7.3). Pixel positions are 0-based
float64. The camera's distortion is not modelled: results are plain linear TAN solutions. Without anchors the solution
keeps the place, turn and scale of its start values about as they were. The result depends only on the frames and
their order, which must be the session's canonical one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaicd import sphere
from zemosaicd.model import Reason, Wcs
from zemosaicd.science.joint import (
    C128,
    F64,
    I64,
    Fit,
    Frames,
    Sightings,
    axes,
    basis_at,
    frames_from,
    gauss_newton,
    robust_sigma,
    sky_at,
    wcs_of,
    weighted_rms,
)  # fmt: skip
from zemosaicd.science.matching import one_to_one
from zemosaicd.science.stars import StarList

ROUNDS, SPLIT_ROUNDS = 5, 2
MERGE_PX = 3.0
ANCHOR_MATCH_ARCSEC = 4.0
SNR_TERM_PX = 1.2
MIN_STARS = 4
SPLIT_CELL_PX = 150.0
MAX_RESIDUAL_PX, MAX_HALF_SPLIT_PX = 0.15, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStars:
    """One frame of a session: its star list, its own linear solution (None: not solved), its size in pixels."""

    stars: StarList
    wcs: Wcs | None
    width: int
    height: int
    camera: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A frame's place in the joint solution.

    `wcs`: the joint solution, or the start value where `joint` is false (too few shared stars; None: never solved).
    `residual_px`: length of the median residual vector of its stars; `scatter_px`: their sigma per axis (1.4826 MAD);
    `half_split_px`: half the median difference between two solutions from disjoint stars, over the frame, with the
    session's common shift, turn and scale taken out: an estimate of the frame's registration error without truth, NaN
    where a half has fewer than 4 stars, or alone. `reason`: why the frame should be set aside, or None.
    """

    wcs: Wcs | None
    joint: bool
    stars: int
    residual_px: float
    scatter_px: float
    half_split_px: float
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSolution:
    """Result of `solve_session`; `frames` in input order.

    `chi`: robust sigma of the residuals over their expected sigma; `floor_px`: the noise floor s0 of a star's position
    that makes chi 1; `rms_px`: weighted rms per axis; `anchor_rms_arcsec`: weighted rms per axis of star - Tycho-2 (NaN
    without anchors).
    """

    frames: tuple[Registered, ...]
    stars: int
    observations: int
    anchors: int
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
    active = [i for i, f in enumerate(frames) if f.wcs is not None]
    if not active:
        return JointSolution(
            frames=tuple(_unsolved() for _ in frames), stars=0, observations=0, anchors=0,
            chi=math.nan, floor_px=math.nan, rms_px=math.nan, anchor_rms_arcsec=math.nan,
        )  # fmt: skip
    used = [frames[i] for i in active]
    start = frames_from([f.wcs for f in used if f.wcs is not None], [(f.width, f.height) for f in used])
    seen, stars = _merge(used, start, stars_per_frame)
    anchors = _anchor_vectors(anchor_ra_deg, anchor_dec_deg)
    seen, stars, anchor_star, anchors = _shared(seen, stars, anchors, start)
    fit = gauss_newton(start, seen, stars, anchor_star, anchors, rounds=ROUNDS)
    split = _half_split(fit, seen, anchor_star, anchors)
    done = _figures(used, fit, seen, split)
    by_frame = dict(zip(active, done, strict=True))
    return JointSolution(
        frames=tuple(by_frame.get(i) or _unsolved() for i in range(len(frames))),
        stars=len(stars), observations=len(seen.frame), anchors=len(anchor_star),
        chi=fit.chi, floor_px=fit.floor, rms_px=weighted_rms(fit.residual, fit.weight),
        anchor_rms_arcsec=weighted_rms(fit.anchor_residual, fit.anchor_weight) / sphere.ARCSEC_RAD,
    )  # fmt: skip


def spread(stars: StarList, width: int, height: int, limit: int, cells: int = 5) -> I64:
    """Indices of at most `limit` stars: the brightest of each cell of the frame first, then the second of each, ..."""
    count = len(stars.x)
    if count <= limit:
        return np.arange(count)
    column = np.clip((stars.x * cells / width).astype(np.int64), 0, cells - 1)
    row = np.clip((stars.y * cells / height).astype(np.int64), 0, cells - 1)
    cell = row * cells + column
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], cell[order])
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count) - first
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def sky_vectors(wcs: Wcs, x: F64, y: F64) -> F64:
    """Unit vectors, shape (n, 3), of 0-based pixel positions."""
    m = np.array(sphere.sky_matrix(wcs)).reshape(3, 3)
    v = np.stack([x, y, np.ones_like(x)], axis=-1) @ m.T
    return np.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True))


def _unsolved() -> Registered:
    reason = Reason(rule="astrometry.unsolved", message="no solution of its own and none by its neighbours")
    return Registered(
        wcs=None, joint=False, stars=0, residual_px=math.nan, scatter_px=math.nan, half_split_px=math.nan, reason=reason
    )


def _anchor_vectors(ra_deg: F64, dec_deg: F64) -> F64:
    ra, dec = np.radians(np.asarray(ra_deg, np.float64)), np.radians(np.asarray(dec_deg, np.float64))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1).reshape(-1, 3)


def _merge(frames: Sequence[FrameStars], start: Frames, limit: int) -> tuple[Sightings, F64]:
    """One list of stars from all frames: nearest within 3 px, one observation a frame; richest frame first."""
    picks = [spread(f.stars, f.width, f.height, limit) for f in frames]
    total = np.zeros((0, 3))
    rows: list[tuple[I64, I64, C128, F64]] = []
    for i in sorted(range(len(frames)), key=lambda k: (-len(picks[k]), k)):
        stars, pick = frames[i].stars, picks[i]
        if not len(pick):
            continue
        pixel = stars.x[pick] + 1j * stars.y[pick]
        v = sky_at(start, np.full(len(pick), i), pixel)
        index = _assign(total, v, MERGE_PX / abs(start.z[i]))
        fresh = index == len(total)
        index[fresh] += np.arange(int(fresh.sum()))
        total = np.concatenate([total, np.zeros((int(fresh.sum()), 3))])
        good = index >= 0
        total[index[good]] += v[good]
        snr_var = (SNR_TERM_PX / np.maximum(stars.snr[pick].astype(np.float64), 1.0)) ** 2
        rows.append((np.full(int(good.sum()), i), index[good], pixel[good], snr_var[good]))
    if not rows:
        empty = np.zeros(0, np.int64)
        return Sightings(empty, empty, np.zeros(0, np.complex128), np.zeros(0)), total
    frame, star, pixels, snr = (np.concatenate(c) for c in zip(*rows, strict=True))
    return Sightings(frame, star, pixels, snr), total / np.linalg.norm(total, axis=1, keepdims=True)


def _assign(total: F64, v: F64, radius_rad: float) -> I64:
    """The star that each direction belongs to: nearest within the radius; -1: a nearer one took it; len(total): new."""
    index = np.full(len(v), len(total), np.int64)
    known = total / np.linalg.norm(total, axis=1, keepdims=True)
    mine, partner, lost = one_to_one(v, known, radius_rad)
    index[mine], index[lost] = partner, -1
    return index


def _shared(seen: Sightings, stars: F64, anchors: F64, start: Frames) -> tuple[Sightings, F64, I64, F64]:
    """Keep stars seen twice or known to the catalogue, in frames that have four of them; renumber."""
    anchor_of = np.full(len(stars), -1, np.int64)
    if len(start.z):
        radius = max(ANCHOR_MATCH_ARCSEC * sphere.ARCSEC_RAD, 1 / float(np.min(np.abs(start.z))))
        chosen, partner, _ = one_to_one(anchors, stars, radius)
        anchor_of[partner] = chosen
    while True:
        count = np.bincount(seen.star, minlength=len(stars))
        keep = (count[seen.star] >= 2) | (anchor_of[seen.star] >= 0)
        crowd = np.bincount(seen.frame[keep], minlength=len(start.t))
        keep &= crowd[seen.frame] >= MIN_STARS
        if keep.all():
            break
        seen = seen.take(keep)
    used, renumbered = np.unique(seen.star, return_inverse=True)
    anchor_of = anchor_of[used]
    anchor_star = np.flatnonzero(anchor_of >= 0)
    seen = replace(seen, star=renumbered.astype(np.int64).reshape(-1))
    return seen, stars[used], anchor_star, anchors[anchor_of[anchor_star]].reshape(-1, 3)


def _half_split(fit: Fit, seen: Sightings, anchor_star: I64, anchors: F64) -> F64:
    """`half_split_px` of each frame: two solutions from the two colours of a 150 px chessboard on the sky."""
    f, n = fit.frames, len(fit.frames.t)
    figure = np.full(n, math.nan)
    if not len(seen.frame):
        return figure
    east, north, centre = (b[0] for b in basis_at(fit.stars.sum(axis=0, keepdims=True)))
    cell = np.median(np.abs(f.z)) / SPLIT_CELL_PX
    depth = fit.stars @ centre
    colour = (np.floor(fit.stars @ east / depth * cell) + np.floor(fit.stars @ north / depth * cell)) % 2
    both = np.ones(n, bool)
    sides: list[Frames] = []
    for side in (0, 1):
        half = seen.take(colour[seen.star] == side)
        both &= np.bincount(half.frame, minlength=n) >= MIN_STARS
        mine = colour[anchor_star] == side
        again = gauss_newton(f, half, fit.stars, anchor_star[mine], anchors[mine], rounds=SPLIT_ROUNDS, floor=fit.floor)
        sides.append(again.frames)
    if both.sum() < 2:
        return figure
    frame = np.repeat(np.flatnonzero(both), 25)
    steps = np.linspace(-0.95, 0.95, 5)
    grid = (steps[:, None] + 1j * steps[None, :]).reshape(-1)
    span = f.middle[frame]
    pixel = (
        span + span.real * np.tile(grid.real, int(both.sum())) + 1j * span.imag * np.tile(grid.imag, int(both.sum()))
    )
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


def _figures(frames: Sequence[FrameStars], fit: Fit, seen: Sightings, split: F64) -> list[Registered]:
    order = np.argsort(seen.frame, kind="stable")
    edges = np.searchsorted(seen.frame[order], np.arange(len(frames) + 1))
    result = []
    for i, frame in enumerate(frames):
        mine = fit.residual[order[edges[i] : edges[i + 1]]]
        if not len(mine):
            nan = math.nan
            reason = Reason(rule="registration.min_stars", value=0, threshold=MIN_STARS, message="too few shared stars")
            result.append(
                Registered(
                    wcs=frame.wcs,
                    joint=False,
                    stars=0,
                    residual_px=nan,
                    scatter_px=nan,
                    half_split_px=nan,
                    reason=reason,
                )
            )
            continue
        middle = complex(np.median(mine.real), np.median(mine.imag))
        result.append(
            Registered(
                wcs=wcs_of(fit.frames, i), joint=True, stars=len(mine), residual_px=abs(middle),
                scatter_px=robust_sigma(axes(mine - middle)), half_split_px=float(split[i]),
                reason=_unacceptable(abs(middle), float(split[i])),
            )
        )  # fmt: skip
    return result


def _unacceptable(residual_px: float, half_split_px: float) -> Reason | None:
    if residual_px > MAX_RESIDUAL_PX:
        return Reason(
            rule="registration.residual_px", value=residual_px, threshold=MAX_RESIDUAL_PX,
            message="the frame's stars lie off the session's stars",
        )  # fmt: skip
    if half_split_px > MAX_HALF_SPLIT_PX:
        return Reason(
            rule="registration.half_split_px", value=half_split_px, threshold=MAX_HALF_SPLIT_PX,
            message="two solutions from disjoint stars of the frame disagree",
        )  # fmt: skip
    return None
