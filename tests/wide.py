"""A wide sky of few pixels: one true function of direction, frames and tiles that see it, and a mosaic against it.

Four arcminutes a pixel, so that 24 small frames span 50 degrees. The value of a pixel is the sky's brightness in its
direction, as a flat-fielded camera records it: so it is the same in every projection, and a star's flux is the sum over
pixels of equal area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import KDTree

from tests import scenes, values
from zemosaicd import sphere
from zemosaicd.core.wcs_cards import wcs_header
from zemosaicd.model import FramePlan, Wcs
from zemosaicd.science import projections

F64 = NDArray[np.float64]

W, H = 176, 144
SCALE_ARCSEC = 240.0
NOISE = 2.0
SIGMA_RAD = 1.6 * SCALE_ARCSEC * sphere.ARCSEC_RAD
STEP_DEG = 7.5
FLUX = 4e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """A smooth sky and stars round a place: `stars` unit vectors (3, n), all of one flux, ADU px of SCALE_ARCSEC."""

    ra_deg: float
    dec_deg: float
    stars: F64

    def smooth(self, directions: F64) -> F64:
        """The sky between the stars, (n,) ADU, for directions (3, n)."""
        east, north, _ = (np.array(a) for a in sphere.tangent_basis(self.ra_deg, self.dec_deg))
        return np.asarray(1000.0 + 60.0 * (east @ directions) - 40.0 * (north @ directions))

    def at(self, directions: F64) -> F64:
        """The sky's brightness, (n,) ADU."""
        nearest, _ = KDTree(self.stars.T).query(directions.T)
        light = FLUX * np.exp(-0.5 * (nearest / SIGMA_RAD) ** 2) / (2 * math.pi * 1.6**2)
        return np.asarray(self.smooth(directions) + light)


def plane(ra_deg: float, dec_deg: float) -> Wcs:
    """Equal area round a place, a degree a pixel: to lay things out in, 0-based (0, 0) is the place itself."""
    return Wcs(ra_deg=ra_deg, dec_deg=dec_deg, x_px=0.0, y_px=0.0, cd=(-1.0, 0.0, 0.0, 1.0), projection=sphere.ZEA)


def sky(ra_deg: float, dec_deg: float, across_deg: float = 50.0) -> Sky:
    """Stars all round a place, none near another."""
    half, rng = across_deg / 2, np.random.default_rng(7)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(-half, half, 1.9), np.arange(-half, half, 1.9)))
    x, y = x + rng.uniform(-0.3, 0.3, x.shape), y + rng.uniform(-0.3, 0.3, y.shape)
    return Sky(ra_deg=ra_deg, dec_deg=dec_deg, stars=projections.to_sky(plane(ra_deg, dec_deg), x, y))


def places(ra_deg: float, dec_deg: float, columns: int, rows: int) -> list[Wcs]:
    """Frames round a place in rows and columns, each turned a little differently against its own north."""
    found = []
    for row in range(rows):
        for column in range(columns):
            x, y = STEP_DEG * (column - (columns - 1) / 2), 0.8 * STEP_DEG * (row - (rows - 1) / 2)
            v = sphere.pixel_to_sky(plane(ra_deg, dec_deg), x, y)
            ahead = sphere.sky_to_pixel(
                values.wcs_at(*sphere.position(v)), sphere.pixel_to_sky(plane(ra_deg, dec_deg), x, y + 1)
            )
            assert ahead is not None
            up = math.degrees(math.atan2(-(ahead[0] - (values.WIDTH - 1) / 2), ahead[1] - (values.HEIGHT - 1) / 2))
            place = values.wcs_at(
                *sphere.position(v),
                turn_deg=up + 7.0 * ((3 * row + column) % 3 - 1),
                scale_arcsec=SCALE_ARCSEC,
                width=W,
                height=H,
            )
            found.append(place)
    return found


