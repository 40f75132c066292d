"""Geometry on the sphere and in the tangent plane, in plain Python floats.

A TAN image maps pixel (x, y) to the direction `M @ (x, y, 1)` with one 3x3 matrix M, so two TAN images are related by
the homography `inverse(M_b) @ M_a`, exactly (Hartley & Zisserman 2004, 2.3; Calabretta & Greisen 2002). Everything
that places frames, tiles and mosaics on the sky goes through these few functions; nothing here knows arrays or disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from zemosaicd.model import Distortion, Grid, Wcs

Vector = tuple[float, float, float]
Matrix = tuple[float, float, float, float, float, float, float, float, float]
"""A 3x3 matrix, row by row."""

ARCSEC_RAD = math.pi / 180.0 / 3600.0
INVERSE_ROUNDS = 40


def direction(ra_deg: float, dec_deg: float) -> Vector:
    """Unit vector of a position (degrees)."""
    ra, dec = math.radians(ra_deg), math.radians(dec_deg)
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)


def position(v: Vector) -> tuple[float, float]:
    """(ra_deg in [0, 360), dec_deg) of a direction of any length."""
    ra = math.degrees(math.atan2(v[1], v[0])) % 360.0
    return (0.0 if ra >= 360.0 else ra), math.degrees(math.atan2(v[2], math.hypot(v[0], v[1])))


def separation_deg(a: Vector, b: Vector) -> float:
    """Angle between two directions, exact for small and for large angles (Vincenty)."""
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return math.degrees(math.atan2(math.hypot(*cross), a[0] * b[0] + a[1] * b[1] + a[2] * b[2]))


def mean_direction(vectors: Iterable[Vector]) -> Vector:
    """Normalised sum of directions; the north pole if they cancel. RA wrap and poles need no special case."""
    x = y = z = 0.0
    for v in vectors:
        n = math.hypot(*v)
        x, y, z = x + v[0] / n, y + v[1] / n, z + v[2] / n
    n = math.hypot(x, y, z)
    return (x / n, y / n, z / n) if n > 1e-12 else (0.0, 0.0, 1.0)


def tangent_basis(ra_deg: float, dec_deg: float) -> tuple[Vector, Vector, Vector]:
    """(east, north, centre) unit vectors at a tangent point."""
    ra, dec = math.radians(ra_deg), math.radians(dec_deg)
    east = (-math.sin(ra), math.cos(ra), 0.0)
    north = (-math.sin(dec) * math.cos(ra), -math.sin(dec) * math.sin(ra), math.cos(dec))
    return east, north, direction(ra_deg, dec_deg)


def multiply(a: Matrix, b: Matrix) -> Matrix:
    """Matrix product a @ b."""
    c = [sum(a[3 * i + k] * b[3 * k + j] for k in range(3)) for i in range(3) for j in range(3)]
    return c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]


def inverse(m: Matrix) -> Matrix:
    """Inverse by cofactors; ValueError for a singular matrix."""
    a, b, c, d, e, f, g, h, i = m
    det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if det == 0.0:
        raise ValueError("singular 3x3 matrix")
    return (
        (e * i - f * h) / det, (c * h - b * i) / det, (b * f - c * e) / det,
        (f * g - d * i) / det, (a * i - c * g) / det, (c * d - a * f) / det,
        (d * h - e * g) / det, (b * g - a * h) / det, (a * e - b * d) / det,
    )  # fmt: skip


def apply(m: Matrix, x: float, y: float) -> Vector:
    """m @ (x, y, 1)."""
    return m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5], m[6] * x + m[7] * y + m[8]


def apply_plane(m: Matrix, x: float, y: float) -> tuple[float, float]:
    """The homography m applied to the point (x, y)."""
    u, v, w = apply(m, x, y)
    return u / w, v / w


def sky_matrix(wcs: Wcs) -> Matrix:
    """The matrix M with direction = M @ (x, y, 1) for 0-based pixels of a TAN image."""
    east, north, centre = tangent_basis(wcs.ra_deg, wcs.dec_deg)
    c11, c12, c21, c22 = (math.radians(c) for c in wcs.cd)
    rows = []
    for e, n, c in zip(east, north, centre, strict=True):
        column_x, column_y = e * c11 + n * c21, e * c12 + n * c22
        rows += [column_x, column_y, c - column_x * wcs.x_px - column_y * wcs.y_px]
    return rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7], rows[8]


def homography(source: Wcs, target: Wcs) -> Matrix:
    """The matrix that takes 0-based pixels of `source` to 0-based pixels of `target`.

    Its w is positive for pixels that `target`'s tangent plane can hold, negative for those on its far side.
    """
    h = multiply(inverse(sky_matrix(target)), sky_matrix(source))
    return tuple(v / abs(h[8]) for v in h)  # type: ignore[return-value]


def pixel_to_sky(wcs: Wcs, x: float, y: float) -> Vector:
    """Direction (not normalised) of a 0-based pixel position."""
    return apply(sky_matrix(wcs), x, y)


def sky_to_pixel(wcs: Wcs, v: Vector) -> tuple[float, float] | None:
    """0-based pixel position of a direction; None on the far side of the sphere."""
    east, north, centre = tangent_basis(wcs.ra_deg, wcs.dec_deg)
    depth = sum(a * b for a, b in zip(centre, v, strict=True))
    if depth <= 0.0:
        return None
    xi = math.degrees(sum(a * b for a, b in zip(east, v, strict=True)) / depth)
    eta = math.degrees(sum(a * b for a, b in zip(north, v, strict=True)) / depth)
    c11, c12, c21, c22 = wcs.cd
    det = c11 * c22 - c12 * c21
    return wcs.x_px + (c22 * xi - c12 * eta) / det, wcs.y_px + (c11 * eta - c21 * xi) / det


def scale_arcsec(wcs: Wcs) -> float:
    """Pixel scale: square root of the pixel's solid angle at the tangent point."""
    c11, c12, c21, c22 = wcs.cd
    return 3600.0 * math.sqrt(abs(c11 * c22 - c12 * c21))


