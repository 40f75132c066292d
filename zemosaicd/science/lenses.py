"""Does a distortion of the camera pay? The joint fit without and with lenses, and what each camera gains by one.

A lens of q coefficients is admitted only if m ln(chi0^2 / chi1^2) > q ln m, their price by the Bayesian information
criterion (Schwarz 1978): else it would be fitted to the catalogue's errors (experiments-astrometry 4). There are three
to choose from, and the one that gains most above its price is taken: all 14 terms of degrees 2 and 3; r^3 about an axis
of its own (radial and decentring, Brown 1966, Photogrammetric Engineering 32, 444); r^3 about the sensor's centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaicd import sphere
from zemosaicd.model import DISTORTION_TERMS, Distortion
from zemosaicd.science.distortion import terms
from zemosaicd.science.joint import ANCHOR_SIGMA_ARCSEC, F64, Anchors, Fit, Frames, Shapes, Sightings, gauss_newton
from zemosaicd.science.shapes import free_scale, shapes_seen

FULL = np.eye(2 * DISTORTION_TERMS)
CUBE = [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
ACROSS = [3.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]
ALONG = [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0]
PATTERNS = (FULL, np.array([CUBE, ACROSS, ALONG]).T, np.array([CUBE]).T)
NONE = np.zeros((2 * DISTORTION_TERMS, 0))
"""How a lens may move, (14, q): x before y, terms as in `model.Distortion`."""
STARS_A_COEFFICIENT = 10
"""Fewer stars could let a lens follow what is wrong with each of them, in all frames alike."""
CAP_SIGMA = 4.0
WORTH_PX = 0.02
"""Shift at the corner below which a lens shows nowhere, however sure it is."""
ROUNDS = 2
Camera = tuple[str, int, int]
"""Name, width and height of the sensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """What the session says of one camera's lens. `distortion` is None where none pays: `gain` <= `limit`.

    `gain`: m ln(chi0^2 / chi1^2) with m = 2 x (observations + the camera's share of the anchors), chi without and with
    a distortion of `coefficients`, the one admitted or the first one tried; `limit`: its price. `corner_px`: its
    largest shift at a corner of the sensor.
    """

    camera: str
    observations: int
    coefficients: int
    gain: float
    limit: float
    corner_px: float
    distortion: Distortion | None

    @property
    def worth(self) -> float:
        """What is gained above the price; minus infinity for a distortion that is none."""
        return self.gain - self.limit if self.distortion else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A fit, the shapes that it held its frames to, the judgement on each camera's lens, and how each lens moves."""

    fit: Fit
    shapes: Shapes
    lenses: tuple[Lens, ...]
    free: tuple[F64, ...]


def fit_with_lenses(
    start: Frames, seen: Sightings, stars: F64, anchors: Anchors, cameras: Sequence[Camera]
) -> Solved:  # fmt: skip
    """Frames and stars (n, 3) with the lenses that pay, each frame's shape held as firmly as the session says.

    A lens is judged with the stretches that the session needs without it: else, where the frames of two nights are
    stretched differently, it would pay by imitating that. Scales are tied last: a lens trades against their mean.
    """
    blank, free = np.zeros((len(cameras), 2, DISTORTION_TERMS)), [NONE] * len(cameras)
    loose = free_scale(start)
    first = gauss_newton(start, blank, seen, stars, anchors, shapes=loose, free=free, rounds=ROUNDS)
    if not len(seen.frame):
        return Solved(fit=first, shapes=loose, lenses=(), free=tuple(free))
    plain, shapes = _held(first, seen, anchors, free, tied=False)
    judged: dict[int, Lens] = {}
    affordable = math.inf  # no lens gains more than the first one, of which all others are parts
    for pattern in PATTERNS:
        if pattern.shape[1] > affordable:
            continue
        bent = _again(plain, seen, anchors, shapes, [pattern] * len(cameras))
        for c, lens in enumerate(_judged(plain, bent, seen, anchors, cameras, pattern.shape[1])):
            if c not in judged or lens.worth > judged[c].worth:
                judged[c], free[c] = lens, pattern if lens.distortion else NONE
        if affordable == math.inf:
            affordable = max(lens.coefficients * lens.gain / lens.limit for lens in judged.values())
    best = _again(plain, seen, anchors, shapes, free) if any(f is not NONE for f in free) else plain
    lenses = tuple(judged[c] for c in range(len(cameras)))
    return _finished(best, seen, anchors, cameras, lenses, tuple(free))


def fit_again(
    solved: Solved, seen: Sightings, stars: F64, anchors: Anchors, cameras: Sequence[Camera]
) -> Solved:  # fmt: skip
    """The same lenses, fitted to other sightings of other stars (n, 3)."""
    fit = gauss_newton(
        solved.fit.frames, solved.fit.lenses, seen, stars, anchors,
        shapes=solved.shapes, free=solved.free, rounds=ROUNDS,
    )  # fmt: skip
    return _finished(fit, seen, anchors, cameras, solved.lenses, solved.free)


