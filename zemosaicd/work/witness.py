"""Injected stars: what a tile's own stack makes of light that is known (the certificate's proof of place and flux).

A few small windows of the tile are stacked twice, as the frames are and with a star added to every raw frame where the
plan says that the sky lies; what differs is the star. Nothing of it reaches the tile. It is as bright on each frame as
that frame's levels take a star to be: what is tested is warp, rejection and mean, not transparency, which the overlaps
and the frames' own stars tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import FramePlan
from zemosaicd.science.distortion import recorded
from zemosaicd.science.injection import Light, found, spread_over, summary
from zemosaicd.work.members import Member, Stack

F64 = NDArray[np.float64]

BRIGHTNESS = 150.0
"""Flux in the noise of one frame's pixel, times the FWHM in px: a star of about signal to noise 80 a frame."""
FALLBACK_FWHM_PX = 2.5
SMALLEST_FWHM_PX = 1.5


def recovered_stars(stack: Stack, frames: Sequence[FramePlan], reference: FramePlan) -> dict[str, object]:
    """What came back of the stars, see `science.injection.summary`; empty where no window was wholly seen.

    They are as sharp as the frames are in the median, all of them: what is asked is what the stack does, not seeing.
    """
    grid = stack.spec.grid
    grid_arcsec, reference_arcsec = sphere.scale_arcsec(grid.wcs), sphere.scale_arcsec(reference.wcs)
    fwhm_arcsec = _fwhm_arcsec(frames)
    fwhm_px = fwhm_arcsec / grid_arcsec
    half = math.ceil(4.0 * fwhm_px) + 2
    wanted = BRIGHTNESS * np.array(reference.noise_adu) * fwhm_arcsec / reference_arcsec
    flux, offset = [], []
    for x, y in spread_over(grid.width, grid.height, half + 1.0, stack.spec.tile):
        left, top = round(x) - half, round(y) - half
        window = (top, 2 * half + 1), (left, 2 * half + 1)
        before = stack.window(*window)
        if not (before.count > 0).all():
            continue
        lit = []
        for member, frame in zip(stack.members, frames, strict=True):
            scale_arcsec = sphere.scale_arcsec(frame.wcs)
            light = wanted * (reference_arcsec / scale_arcsec) ** 2
            lit.append(replace(member, star=_star(member, (x, y), fwhm_arcsec / scale_arcsec, light)))
        after = replace(stack, members=lit).window(*window)
        if (after.count > 0).all():
            there, off = found(after.mean - before.mean, x - left, y - top, fwhm_px)
            flux.append(there / (wanted * (reference_arcsec / grid_arcsec) ** 2))
            offset.append(off)
    return summary(flux, offset) if flux else {}


def _fwhm_arcsec(frames: Sequence[FramePlan]) -> float:
    """Median FWHM of the frames, at least what a star needs to be sampled."""
    sizes = [max(f.fwhm_px, SMALLEST_FWHM_PX) * sphere.scale_arcsec(f.wcs) for f in frames if math.isfinite(f.fwhm_px)]
    return float(np.median(sizes)) if sizes else FALLBACK_FWHM_PX * sphere.scale_arcsec(frames[0].wcs)


def _star(member: Member, place: tuple[float, float], fwhm_px: float, light_adu: F64) -> Light:
    """A star of light_adu (C,) where the grid's `place` lies on a frame, as its levels say that a frame dims it."""
    x, y = sphere.apply_plane(member.matrix, *place)
    if member.distortion is not None:
        x, y = (float(v[0]) for v in recorded(member.distortion, np.array([x]), np.array([y])))
    levels = member.levels
    r2 = ((x - levels.middle[0]) ** 2 + (y - levels.middle[1]) ** 2) / levels.radius**2
    dimmed = 1.0 + levels.illumination @ np.array([r2, r2**2, r2**3])
    return Light(x=x, y=y, fwhm_px=fwhm_px, flux_adu=tuple(float(v) for v in light_adu * dimmed / levels.gain))
