"""The arithmetic of the joint solution: frames, stars and lenses, Gauss-Newton on everything at once.

Knows observations only (which frame, which star, where); `science.registration` says what is observed and what the
result means. Each frame is a similarity in its own tangent plane, `q = z (+-xi + i eta)`, because a TAN homography
between frames is exactly a rotation of the sphere, with a slight stretch, `t + q + b conj(q)`, that stays 0 unless
the session asks for it; the camera's lens then bends that ideal pixel (`model.Distortion`). Alternating between frames,
stars and lenses would converge far too slowly (experiments-astrometry 4 and 7.3). Pixels as x + iy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Wcs
from zemosaicd.science.distortion import terms
from zemosaicd.science.normal import FRAME_UNKNOWNS, Equations, solve

F64 = NDArray[np.float64]
C128 = NDArray[np.complex128]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

ANCHOR_SIGMA_ARCSEC = 0.5
FLOOR_START_PX, FLOOR_MIN_PX, FLOOR_MAX_PX = 0.1, 0.01, 3.0
HELD = 1e10
"""Weight (px^-2) of what is not to move."""
SHAPE = (2, 4, 5)
"""The unknowns of a frame that are its shape: scale, and stretch in real and imaginary part."""


@dataclass(frozen=True, slots=True)
class Frames:
    """F frames: basis (F, 3) unit vectors, `t` the ideal pixel of the tangent point, `z` pixels a radian, `stretch` b.

    `parity` -1: mirrored. `middle`: the frame's centre, `radius`: half its diagonal, px. `camera`: index of its lens.
    """

    east: F64
    north: F64
    centre: F64
    t: C128
    z: C128
    stretch: C128
    parity: F64
    middle: C128
    radius: F64
    camera: I64


@dataclass(frozen=True, slots=True)
class Sightings:
    """m observations: frame and star index, recorded pixel (complex), variance of its SNR term (px^2)."""

    frame: I64
    star: I64
    pixel: C128
    snr_var: F64

    def take(self, keep: Bools) -> Sightings:
        return Sightings(self.frame[keep], self.star[keep], self.pixel[keep], self.snr_var[keep])


@dataclass(frozen=True, slots=True)
class Anchors:
    """Star `star[i]` should lie at the unit vector `place[i]`, (k, 3)."""

    star: I64
    place: F64


@dataclass(frozen=True, slots=True)
class Shapes:
    """How firmly each frame's shape is held: `mean` and `weight` (F, 3), px at the half diagonal and px^-2.

    Columns: radius x ln |z|, radius x Re b, radius x Im b.
    """

    mean: F64
    weight: F64


@dataclass(frozen=True, slots=True)
class Fit:
    """Result of `gauss_newton`: frames, lenses (C, 2, 7) px, star directions (n, 3), noise floor (px), chi.

    `residual`: observed - expected (px), anchors: radians east + i north; with their robust weights.
    """

    frames: Frames
    lenses: F64
    stars: F64
    floor: float
    chi: float
    residual: C128
    weight: F64
    anchor_residual: C128
    anchor_weight: F64


def basis_at(v: F64) -> tuple[F64, F64, F64]:
    """(east, north, unit) at each direction of v (n, 3); at a pole east is a fixed direction."""
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    flat = np.hypot(unit[:, 0], unit[:, 1])
    pole = flat < 1e-12
    safe = np.where(pole, 1.0, flat)
    cos, sin = np.where(pole, 1.0, unit[:, 0] / safe), np.where(pole, 0.0, unit[:, 1] / safe)
    east = np.stack([-sin, cos, np.zeros_like(sin)], axis=1)
    return east, np.cross(unit, east), unit


def _dot(a: F64, b: F64) -> F64:
    return np.asarray(np.einsum("ij,ij->i", a, b))


def frames_from(solutions: Sequence[Wcs], sizes: Sequence[tuple[int, int]], cameras: Sequence[int]) -> Frames:
    """Nearest similarity to each frame's linear solution, tangent at the frame's centre; sizes are (width, height)."""
    matrices = np.array([sphere.sky_matrix(w) for w in solutions]).reshape(-1, 3, 3)
    middle = np.array([complex((w - 1) / 2, (h - 1) / 2) for w, h in sizes])
    v = np.einsum("fij,fj->fi", matrices, np.stack([middle.real, middle.imag, np.ones(len(sizes))], axis=1))
    norm = np.linalg.norm(v, axis=1)[:, None]
    east, north, centre = basis_at(v)
    dx, dy = matrices[:, :, 0] / norm, matrices[:, :, 1] / norm
    xi_x, eta_x, xi_y, eta_y = _dot(east, dx), _dot(north, dx), _dot(east, dy), _dot(north, dy)
    parity = np.where(xi_x * eta_y - xi_y * eta_x >= 0, 1.0, -1.0)
    q = ((parity * xi_x + 1j * eta_x) - 1j * (parity * xi_y + 1j * eta_y)) / 2
    radius = np.array([math.hypot(w, h) / 2 for w, h in sizes])
    return Frames(
        east, north, centre, middle.copy(), 1 / q, np.zeros(len(q), np.complex128), parity, middle, radius,
        np.array(cameras, np.int64),
    )  # fmt: skip


def _recentred(f: Frames) -> Frames:
    """The same frames with the tangent point moved to the frame's centre (differs by < 1e-3 px for 10 px)."""
    d = f.middle - f.t
    w = (d - f.stretch * np.conj(d)) / f.z
    v = f.centre + (f.parity * w.real)[:, None] * f.east + w.imag[:, None] * f.north
    east, north, centre = basis_at(v)
    q = 1 / f.z
    dv = (f.parity * q.real)[:, None] * f.east + q.imag[:, None] * f.north
    q = (f.parity * _dot(east, dv) + 1j * _dot(north, dv)) / np.linalg.norm(v, axis=1)
    return replace(f, east=east, north=north, centre=centre, t=f.middle.copy(), z=1 / q)