def corners(width: int, height: int) -> tuple[tuple[float, float], ...]:
    """The outer corners of an image in 0-based pixel coordinates, in order round the edge."""
    return (-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)


def footprint(grid: Grid) -> tuple[Vector, ...]:
    """Directions of the four outer corners of a grid."""
    m = sky_matrix(grid.wcs)
    return tuple(apply(m, x, y) for x, y in corners(grid.width, grid.height))


def edge_points(width: int, height: int) -> tuple[tuple[float, float], ...]:
    """The outer corners of an image and the middles of its edges: what a bent outline is known by, 0-based px."""
    ring = corners(width, height)
    pairs = zip(ring, ring[1:] + ring[:1], strict=True)
    return tuple(p for (xa, ya), (xb, yb) in pairs for p in ((xa, ya), ((xa + xb) / 2, (ya + yb) / 2)))


def recorded_pixel(distortion: Distortion, x: float, y: float) -> tuple[float, float]:
    """Where the camera records what an ideal (TAN) image has at 0-based (x, y)."""
    radius = math.hypot(distortion.width, distortion.height) / 2
    u, v = (x - (distortion.width - 1) / 2) / radius, (y - (distortion.height - 1) / 2) / radius
    terms = (u * u, u * v, v * v, u * u * u, u * u * v, u * v * v, v * v * v)
    return (
        x + sum(c * t for c, t in zip(distortion.x_px, terms, strict=True)),
        y + sum(c * t for c, t in zip(distortion.y_px, terms, strict=True)),
    )


def ideal_pixel(distortion: Distortion, x: float, y: float) -> tuple[float, float]:
    """Inverse of `recorded_pixel` on the sensor and its border, by fixed-point iteration; good to 1e-9 px.

    A step leaves at most the slope of the distortion (0.004 for 1.5 px in the corner of 1080 x 1920) of the last error.
    """
    u, v = x, y
    for _ in range(INVERSE_ROUNDS):
        a, b = recorded_pixel(distortion, u, v)
        dx, dy = x - a, y - b
        u, v = u + dx, v + dy
        if abs(dx) + abs(dy) < 1e-10:
            break
    return u, v


def field_radius_deg(grid: Grid) -> float:
    """Angle from the centre of a grid to its farthest corner."""
    centre = pixel_to_sky(grid.wcs, (grid.width - 1) / 2, (grid.height - 1) / 2)
    return max(separation_deg(centre, c) for c in footprint(grid))


def centre_of(grid: Grid) -> Vector:
    """Direction of the centre of a grid."""
    return pixel_to_sky(grid.wcs, (grid.width - 1) / 2, (grid.height - 1) / 2)


def position_angle_deg(wcs: Wcs) -> float:
    """Angle of the +y axis of the image east of north, in [0, 360)."""
    return math.degrees(math.atan2(wcs.cd[1], wcs.cd[3])) % 360.0


def _precession(year: float) -> Matrix:
    """Rotation from J2000 to the mean equator and equinox of a Julian year, IAU 1976 (Lieske et al. 1977)."""
    t = (year - 2000.0) / 100.0
    zeta, z, theta = (
        t * (a + t * (b + t * c)) * ARCSEC_RAD
        for a, b, c in (
            (2306.2181, 0.30188, 0.017998),
            (2306.2181, 1.09468, 0.018203),
            (2004.3109, -0.42665, -0.041833),
        )
    )
    return multiply(_turn_z(-z), multiply(_turn_y(theta), _turn_z(-zeta)))


def _turn_z(angle: float) -> Matrix:
    c, s = math.cos(angle), math.sin(angle)
    return c, s, 0.0, -s, c, 0.0, 0.0, 0.0, 1.0


def _turn_y(angle: float) -> Matrix:
    c, s = math.cos(angle), math.sin(angle)
    return c, 0.0, -s, 0.0, 1.0, 0.0, s, 0.0, c


def precess_to_j2000(ra_deg: float, dec_deg: float, year: float) -> tuple[float, float]:
    """Mean equator and equinox of a Julian year -> J2000, degrees; better than 1" within a century."""
    return position(_turn(inverse(_precession(year)), direction(ra_deg, dec_deg)))


def precess_from_j2000(ra_deg: float, dec_deg: float, year: float) -> tuple[float, float]:
    """J2000 -> mean equator and equinox of a Julian year, degrees: what some makers write into RA and DEC."""
    return position(_turn(_precession(year), direction(ra_deg, dec_deg)))


def _turn(m: Matrix, v: Vector) -> Vector:
    return (
        m[0] * v[0] + m[1] * v[1] + m[2] * v[2],
        m[3] * v[0] + m[4] * v[1] + m[5] * v[2],
        m[6] * v[0] + m[7] * v[1] + m[8] * v[2],
    )
