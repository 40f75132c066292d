"""Geometry on the sphere, in the tangent plane and in the planes of wide mosaics, in plain Python floats.

A TAN image maps pixel (x, y) to the direction `M @ (x, y, 1)` with one 3x3 matrix M, so two TAN images are related by
the homography `inverse(M_b) @ M_a`, exactly (Hartley & Zisserman 2004, 2.3; Calabretta & Greisen 2002). Everything
that places frames, tiles and mosaics on the sky goes through these few functions; nothing here knows arrays or disk.

Wide mosaics (model.Wcs.projection) are ZEA, CAR (Calabretta & Greisen 2002, 5.1.7, 5.2.3) or HPX (Calabretta &
Roukema 2007, H = 4, K = 3). All are centred where the mosaic is: native coordinates are those of (east, north, centre)
at the reference point, so no mosaic has a pole or the RA wrap in its way. `science.projections` is the same for arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from zemosaicd.model import Distortion, Grid, Wcs

Vector = tuple[float, float, float]
Matrix = tuple[float, float, float, float, float, float, float, float, float]
"""A 3x3 matrix, row by row."""

TAN, ZEA, CAR, HPX = "TAN", "ZEA", "CAR", "HPX"
HPX_BELT = 2.0 / 3.0
"""Sine of the native latitude up to which HPX is one piece, a cylindrical equal-area map; beyond are its gores."""
HPX_AREA = 3.0 * math.pi / 8.0
"""A square degree of sky in square degrees of HPX's plane."""
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
    """The matrix M with direction = M @ (x, y, 1) for 0-based pixels of a TAN image. ValueError for another."""
    if wcs.projection != TAN:
        raise ValueError(f"{wcs.projection} is no tangent plane")
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
    """Direction (not normalised) of a 0-based pixel position. ValueError where the projection has no sky."""
    if wcs.projection == TAN:
        return apply(sky_matrix(wcs), x, y)
    if (v := sky_at(wcs, x, y)) is None:
        raise ValueError(f"there is no sky at pixel ({x:g}, {y:g}) of this {wcs.projection} image")
    return v


def sky_at(wcs: Wcs, x: float, y: float) -> Vector | None:
    """Direction of a 0-based pixel position; None where the projection has no sky."""
    if wcs.projection == TAN:
        return apply(sky_matrix(wcs), x, y)
    c11, c12, c21, c22 = wcs.cd
    dx, dy = x - wcs.x_px, y - wcs.y_px
    native = _FROM_PLANE[wcs.projection](math.radians(c11 * dx + c12 * dy), math.radians(c21 * dx + c22 * dy))
    if native is None:
        return None
    axes = tangent_basis(wcs.ra_deg, wcs.dec_deg)
    x, y, z = (sum(a * axis[i] for a, axis in zip(native, axes, strict=True)) for i in range(3))
    return x, y, z


def sky_to_pixel(wcs: Wcs, v: Vector) -> tuple[float, float] | None:
    """0-based pixel position of a direction; None on the far side of the sphere (of ZEA: opposite its centre)."""
    east, north, centre = tangent_basis(wcs.ra_deg, wcs.dec_deg)
    depth = sum(a * b for a, b in zip(centre, v, strict=True))
    if wcs.projection == TAN:
        if depth <= 0.0:
            return None
        xi = math.degrees(sum(a * b for a, b in zip(east, v, strict=True)) / depth)
        eta = math.degrees(sum(a * b for a, b in zip(north, v, strict=True)) / depth)
    else:
        length = math.hypot(*v)
        e, n = (sum(a * b for a, b in zip(axis, v, strict=True)) / length for axis in (east, north))
        plane = _TO_PLANE[wcs.projection](e, n, depth / length)
        if plane is None:
            return None
        xi, eta = math.degrees(plane[0]), math.degrees(plane[1])
    c11, c12, c21, c22 = wcs.cd
    det = c11 * c22 - c12 * c21
    return wcs.x_px + (c22 * xi - c12 * eta) / det, wcs.y_px + (c11 * eta - c21 * xi) / det


# --- planes of wide mosaics: (east, north, centre) parts of a unit vector <-> (x, y) in radians -------------------