def wcs_of(f: Frames, i: int) -> Wcs:
    """The plain TAN solution of frame `i` for ideal pixels, tangent at its own centre; degrees, 0-based px."""
    ra, dec = sphere.position((float(f.centre[i, 0]), float(f.centre[i, 1]), float(f.centre[i, 2])))
    by_xi, by_eta = f.z[i] * f.parity[i], f.z[i] * 1j
    columns = [q + f.stretch[i] * np.conj(q) for q in (by_xi, by_eta)]
    cd = np.degrees(np.linalg.inv(np.array([[c.real for c in columns], [c.imag for c in columns]])))
    return Wcs(
        ra_deg=ra, dec_deg=dec, x_px=float(f.t[i].real), y_px=float(f.t[i].imag),
        cd=(float(cd[0, 0]), float(cd[0, 1]), float(cd[1, 0]), float(cd[1, 1])),
    )  # fmt: skip


def project(f: Frames, frame: I64, v: F64) -> tuple[C128, F64, F64, F64]:
    """Offsets q (px) from the tangent point's pixel of directions v (m, 3) seen in frames, with xi, eta and depth."""
    depth = _dot(f.centre[frame], v)
    xi, eta = _dot(f.east[frame], v) / depth, _dot(f.north[frame], v) / depth
    return f.z[frame] * (f.parity[frame] * xi + 1j * eta), xi, eta, depth


def expected_pixels(f: Frames, frame: I64, v: F64) -> C128:
    """Ideal pixels complex128 (n,) at which frames int64 (n,) have the directions v (n, 3) before them."""
    offset, *_ = project(f, frame, v)
    return f.t[frame] + offset + f.stretch[frame] * np.conj(offset)


def sky_at(f: Frames, frame: I64, pixel: C128) -> F64:
    """Unit vectors float64 (n, 3) of ideal pixels complex128 (n,) of the frames int64 (n,)."""
    d, b = pixel - f.t[frame], f.stretch[frame]
    w = (d - b * np.conj(d)) / (1 - np.abs(b) ** 2) / f.z[frame]
    v = f.centre[frame] + (f.parity[frame] * w.real)[:, None] * f.east[frame] + w.imag[:, None] * f.north[frame]
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


def _terms_at(f: Frames, frame: I64, ideal: C128) -> F64:
    place = (ideal - f.middle[frame]) / f.radius[frame]
    return terms(place.real, place.imag)


def _bend(lenses: F64, camera: I64, powers: F64) -> C128:
    """What the lens of each observation's camera adds to its ideal pixel; `powers` are the terms (m, 7) there."""
    x, y = np.einsum("mk,mk->m", powers, lenses[camera, 0]), np.einsum("mk,mk->m", powers, lenses[camera, 1])
    return np.asarray(x + 1j * y)


def ideal_pixels(f: Frames, lenses: F64, frame: I64, recorded: C128) -> C128:
    """Ideal pixels of recorded ones of the frames (n,), by fixed-point iteration, to 1e-6 px."""
    ideal = recorded
    if not lenses.any():
        return ideal
    for _ in range(sphere.INVERSE_ROUNDS):
        again = recorded - _bend(lenses, f.camera[frame], _terms_at(f, frame, ideal))
        moved = float(np.max(np.abs(again - ideal), initial=0.0))
        ideal = again
        if moved < 1e-6:
            break
    return ideal


def robust_sigma(values: F64) -> float:
    """1.4826 median |v| of values (n,) that should centre on 0, in their unit; NaN for none."""
    return 1.4826 * float(np.median(np.abs(values))) if len(values) else math.nan


