"""Two cameras on one sky: raw frames of both in one folder, and what each star of a mosaic gives beside the truth.

The second camera has coarser pixels, another Bayer pattern, gain, exposure and pedestal, a smaller aperture, and shows
the sky mirrored and turned; the light of a star is the same in the truth of both but for the aperture.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.simulate import Night, SimulatedFrame, Sky, pixel_positions, simulate, sky_of

F64 = NDArray[np.float64]

FIRST = Night(
    frames=6,
    width=384,
    height=288,
    scale_arcsec=5.0,
    dither_px=6.0,
    mag10_e=2.6e6,
    faintest_mag=13.5,
    nebula_e=0.0,
    fwhm_px=3.8,
    sky_e=80.0,
    hot_pixels_ppm=20.0,
)
SECOND = replace(
    FIRST, ra_deg=FIRST.ra_deg + 0.4, width=300, height=240, scale_arcsec=6.6, bayer="RGGB", mirrored=True,
    position_angle_deg=75.0, fwhm_px=2.9, electrons_per_adu=0.25, bias_adu=150.0, sky_e=180.0,
    exposure_s=20.0, instrument="ZWO ASI183MC", telescope="FRA300", start="2025-08-14T23:30:00", seed=5,
)  # fmt: skip
APERTURE = 0.7
"""Of a star's light, what the second camera gathers in a frame against the first."""
BRIGHTEST_E = 2e5
"""Stars are made no brighter than this, so that none saturates."""
RADIUS_ARCSEC = 45.0
EDGE_PX = 12.0
"""A star is a camera's if it is so far inside one of its frames."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Camera:
    """A camera's night and its frames."""

    night: Night
    frames: Sequence[SimulatedFrame]

    def sees(self, ra_deg: F64, dec_deg: F64, edge_px: float) -> NDArray[np.bool_]:
        """Which places are so far inside one of its frames (less than 0: so far outside all of them they are not)."""
        inside = np.zeros(len(ra_deg), np.bool_)
        for frame in self.frames:
            x, y = pixel_positions(frame.wcs, ra_deg, dec_deg)
            right, bottom = self.night.width - 1 - edge_px, self.night.height - 1 - edge_px
            inside |= (x > edge_px) & (x < right) & (y > edge_px) & (y < bottom)
        return inside


@functools.cache
def cameras(first: Night = FIRST, second: Night = SECOND) -> tuple[Sky, tuple[Camera, Camera]]:
    """The true sky in the first one's electrons, and both cameras, their frames on disk, made once a test run: copy
    them with `nights.drop`."""
    folder = Path(tempfile.mkdtemp(prefix="zemosaicd-pair-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sky = lone(sky_of(replace(first, cols=3 * first.cols, rows=3 * first.rows)))
    dimmer = replace(sky, electrons=APERTURE * sky.electrons)
    one = Camera(night=first, frames=simulate(first, folder, sky=sky))
    return sky, (one, Camera(night=second, frames=simulate(second, folder, sky=dimmer)))


def lone(sky: Sky) -> Sky:
    """Without every star that has a brighter one within 2.2 radii of an aperture."""
    ra, dec = np.radians(sky.ra_deg), np.radians(sky.dec_deg)
    there = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    kept: list[int] = []
    nearest = 2.2 * RADIUS_ARCSEC * sphere.ARCSEC_RAD
    for s in np.argsort(sky.mag, kind="stable"):
        if not kept or np.linalg.norm(there[kept] - there[s], axis=1).min() > nearest:
            kept.append(int(s))
    light = sky.electrons[kept]
    light *= np.minimum(1.0, BRIGHTEST_E / light.max(axis=1, keepdims=True))
    return replace(sky, ra_deg=sky.ra_deg[kept], dec_deg=sky.dec_deg[kept], mag=sky.mag[kept], electrons=light)


def zero_points(mosaic: Path, sky: Sky, both: tuple[Camera, Camera]) -> tuple[F64, F64]:
    """Light that the mosaic has of each bright, lone star in units of the truth, (n, C) and (m, C): of stars that only
    the first camera saw, and of those that only the second saw. Light is the sum of pixels by their solid angle."""
    with fits.open(mosaic) as hdus:
        picture, wcs = np.asarray(hdus[0].data, np.float64), WCS(hdus[0].header, naxis=2)
    x, y = wcs.all_world2pix(sky.ra_deg, sky.dec_deg, 0)
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))) * 3600
    certain, touched = ([c.sees(sky.ra_deg, sky.dec_deg, e) for c in both] for e in (EDGE_PX, -EDGE_PX))
    found: tuple[list[F64], list[F64]] = ([], [])
    for s in np.flatnonzero(sky.electrons[:, 1] > 0.3 * BRIGHTEST_E):
        mine = [i for i in (0, 1) if certain[i][s] and not touched[1 - i][s]]
        sums = light(picture, float(x[s]), float(y[s]), RADIUS_ARCSEC / scale) if mine else None
        if sums is not None:
            found[mine[0]].append(sums * scale**2 / sky.electrons[s])
    return np.array(found[0]), np.array(found[1])


def light(picture: F64, x: float, y: float, radius: float) -> F64 | None:
    """(C,) aperture sums over the ring outside; None where that has a gap."""
    half = round(radius + 8)
    left, top = round(x) - half, round(y) - half
    box = picture[:, max(0, top) : top + 2 * half + 1, max(0, left) : left + 2 * half + 1]
    if box.shape[1:] != (2 * half + 1, 2 * half + 1) or not np.isfinite(box).all():
        return None
    v, u = np.indices(box.shape[1:])
    away = np.hypot(u + left - x, v + top - y)
    inside, ring = away <= radius, (away > radius + 2) & (away <= radius + 7)
    return np.asarray(box[:, inside].sum(axis=1) - inside.sum() * np.median(box[:, ring], axis=1))


def holes(mosaic: Path, both: tuple[Camera, Camera], edge_px: float = 24.0) -> int:
    """How many pixels that lie so far inside a frame show nothing."""
    with fits.open(mosaic) as hdus:
        picture, wcs = np.asarray(hdus[0].data), WCS(hdus[0].header, naxis=2)
    y, x = (v.ravel() for v in np.nonzero(~np.isfinite(picture).all(axis=0)))
    ra, dec = wcs.all_pix2world(x, y, 0)
    return int(np.logical_or(*(c.sees(ra, dec, edge_px) for c in both)).sum())
