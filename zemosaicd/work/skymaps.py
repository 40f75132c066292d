"""Where a tile's pixels lie on a grid, by its own header: a plain TAN by a homography, anything else by astropy.

SIN, CAR, ZEA, TAN with SIP or TPV and the rest of FITS's projections; also coordinates that are not ICRS (galactic,
B1950). astropy is only imported for those: a tile that this program made needs none of it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.cards import Cards
from zemosaicd.core.wcs_cards import header_wcs
from zemosaicd.model import Grid, Reason, Rejected, Wcs
from zemosaicd.science.placement import Transform, homography_transform
from zemosaicd.science.projections import to_pixels, to_sky

Numbers = NDArray[np.float64]

_CARDS = re.compile(
    r"(WCSAXES|(CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|P[VS][12]_\d+|(A|B|AP|BP)_(ORDER|\d_\d)"
    r"|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX|EPOCH|NAXIS[12])"
)
OUTSIDE = 0.25
"""A sky position that the linear part of a WCS puts farther outside the image than this, of its size, is not in it:
a polynomial may fold it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyMap:
    """An image's own coordinates: `to_sky`, 0-based x, y -> unit vectors (3, n), and `to_image`, the way back (NaN
    where there is none). `wcs`: the plain TAN that it is, or None."""

    to_sky: Callable[[Numbers, Numbers], Numbers]
    to_image: Callable[[Numbers], tuple[Numbers, Numbers]]
    wcs: Wcs | None


def sky_map(cards: Cards, width: int, height: int) -> SkyMap:
    """The coordinates of an image from its cards. Raises Rejected if they give no position on the sky."""
    wcs = header_wcs(cards)
    return _plain(wcs) if wcs is not None else _by_astropy(cards, width, height)


def grid_to_image(sky: SkyMap, grid: Grid) -> Transform:
    """The exact transform from a grid's pixels to the image's."""
    if sky.wcs is not None and grid.wcs.projection == sphere.TAN:
        return homography_transform(sphere.homography(grid.wcs, sky.wcs))

    def transform(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        u, v = sky.to_image(to_sky(grid.wcs, x.ravel(), y.ravel()))
        return u.reshape(x.shape), v.reshape(x.shape)

    return transform


def image_to_grid(sky: SkyMap, grid: Grid) -> Transform:
    """The exact transform from the image's pixels to a grid's; NaN on the far side of the grid's tangent plane."""
    if sky.wcs is not None and grid.wcs.projection == sphere.TAN:
        return homography_transform(sphere.homography(sky.wcs, grid.wcs))

    def transform(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        u, v = to_pixels(grid.wcs, sky.to_sky(x.ravel(), y.ravel()))
        return u.reshape(x.shape), v.reshape(x.shape)

    return transform


def tangent_wcs(sky: SkyMap, width: int, height: int) -> Wcs:
    """The plain TAN that is nearest to an image in its middle: exact for a TAN, for planning otherwise."""
    if sky.wcs is not None:
        return sky.wcs
    x, y = (width - 1) / 2, (height - 1) / 2
    step = max(1.0, min(width, height) / 8)
    there = sky.to_sky(np.array([x, x - step, x + step, x, x]), np.array([y, y, y, y - step, y + step]))
    if not np.isfinite(there).all():
        raise _no_sky("its middle has no place on the sky")
    ra, dec = sphere.position(tuple(there[:, 0]))
    east, north, centre = (np.array(axis) for axis in sphere.tangent_basis(ra, dec))
    xi, eta = (np.degrees((axis @ there) / (centre @ there)) for axis in (east, north))
    cd = tuple(float(v[b] - v[a]) / (2 * step) for v in (xi, eta) for a, b in ((1, 2), (3, 4)))
    return Wcs(ra_deg=ra, dec_deg=dec, x_px=x, y_px=y, cd=(cd[0], cd[1], cd[2], cd[3]))


def _plain(wcs: Wcs) -> SkyMap:
    return SkyMap(
        to_sky=lambda x, y: to_sky(wcs, x, y), to_image=lambda directions: to_pixels(wcs, directions), wcs=wcs
    )


def _no_sky(message: str) -> Rejected:
    return Rejected(Reason(rule="tile.wcs", message=f"no position on the sky: {message}"))


# --- anything else -------------------------------------------------------------------------------------------------


def _by_astropy(cards: Cards, width: int, height: int) -> SkyMap:
    from astropy.io import fits
    from astropy.wcs import WCS

    header = fits.Header()
    for key, value in cards.items():
        if _CARDS.fullmatch(key) and isinstance(value, bool | int | float | str):
            header[key] = value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(header, naxis=2)
    except Exception as error:  # noqa: BLE001 - astropy and wcslib raise many kinds for a header that is wrong
        raise _no_sky(str(error).strip().splitlines()[0][:200]) from None
    if not wcs.has_celestial or wcs.wcs.lng != 0:
        raise _no_sky("CTYPE1 and CTYPE2 are not longitude and latitude")
    turn, turn_back = _frame_turns(wcs)

    def to_sky(x: Numbers, y: Numbers) -> Numbers:
        longitude, latitude = (np.radians(v) for v in wcs.all_pix2world(x, y, 0))
        c = np.cos(latitude)
        return turn(np.stack([c * np.cos(longitude), c * np.sin(longitude), np.sin(latitude)]))

    def to_image(directions: Numbers) -> tuple[Numbers, Numbers]:
        x, y, z = turn_back(directions)
        world = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y)))
        return _to_pixels(wcs, world, width, height)

    return SkyMap(to_sky=to_sky, to_image=to_image, wcs=None)


