"""The arithmetic of the joint solution: frames as similarities, stars as free directions, sparse Gauss-Newton.

Knows observations only (which frame, which star, where); `science.registration` says what is observed and what the
result means. Each frame is a similarity in its own tangent plane, `x + iy = t + z (+-xi + i eta)`, because a TAN
homography between frames is exactly a rotation of the sphere (experiments-astrometry 4 and 7.3). Pixels as x + iy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from zemosaicd import sphere
from zemosaicd.model import Wcs

F64 = NDArray[np.float64]
C128 = NDArray[np.complex128]
I64 = NDArray[np.int64]

ANCHOR_SIGMA_ARCSEC = 0.5
FLOOR_START_PX, FLOOR_MIN_PX, FLOOR_MAX_PX = 0.1, 0.02, 3.0
DAMPING = 1e-9


@dataclass(frozen=True, slots=True)
class Frames:
    """Similarities of F frames: basis (F, 3) unit vectors, `t` the pixel of the tangent point, `z` pixels a radian.

    `parity` -1: mirrored. `middle`: the frame's centre, `radius`: half its diagonal, px.
    """

    east: F64
    north: F64
    centre: F64
    t: C128
    z: C128
    parity: F64
    middle: C128
    radius: F64


@dataclass(frozen=True, slots=True)
class Sightings:
    """m observations: frame and star index, pixel (complex), variance of its SNR term (px^2)."""

    frame: I64
    star: I64
    pixel: C128
    snr_var: F64

    def take(self, keep: NDArray[np.bool_]) -> Sightings:
        return Sightings(self.frame[keep], self.star[keep], self.pixel[keep], self.snr_var[keep])


@dataclass(frozen=True, slots=True)
class Fit:
    """Result of `gauss_newton`: frames, star directions (n, 3), noise floor (px), chi, residuals observed - expected
    (px; anchors: radians east + i north) and their robust weights.
    """

    frames: Frames
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


def frames_from(solutions: Sequence[Wcs], sizes: Sequence[tuple[int, int]]) -> Frames:
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
    return Frames(east, north, centre, middle.copy(), 1 / q, parity, middle, radius)


def _recentred(f: Frames) -> Frames:
    """The same similarities with the tangent point moved to the frame's centre (differs by < 1e-3 px for 10 px)."""
    w = (f.middle - f.t) / f.z
    v = f.centre + (f.parity * w.real)[:, None] * f.east + w.imag[:, None] * f.north
    east, north, centre = basis_at(v)
    q = 1 / f.z
    dv = (f.parity * q.real)[:, None] * f.east + q.imag[:, None] * f.north
    q = (f.parity * _dot(east, dv) + 1j * _dot(north, dv)) / np.linalg.norm(v, axis=1)
    return replace(f, east=east, north=north, centre=centre, t=f.middle.copy(), z=1 / q)


def wcs_of(f: Frames, i: int) -> Wcs:
    """The plain TAN solution of frame `i`, tangent at its own centre; degrees, 0-based px."""
    ra, dec = sphere.position((float(f.centre[i, 0]), float(f.centre[i, 1]), float(f.centre[i, 2])))
    q = 1 / f.z[i]
    s = float(f.parity[i])
    cd = tuple(math.degrees(c) for c in (s * q.real, -s * q.imag, q.imag, q.real))
    return Wcs(
        ra_deg=ra, dec_deg=dec, x_px=float(f.t[i].real), y_px=float(f.t[i].imag), cd=(cd[0], cd[1], cd[2], cd[3])
    )


def _project(f: Frames, frame: I64, v: F64) -> tuple[C128, F64, F64, F64]:
    """Tangent coordinates w = +-xi + i eta of directions v seen in frames, with xi, eta and depth."""
    depth = _dot(f.centre[frame], v)
    xi, eta = _dot(f.east[frame], v) / depth, _dot(f.north[frame], v) / depth
    return f.parity[frame] * xi + 1j * eta, xi, eta, depth


def sky_at(f: Frames, frame: I64, pixel: C128) -> F64:
    """Unit vectors float64 (n, 3) of pixels complex128 (n,) of the frames int64 (n,)."""
    w = (pixel - f.t[frame]) / f.z[frame]
    v = f.centre[frame] + (f.parity[frame] * w.real)[:, None] * f.east[frame] + w.imag[:, None] * f.north[frame]
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


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