def _zea(e: float, n: float, c: float) -> tuple[float, float] | None:
    if 1.0 + c <= 1e-12:
        return None
    stretch = math.sqrt(2.0 / (1.0 + c))
    return e * stretch, n * stretch


def _zea_back(x: float, y: float) -> Vector | None:
    square = x * x + y * y
    if square > 4.0:
        return None
    stretch = math.sqrt(1.0 - square / 4.0)
    return x * stretch, y * stretch, 1.0 - square / 2.0


def _car(e: float, n: float, c: float) -> tuple[float, float] | None:
    return math.atan2(e, c), math.atan2(n, math.hypot(e, c))


def _car_back(x: float, y: float) -> Vector | None:
    if abs(x) > math.pi or abs(y) > math.pi / 2:
        return None
    return math.cos(y) * math.sin(x), math.sin(y), math.cos(y) * math.cos(x)


def _hpx(e: float, n: float, c: float) -> tuple[float, float] | None:
    longitude = math.atan2(e, c)
    if abs(n) <= HPX_BELT:
        return longitude, HPX_AREA * n
    # 1 - |n| without the loss of digits beside the native pole.
    sigma = math.sqrt(3.0 * (e * e + c * c) / (1.0 + abs(n)))
    gore = _gore(longitude)
    return gore + (longitude - gore) * sigma, math.copysign(math.pi / 4.0 * (2.0 - sigma), n)


def _hpx_back(x: float, y: float) -> Vector | None:
    if abs(x) > math.pi or abs(y) > math.pi / 2:
        return None
    n, longitude = y / HPX_AREA, x
    around = math.sqrt(max(0.0, 1.0 - n * n))
    if abs(n) > HPX_BELT:
        sigma = 2.0 - 4.0 / math.pi * abs(y)
        gore = _gore(x)
        if abs(x - gore) > math.pi / 4.0 * sigma:
            return None
        less = sigma * sigma / 3.0
        n, around = math.copysign(1.0 - less, y), math.sqrt(less * (2.0 - less))
        longitude = gore + ((x - gore) / sigma if sigma > 0.0 else 0.0)
    return around * math.sin(longitude), n, around * math.cos(longitude)


def _gore(longitude: float) -> float:
    """The middle of the polar gore of HPX that a longitude (or x) of [-pi, pi] is in."""
    number = min(3, math.floor((longitude + math.pi) / (math.pi / 2.0)))
    return (2 * number + 1) * math.pi / 4.0 - math.pi


_TO_PLANE: dict[str, Callable[[float, float, float], tuple[float, float] | None]] = {ZEA: _zea, CAR: _car, HPX: _hpx}
_FROM_PLANE: dict[str, Callable[[float, float], Vector | None]] = {ZEA: _zea_back, CAR: _car_back, HPX: _hpx_back}


def scale_arcsec(wcs: Wcs) -> float:
    """Pixel scale: square root of the pixel's solid angle at the reference point."""
    c11, c12, c21, c22 = wcs.cd
    return 3600.0 * math.sqrt(abs(c11 * c22 - c12 * c21) / (HPX_AREA if wcs.projection == HPX else 1.0))


def corners(width: int, height: int) -> tuple[tuple[float, float], ...]:
    """The outer corners of an image in 0-based pixel coordinates, in order round the edge."""
    return (-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)


def footprint(grid: Grid) -> tuple[Vector, ...]:
    """Directions of the four outer corners of a grid on a tangent plane."""
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
    """Angle from the centre of a grid to its farthest corner; 180 where a corner of a wide one is beyond the sky."""
    centre = centre_of(grid)
    ends = [sky_at(grid.wcs, x, y) for x, y in corners(grid.width, grid.height)]
    return max(180.0 if end is None else separation_deg(centre, end) for end in ends)


def centre_of(grid: Grid) -> Vector:
    """Direction of the centre of a grid; of the reference point if a wide one has no sky there."""
    middle = sky_at(grid.wcs, (grid.width - 1) / 2, (grid.height - 1) / 2)
    return direction(grid.wcs.ra_deg, grid.wcs.dec_deg) if middle is None else middle


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
