"""Pixels of an image <-> directions on the sky, for arrays and any projection that a mosaic may have (zemosaicd.sphere,
which is the same for one position and names the sources)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Wcs

Numbers = NDArray[np.float64]


def to_sky(wcs: Wcs, x: Numbers, y: Numbers) -> Numbers:
    """Unit vectors (3, n) of 0-based pixel positions (n,); NaN where the projection has no sky."""
    if wcs.projection == sphere.TAN:
        there = np.array(sphere.sky_matrix(wcs)).reshape(3, 3) @ np.stack([x, y, np.ones_like(x)])
        return np.asarray(there / np.linalg.norm(there, axis=0))
    c11, c12, c21, c22 = (math.radians(c) for c in wcs.cd)
    dx, dy = x - wcs.x_px, y - wcs.y_px
    native = _FROM_PLANE[wcs.projection](c11 * dx + c12 * dy, c21 * dx + c22 * dy)
    return np.asarray(_axes(wcs).T @ native)


def to_pixels(wcs: Wcs, directions: Numbers) -> tuple[Numbers, Numbers]:
    """0-based pixel positions (n,) of directions (3, n), unit vectors unless the image is TAN; NaN on the far side of a
    tangent plane, and opposite the centre of ZEA."""
    if wcs.projection == sphere.TAN:
        u, v, w = np.array(sphere.inverse(sphere.sky_matrix(wcs))).reshape(3, 3) @ directions
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(w > 0.0, 1.0 / w, np.nan)
        return u * inverse, v * inverse
    xi, eta = _TO_PLANE[wcs.projection](*(_axes(wcs) @ directions))
    c11, c12, c21, c22 = (math.radians(c) for c in wcs.cd)
    det = c11 * c22 - c12 * c21
    return wcs.x_px + (c22 * xi - c12 * eta) / det, wcs.y_px + (c11 * eta - c21 * xi) / det


def _axes(wcs: Wcs) -> Numbers:
    """(3, 3): east, north and centre at the reference point, row by row."""
    return np.array(sphere.tangent_basis(wcs.ra_deg, wcs.dec_deg))


# --- (east, north, centre) parts of unit vectors <-> (x, y) in radians ---------------------------------------------


def _zea(e: Numbers, n: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch = np.where(1.0 + c > 1e-12, np.sqrt(2.0 / (1.0 + c)), np.nan)
    return e * stretch, n * stretch


def _zea_back(x: Numbers, y: Numbers) -> Numbers:
    square = x * x + y * y
    with np.errstate(invalid="ignore"):
        stretch = np.sqrt(1.0 - square / 4.0)  # NaN beyond the sky
    return np.stack([x * stretch, y * stretch, 1.0 - square / 2.0 + 0.0 * stretch])


def _car(e: Numbers, n: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
    return np.arctan2(e, c), np.arctan2(n, np.hypot(e, c))


def _car_back(x: Numbers, y: Numbers) -> Numbers:
    there = np.stack([np.cos(y) * np.sin(x), np.sin(y), np.cos(y) * np.cos(x)])
    there[:, (np.abs(x) > np.pi) | (np.abs(y) > np.pi / 2)] = np.nan
    return there


def _hpx(e: Numbers, n: Numbers, c: Numbers) -> tuple[Numbers, Numbers]:
    longitude, away = np.arctan2(e, c), np.abs(n)
    sigma = np.sqrt(3.0 * (e * e + c * c) / (1.0 + away))
    gore, belt = _gore(longitude), away <= sphere.HPX_BELT
    x = np.where(belt, longitude, gore + (longitude - gore) * sigma)
    return x, np.where(belt, sphere.HPX_AREA * n, np.copysign(np.pi / 4.0 * (2.0 - sigma), n))


def _hpx_back(x: Numbers, y: Numbers) -> Numbers:
    sine = y / sphere.HPX_AREA
    belt = np.abs(sine) <= sphere.HPX_BELT
    sigma, gore = 2.0 - 4.0 / np.pi * np.abs(y), _gore(x)
    less = sigma * sigma / 3.0
    with np.errstate(divide="ignore", invalid="ignore"):
        longitude = np.where(belt, x, gore + np.where(sigma > 0.0, (x - gore) / sigma, 0.0))
        around = np.sqrt(np.where(belt, 1.0 - sine * sine, less * (2.0 - less)))
    there = np.stack(
        [around * np.sin(longitude), np.where(belt, sine, np.copysign(1.0 - less, y)), around * np.cos(longitude)]
    )
    beyond = (np.abs(x) > np.pi) | (np.abs(y) > np.pi / 2) | (~belt & (np.abs(x - gore) > np.pi / 4.0 * sigma))
    there[:, beyond] = np.nan
    return there


def _gore(longitude: Numbers) -> Numbers:
    number = np.clip(np.floor((longitude + np.pi) / (np.pi / 2.0)), 0, 3)
    return (2.0 * number + 1.0) * np.pi / 4.0 - np.pi


_TO_PLANE = {sphere.ZEA: _zea, sphere.CAR: _car, sphere.HPX: _hpx}
_FROM_PLANE = {sphere.ZEA: _zea_back, sphere.CAR: _car_back, sphere.HPX: _hpx_back}