def _finished(
    fit: Fit, seen: Sightings, anchors: Anchors, cameras: Sequence[Camera], lenses: tuple[Lens, ...],
    free: tuple[F64, ...],
) -> Solved:  # fmt: skip
    fit, shapes = _held(fit, seen, anchors, free, tied=True)
    final = tuple(_final(lens, c, fit.lenses[i]) for i, (lens, c) in enumerate(zip(lenses, cameras, strict=True)))
    return Solved(fit=fit, shapes=shapes, lenses=final, free=free)


def _held(
    fit: Fit, seen: Sightings, anchors: Anchors, free: Sequence[F64], *, tied: bool
) -> tuple[Fit, Shapes]:  # fmt: skip
    """The fit with its frames' stretches (and scales, if `tied`) held as firmly as it says itself, and how firmly."""
    for _ in range(2):  # what the stars took of the frames' shapes shows in the second
        shapes = shapes_seen(fit, seen)
        shapes = shapes if tied else replace(shapes, weight=shapes.weight * (0.0, 1.0, 1.0))
        fit = _again(fit, seen, anchors, shapes, free)
    return fit, shapes


def _again(fit: Fit, seen: Sightings, anchors: Anchors, shapes: Shapes, free: Sequence[F64]) -> Fit:
    """Some rounds more from where a fit ended."""
    return gauss_newton(fit.frames, fit.lenses, seen, fit.stars, anchors, shapes=shapes, free=free, rounds=ROUNDS)


def _judged(plain: Fit, bent: Fit, seen: Sightings, anchors: Anchors, cameras: Sequence[Camera], q: int) -> list[Lens]:
    """Each camera's lens of q coefficients, over its observations and its share of the anchors that it sees."""
    camera = bent.frames.camera[seen.frame]
    share = np.zeros((len(bent.stars), len(cameras)))
    np.add.at(share, (seen.star, camera), 1.0)
    number, stars, share = share.sum(axis=0), (share > 0).sum(axis=0), share[anchors.star]
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1.0)
    m = np.maximum(2 * (number + share.sum(axis=0)), 2.0)
    sigma, sigma_a = np.sqrt(bent.floor**2 + seen.snr_var), ANCHOR_SIGMA_ARCSEC * sphere.ARCSEC_RAD
    errors = [(np.abs(f.residual) / sigma, np.abs(f.anchor_residual) / sigma_a) for f in (plain, bent)]
    # One outlier more or less must not decide: both fits' errors are cut at the same length.
    caps = [CAP_SIGMA * max(float(np.median(e)) / 1.1774, 1e-3) if len(e) else 0.0 for e in errors[1]]
    before, after = (
        np.bincount(camera, np.minimum(own, caps[0]) ** 2, len(cameras)) + np.minimum(tied, caps[1]) ** 2 @ share
        for own, tied in errors
    )
    gain, limit = m * np.log(np.maximum(before, 1e-30) / np.maximum(after, 1e-30)), q * np.log(m)
    lenses = []
    for c, (name, width, height) in enumerate(cameras):
        corner_px, distortion = _distortion(width, height, bent.lenses[c])
        pays = gain[c] > limit[c] and stars[c] >= STARS_A_COEFFICIENT * q and corner_px > WORTH_PX
        lenses.append(
            Lens(
                camera=name, observations=int(number[c]), coefficients=q, gain=float(gain[c]), limit=float(limit[c]),
                corner_px=corner_px, distortion=distortion if pays else None,
            )
        )  # fmt: skip
    return lenses


def _final(lens: Lens, camera: Camera, shift_px: F64) -> Lens:
    """A judgement with the coefficients of the last fit."""
    if lens.distortion is None:
        return lens
    corner_px, distortion = _distortion(*camera[1:], shift_px)
    return replace(lens, corner_px=corner_px, distortion=distortion or lens.distortion)


def _distortion(width: int, height: int, shift_px: F64) -> tuple[float, Distortion | None]:
    """Largest shift at a corner, and the coefficients (2, 7) as a distortion; None if no camera is like that."""
    half = math.hypot(width, height)
    corners = np.array([(sx * width / half, sy * height / half) for sx in (-1, 1) for sy in (-1, 1)])
    corner_px = float(np.hypot(*(terms(corners[:, 0], corners[:, 1]) @ shift_px.T).T).max())
    x_px, y_px = (tuple(axis.tolist()) for axis in shift_px)
    try:
        return corner_px, Distortion(width=width, height=height, x_px=x_px, y_px=y_px)
    except ValueError:
        return corner_px, None