def axes(c: C128) -> F64:
    """x then y of complex128 (n,): float64 (2n,), px."""
    return np.concatenate([c.real, c.imag])


def weighted_rms(residual: C128, weight: F64) -> float:
    """Weighted rms per axis of residuals complex128 (n,), weights float64 (n,); NaN without weight."""
    total = float(weight.sum())
    return math.sqrt(float((weight * np.abs(residual) ** 2).sum()) / total / 2) if total > 0 else math.nan


def shape_of(f: Frames) -> F64:
    """The frames' shapes (F, 3), as `Shapes.mean` has them."""
    return np.stack([f.radius * np.log(np.abs(f.z)), f.radius * f.stretch.real, f.radius * f.stretch.imag], axis=1)


def _noise_floor(residual: C128, snr_var: F64, freedom: float) -> float:
    """The floor s0 (px) that makes the robust chi of sqrt(s0^2 + SNR term) equal to 1, by bisection."""
    low, high = FLOOR_MIN_PX, FLOOR_MAX_PX
    for _ in range(12):
        middle = math.sqrt(low * high)
        chi = robust_sigma(axes(residual / np.sqrt(middle**2 + snr_var))) / freedom
        low, high = (middle, high) if chi > 1 else (low, middle)
    return low


def _robust(length: F64) -> F64:
    """Weight 1 / (1 + (e / 4s)^4) of residual lengths in units of their expected sigma; s from their median."""
    if not len(length):
        return length
    scale = max(float(np.median(length)) / 1.1774, 1e-3)
    return np.asarray(1 / (1 + (length / (4 * scale)) ** 4))


def gauss_newton(
    frames: Frames, lenses: F64, seen: Sightings, stars: F64, anchors: Anchors, *,
    shapes: Shapes, free: Sequence[F64], rounds: int, floor: float = 0.0,
) -> Fit:  # fmt: skip
    """Gauss-Newton from the start values; `floor` > 0 (px) is kept, else it is found from the residuals each round.

    `stars` (n, 3) start directions. `lenses` (C, 2, 7); `free` says how each of them moves: a step is `free[c] @ d`,
    (14, q) with q = 0 for a lens that stays. Frames and stars that nothing observes stay where they are.
    """
    s0 = floor or FLOOR_START_PX
    freedom = _freedom(seen, stars, anchors, sum(p.shape[1] for p in free))
    for step in range(rounds + 1):
        at = _seen_at(frames, lenses, seen, stars)
        basis = basis_at(stars)[:2]
        miss = anchors.place - stars[anchors.star]
        off = _dot(basis[0][anchors.star], miss) + 1j * _dot(basis[1][anchors.star], miss)
        if step and not floor and len(at.residual):
            s0 = _noise_floor(at.residual, seen.snr_var, freedom)
        sigma, sigma_a = np.sqrt(s0**2 + seen.snr_var), ANCHOR_SIGMA_ARCSEC * sphere.ARCSEC_RAD
        weight, weight_a = _robust(np.abs(at.residual) / sigma), _robust(np.abs(off) / sigma_a)
        if step == rounds or not len(at.residual):
            chi = robust_sigma(axes(at.residual / sigma)) / freedom
            return Fit(frames, lenses, stars, s0, chi, at.residual, weight, off, weight_a)
        unit = float(np.median(np.abs(frames.z)))
        tie, tie_step = np.zeros(len(stars)), np.zeros((len(stars), 2))
        tie[anchors.star] = weight_a / (sigma_a * unit) ** 2
        tie_step[anchors.star] = np.stack([off.real, off.imag], axis=1) * unit
        equations = _equations(frames, seen, at, basis, unit, np.sqrt(weight) / sigma, shapes, free)
        d_frame, d_star, d_lens = solve(replace(equations, tie=tie, tie_step=tie_step))
        frames, lenses = _moved(frames, d_frame), _bent(lenses, free, d_lens)
        stars = stars + (d_star[:, :1] * basis[0] + d_star[:, 1:] * basis[1]) / unit
        stars = stars / np.linalg.norm(stars, axis=1, keepdims=True)
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class _SeenAt:
    """Observations against their expectation: offset q from the tangent point's pixel (px), tangent coordinates and
    depth, the lens's terms (m, 7) at the ideal pixel, observed - expected (px)."""

    offset: C128
    xi: F64
    eta: F64
    depth: F64
    powers: F64
    residual: C128


def _seen_at(f: Frames, lenses: F64, seen: Sightings, stars: F64) -> _SeenAt:
    offset, xi, eta, depth = project(f, seen.frame, stars[seen.star])
    ideal = f.t[seen.frame] + offset + f.stretch[seen.frame] * np.conj(offset)
    powers = _terms_at(f, seen.frame, ideal)
    residual = seen.pixel - ideal - _bend(lenses, f.camera[seen.frame], powers)
    return _SeenAt(offset, xi, eta, depth, powers, residual)