def _to_pixels(wcs: Any, world: tuple[Numbers, Numbers], width: int, height: int) -> tuple[Numbers, Numbers]:
    """0-based pixels of positions in the WCS's own frame, degrees; NaN far outside the image."""
    px, py = wcs.wcs_world2pix(*world, 0)
    beyond = OUTSIDE * max(width, height) + 64
    with np.errstate(invalid="ignore"):
        near = (px > -beyond) & (px < width + beyond) & (py > -beyond) & (py < height + beyond)
    near &= _in_front(wcs, world)
    u, v = np.full(px.shape, np.nan), np.full(px.shape, np.nan)
    if near.any():
        u[near], v[near] = wcs.all_world2pix(world[0][near], world[1][near], 0, tolerance=1e-4, quiet=True)
    return u, v


def _in_front(wcs: Any, world: tuple[Numbers, Numbers]) -> NDArray[np.bool_]:
    """Some zenithal projections fold the far side of the sky onto the near one: only what lies within 90 degrees of
    their pole, which is the reference point, can be in the image."""
    if wcs.wcs.ctype[0][-3:] not in ("SIN", "TAN", "TPV", "SIP"):
        return np.ones(world[0].shape, np.bool_)
    longitude, latitude = np.radians(world[0]), np.radians(world[1])
    ra, dec = (math.radians(float(v)) for v in wcs.wcs.crval)
    return np.asarray(
        np.sin(latitude) * math.sin(dec) + np.cos(latitude) * math.cos(dec) * np.cos(longitude - ra) > 0.0
    )


def _frame_turns(wcs: Any) -> tuple[Callable[[Numbers], Numbers], Callable[[Numbers], Numbers]]:
    """From the WCS's frame to ICRS and back, for unit vectors (3, n): nothing for ICRS and for J2000 (0.03 arcsec)."""
    system = str(wcs.wcs.radesys).strip().upper() or ("FK4" if wcs.wcs.equinox < 1984.0 else "ICRS")
    j2000 = not wcs.wcs.equinox > 0.0 or abs(wcs.wcs.equinox - 2000.0) < 0.01
    if wcs.wcs.lngtyp.strip() == "RA" and (system == "ICRS" or (system == "FK5" and j2000)):
        return (lambda v: v), (lambda v: v)
    from astropy.coordinates import ICRS, CartesianRepresentation, SkyCoord
    from astropy.wcs.utils import wcs_to_celestial_frame

    try:
        frame = wcs_to_celestial_frame(wcs)
    except ValueError as error:
        raise _no_sky(str(error)[:200]) from None

    def turned(source: Any, target: Any) -> Callable[[Numbers], Numbers]:
        def turn(v: Numbers) -> Numbers:
            there = SkyCoord(CartesianRepresentation(*v), frame=source).transform_to(target).cartesian.xyz.value
            return np.asarray(there / np.linalg.norm(there, axis=0))

        return turn

    return turned(frame, ICRS()), turned(ICRS(), frame)