def seen(wcs: Wcs, true: Sky, seed: int, width: int = W, height: int = H) -> F64:
    """What an image there sees, (height, width)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    light = true.at(projections.to_sky(wcs, x.ravel(), y.ravel())).reshape(height, width)
    return light + np.random.default_rng(seed).normal(0.0, NOISE, light.shape)


def frames(folder: Path, where: Sequence[Wcs], true: Sky) -> list[FramePlan]:
    """Prepared frames, one a place."""
    plans = [
        values.frame_plan(i, wcs, width=W, height=H, noise_adu=(NOISE,), photon_adu=(0.0,), fwhm_px=3.77)
        for i, wcs in enumerate(where)
    ]
    return scenes.caches(folder, plans, lambda i, f: seen(f.wcs, true, i))


def tiles(folder: Path, where: Sequence[Wcs], true: Sky) -> list[Path]:
    """The same as master tiles of a stranger."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"tile_{i}.fits" for i in range(len(where))]
    for i, (path, wcs) in enumerate(zip(paths, where, strict=True)):
        fits.writeto(path, seen(wcs, true, i).astype(np.float32), fits.Header(wcs_header(wcs)))
    return paths


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A mosaic against the truth. `picture` (H, W); `header`; `off` (H, W): picture less the true sky, ADU."""

    picture: F64
    header: fits.Header
    off: F64
    wcs: WCS

    def holes(self, where: Sequence[Wcs], edge_px: int = 2) -> int:
        """How many of the frames' pixels, so far and more inside their edges, show nothing on the mosaic."""
        lost = 0
        for place in where:
            y, x = (
                v.ravel() for v in np.mgrid[edge_px : H - edge_px : 3, edge_px : W - edge_px : 3].astype(np.float64)
            )
            ra, dec = directions_to_degrees(projections.to_sky(place, x, y))
            u, v = (np.round(p).astype(int) for p in self.wcs.all_world2pix(ra, dec, 0))
            lost += int((~np.isfinite(self.picture[v, u])).sum())
        return lost


def directions_to_degrees(directions: F64) -> tuple[F64, F64]:
    """Right ascension and declination."""
    return np.degrees(np.arctan2(directions[1], directions[0])) % 360.0, np.degrees(np.arcsin(directions[2]))


def compare(path: Path, true: Sky) -> Found:
    """A mosaic on disk, by astropy's understanding of its header, against the truth."""
    with fits.open(path) as hdus:
        picture, header = np.asarray(hdus[0].data, np.float64), hdus[0].header
    wcs = WCS(header, naxis=2)
    y, x = (v.ravel() for v in np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]].astype(np.float64))
    off = np.full(picture.size, np.nan)
    known = np.isfinite(picture.ravel())
    ra, dec = (np.radians(v) for v in wcs.all_pix2world(x[known], y[known], 0))
    there = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    off[known] = picture.ravel()[known] - true.at(there)
    return Found(picture=picture, header=header, off=off.reshape(picture.shape), wcs=wcs)


def stars_of(found: Found, true: Sky) -> tuple[F64, F64]:
    """(relative flux errors, offsets in px) of the stars that lie well inside the mosaic; the flux is of pixels' true
    solid angle."""
    ra, dec = directions_to_degrees(true.stars)
    fluxes, offsets = [], []
    for x, y in np.array(found.wcs.all_world2pix(ra, dec, 0)).T:
        if not (np.isfinite(x) and 14 <= x < found.picture.shape[1] - 14 and 14 <= y < found.picture.shape[0] - 14):
            continue
        cut = np.s_[round(y) - 13 : round(y) + 14, round(x) - 13 : round(x) + 14]
        box = found.picture[cut]
        if not np.isfinite(box).all():
            continue
        v, u = np.indices(box.shape)
        u, v = u + round(x) - 13 - x, v + round(y) - 13 - y
        light = box - np.median(box[np.hypot(u, v) > 10])
        inside = np.hypot(u, v) < 9
        fluxes.append(light[inside].sum() * area(found.wcs, x, y) / FLUX - 1.0)
        window = np.where(inside, light, 0.0) * np.exp(-0.5 * (u * u + v * v) / 1.6**2)
        offsets.append(2 * math.hypot((window * u).sum() / window.sum(), (window * v).sum() / window.sum()))
    return np.array(fluxes), np.array(offsets)


def area(wcs: WCS, x: float, y: float) -> float:
    """Solid angle of a pixel there, in those of SCALE_ARCSEC."""
    ra, dec = (np.radians(v) for v in wcs.all_pix2world([x + 0.5, x - 0.5, x, x], [y, y, y + 0.5, y - 0.5], 0))
    a, b, c, d = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)]).T
    return float(np.linalg.norm(np.cross(a - b, c - d)) / (SCALE_ARCSEC * sphere.ARCSEC_RAD) ** 2)