def _equations(
    f: Frames, seen: Sightings, at: _SeenAt, basis: tuple[F64, F64], unit: float, root: F64, shapes: Shapes,
    free: Sequence[F64],
) -> Equations:  # fmt: skip
    """The observations' equations with the frames' priors; `root`: square roots of their weights, 1/px."""
    prior, prior_step = (np.zeros((len(f.t), FRAME_UNKNOWNS)) for _ in range(2))
    prior[:, SHAPE], prior_step[:, SHAPE] = shapes.weight, shapes.mean - shape_of(f)
    return Equations(
        frame_of=seen.frame,
        star_of=seen.star,
        frame=by_frame(f, seen, at.offset) * root[:, None, None],
        star=_by_star(f, seen, at, basis, unit) * root[:, None, None],
        lens=_by_lens(at.powers * root[:, None], f.camera[seen.frame], free),
        residual=np.stack([at.residual.real * root, at.residual.imag * root], axis=1).reshape(-1),
        prior=prior,
        prior_step=prior_step,
        tie=np.zeros(0),
        tie_step=np.zeros((0, 2)),
    )


def _freedom(seen: Sightings, stars: F64, anchors: Anchors, lens_unknowns: int) -> float:
    """Root of the share of the data that the unknowns leave over."""
    data = 2 * (len(seen.frame) + len(anchors.star))
    unknown = 4 * len(np.unique(seen.frame)) + 2 * len(stars) + lens_unknowns
    return math.sqrt(max(data - unknown, 0.1 * data) / data) if data else 1.0


def _bent(lenses: F64, free: Sequence[F64], step: F64) -> F64:
    """The lenses after a step of their unknowns, one lens after the other."""
    edges = np.cumsum([0, *(p.shape[1] for p in free)])
    moves = [p @ step[a:b] for p, a, b in zip(free, edges, edges[1:], strict=False)]
    return lenses + np.reshape(moves, lenses.shape)


def _moved(f: Frames, step: F64) -> Frames:
    """The frames after a step (F, 6): px of the tangent point, then px at the half diagonal of turn and stretch."""
    dt, du, db = step[:, 0] + 1j * step[:, 1], step[:, 2] + 1j * step[:, 3], step[:, 4] + 1j * step[:, 5]
    return _recentred(replace(f, t=f.t + dt, z=f.z * (1 + du / f.radius), stretch=f.stretch + db / f.radius))


def _columns(columns: Sequence[C128]) -> F64:
    """Complex derivatives (m,) each as real ones (m, 2, n): x and y, by each unknown."""
    stacked = np.stack(columns, axis=1)
    return np.stack([stacked.real, stacked.imag], axis=1)


def by_frame(f: Frames, seen: Sightings, offset: C128) -> F64:
    """Derivatives (m, 2, 6) of the recorded pixel by the frame's unknowns (the lens's own slope, 0.004, left aside)."""
    w, turn = offset / f.z[seen.frame], offset / f.radius[seen.frame]
    # A frame moves by turning on the sphere, not by sliding in its plane: else its curvature seems to tell the place.
    moves = [e + (e / f.z[seen.frame] * np.conj(w)).real * offset for e in (1.0, 1j)]
    return _columns([*moves, turn, 1j * turn, np.conj(turn), 1j * np.conj(turn)])


def _by_star(f: Frames, seen: Sightings, at: _SeenAt, basis: tuple[F64, F64], unit: float) -> F64:
    """Derivatives (m, 2, 2) by the star's place, per 1 / unit of a radian east and north."""
    columns = []
    for axis in basis:
        tilt = _dot(f.centre[seen.frame], axis[seen.star])
        d_xi = (_dot(f.east[seen.frame], axis[seen.star]) - at.xi * tilt) / at.depth
        d_eta = (_dot(f.north[seen.frame], axis[seen.star]) - at.eta * tilt) / at.depth
        columns.append(f.z[seen.frame] * (f.parity[seen.frame] * d_xi + 1j * d_eta) / unit)
    return _columns(columns)


def _by_lens(powers: F64, camera: I64, free: Sequence[F64]) -> F64:
    """Derivatives (2m, q) by the unknowns of all lenses; x and y of an observation are rows 2i and 2i + 1."""
    result = np.zeros((len(camera), 2, sum(p.shape[1] for p in free)))
    first = 0
    for c, pattern in enumerate(free):
        mine, last = np.flatnonzero(camera == c), first + pattern.shape[1]
        for axis, part in enumerate(np.split(pattern, 2)):
            result[mine, axis, first:last] = powers[mine] @ part
        first = last
    return result.reshape(2 * len(camera), -1)