def _noise_floor(residual: C128, snr_var: F64, freedom: float) -> float:
    """The floor s0 (px) that makes the robust chi of sqrt(s0^2 + SNR term) equal to 1, by bisection."""
    low, high = FLOOR_MIN_PX, FLOOR_MAX_PX
    for _ in range(24):
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
    frames: Frames, seen: Sightings, stars: F64, anchor_star: I64, anchors: F64, *, rounds: int, floor: float = 0.0
) -> Fit:
    """Gauss-Newton from the start values; `floor` > 0 (px) is kept, else it is found from the residuals each round.

    `stars` (n, 3) start directions; star `anchor_star[i]` should lie at direction `anchors[i]`. Frames and stars that
    nothing observes stay where they are.
    """
    fixed, s0 = floor > 0, floor or FLOOR_START_PX
    sigma_a = ANCHOR_SIGMA_ARCSEC * sphere.ARCSEC_RAD
    data = 2 * (len(seen.frame) + len(anchor_star))
    unknown = 4 * len(np.unique(seen.frame)) + 2 * len(stars)
    freedom = math.sqrt(max(data - unknown, 0.1 * data) / data) if data else 1.0
    for step in range(rounds + 1):
        w, xi, eta, depth = _project(frames, seen.frame, stars[seen.star])
        residual = seen.pixel - frames.t[seen.frame] - frames.z[seen.frame] * w
        east, north, _ = basis_at(stars)
        miss = anchors - stars[anchor_star]
        off = _dot(east[anchor_star], miss) + 1j * _dot(north[anchor_star], miss)
        if step and not fixed and len(residual):
            s0 = _noise_floor(residual, seen.snr_var, freedom)
        sigma = np.sqrt(s0**2 + seen.snr_var)
        weight, weight_a = _robust(np.abs(residual) / sigma), _robust(np.abs(off) / sigma_a)
        if step == rounds or not len(residual):
            chi = robust_sigma(axes(residual / sigma)) / freedom
            return Fit(frames, stars, s0, chi, residual, weight, off, weight_a)
        move, shift = _step(
            frames, seen, (w, xi, eta, depth), residual, np.sqrt(weight) / sigma, (east, north, stars),
            anchor_star, off, np.sqrt(weight_a) / sigma_a,
        )  # fmt: skip
        frames = replace(frames, t=frames.t + move[0], z=frames.z * (1 + move[1] / frames.radius))
        frames = _recentred(frames)
        stars = stars + shift.real[:, None] * east + shift.imag[:, None] * north
        stars = stars / np.linalg.norm(stars, axis=1, keepdims=True)
    raise AssertionError("unreachable")


def _step(
    f: Frames, seen: Sightings, seen_at: tuple[C128, F64, F64, F64], residual: C128, root: F64,
    basis: tuple[F64, F64, F64], anchor_star: I64, off: C128, root_a: F64,
) -> tuple[tuple[C128, C128], C128]:  # fmt: skip
    """One step: ((dt px, du px at the half diagonal) a frame, (east + i north, rad) a star)."""
    w, xi, eta, depth = seen_at
    east, north, _ = basis
    n_frames, n_stars, m, k = len(f.t), len(east), len(residual), len(off)
    unit = float(np.median(np.abs(f.z)))
    turn = f.z[seen.frame] * w / f.radius[seen.frame]
    columns = [np.ones(m, np.complex128), np.full(m, 1j), turn, 1j * turn]
    for axis in (east, north):
        tilt = _dot(f.centre[seen.frame], axis[seen.star])
        d_xi = (_dot(f.east[seen.frame], axis[seen.star]) - xi * tilt) / depth
        d_eta = (_dot(f.north[seen.frame], axis[seen.star]) - eta * tilt) / depth
        columns.append(f.z[seen.frame] * (f.parity[seen.frame] * d_xi + 1j * d_eta) / unit)
    rows = np.arange(m)
    where = [4 * seen.frame + c for c in range(4)] + [4 * n_frames + 2 * seen.star + c for c in range(2)]
    value = np.concatenate([(c * root).real for c in columns] + [(c * root).imag for c in columns])
    row = np.concatenate([rows] * 6 + [rows + m] * 6)
    column = np.concatenate(where * 2)
    tie = 4 * n_frames + 2 * anchor_star
    row = np.concatenate([row, 2 * m + np.arange(k), 2 * m + k + np.arange(k)])
    column = np.concatenate([column, tie, tie + 1])
    value = np.concatenate([value, root_a / unit, root_a / unit])
    target = np.concatenate([axes(residual * root), axes(off * root_a)])
    size = 4 * n_frames + 2 * n_stars
    jacobian = sparse.csr_matrix((value, (row, column)), shape=(2 * (m + k), size))
    normal = (jacobian.T @ jacobian).tocsc()
    # A little damping holds what no observation holds: the gauge without anchors, frames that take no part.
    normal = normal + sparse.identity(size, format="csc") * (DAMPING * max(float(normal.diagonal().max()), 1e-30))
    lu = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solved = lu.solve(jacobian.T @ target)
    frame_part, star_part = solved[: 4 * n_frames].reshape(-1, 4), solved[4 * n_frames :].reshape(-1, 2) / unit
    dt, du = frame_part[:, 0] + 1j * frame_part[:, 1], frame_part[:, 2] + 1j * frame_part[:, 3]
    return (dt, du), star_part[:, 0] + 1j * star_part[:, 1]
