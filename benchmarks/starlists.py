"""Star lists of a night with known truth: what detection would have given, without rendering a pixel.

A made-up field of stars, their brightness by a power law, is seen by frames that dither, turn, flip, change scale and
look through a lens and an atmosphere; every centroid has the noise of its star's SNR. Each frame gets the solution that
a catalogue with errors gives it: a linear fit to its bright stars, bent by whatever the lens does. Pixels are 0-based.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Distortion, Wcs
from zemosaicd.science.distortion import ideal, recorded
from zemosaicd.science.merging import FrameStars
from zemosaicd.science.stars import StarList

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PLACE = (210.8, 54.35)
STARS_A_FRAME = 260
"""Of any brightness; a list holds the brightest of those that were detected."""
ANCHORS_A_FRAME = 35
DETECTED = 0.92
REFRACTION = 2.83e-4
"""Refraction at 45 degrees of zenith distance, radians."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListNight:
    """A night of star lists. Angles in degrees, lengths in px; the second half begins with the flip.

    `stars`: longest list. `rough`: real scatter (SNR / 6 and a floor of 0.1 px an axis on every star), else what a
    simulator shows (a floor of 0.01 px). `turn_deg`: field rotation over the night, and 0.05 to and fro. `scale_step`:
    relative change of scale in mid-night. `corner_px`: distortion outward in the corners, its axis a tenth of the half
    diagonal beside the sensor's centre. `zenith_deg`: zenith distance at the start and the end (None: no atmosphere),
    while the vertical turns by 60 against the sky. `hot`: bright detections that stay on the sensor. `panels`: of a
    square mosaic, one after the other. `catalogue_arcsec`: errors of the catalogue an axis.
    `field` makes the sky and its catalogue, `seed` the frames.
    """

    frames: int = 50
    stars: int = 200
    rough: bool = False
    dither_px: float = 8.0
    turn_deg: float = 0.0
    flip: bool = False
    scale_step: float = 0.0
    corner_px: float = 0.0
    zenith_deg: tuple[float, float] | None = None
    hot: int = 0
    panels: int = 1
    mirrored: bool = False
    width: int = 1080
    height: int = 1920
    scale_arcsec: float = 2.37
    catalogue_arcsec: float = 0.5
    camera: str = "a"
    field: int = 1
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a frame looks: the WCS of ideal pixels, and the lens."""

    wcs: Wcs
    distortion: Distortion | None

    def sky(self, x: F64, y: F64) -> F64:
        """Unit vectors (n, 3) of recorded pixels."""
        if self.distortion is not None:
            x, y = ideal(self.distortion, x, y)
        v = np.stack([x, y, np.ones_like(x)], axis=1) @ np.array(sphere.sky_matrix(self.wcs)).reshape(3, 3).T
        return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))

    def pixels(self, v: F64) -> tuple[F64, F64]:
        """Recorded pixels (n,) of directions; NaN behind the camera and far outside."""
        p = v @ np.linalg.inv(np.array(sphere.sky_matrix(self.wcs)).reshape(3, 3)).T
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = (np.where(p[:, 2] > 0, p[:, i] / p[:, 2], np.nan) for i in (0, 1))
        return (x, y) if self.distortion is None else recorded(self.distortion, x, y)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeLists:
    """A night's frames with their first solutions, the truth, and the catalogue's anchors (degrees)."""

    night: ListNight
    frames: list[FrameStars]
    truth: list[Place]
    anchor_ra_deg: F64
    anchor_dec_deg: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """The sky: directions (n, 3), SNR at full transparency (n,), indices and catalogue places (k, 3) of known stars."""

    sky: F64
    snr: F64
    known: I64
    listed: F64


def make(night: ListNight) -> MadeLists:
    """The night, a function of its values alone."""
    field, rng = _field(night), np.random.default_rng([night.seed, 2])
    hot = 20 + rng.random((night.hot, 2)) * (night.width - 40, night.height - 40)
    frames, truth = [], []
    for i in range(night.frames):
        place = _place(night, i, rng)
        frames.append(_seen(night, field, place, hot, rng))
        truth.append(place)
    ra, dec = np.arctan2(field.listed[:, 1], field.listed[:, 0]), np.arcsin(field.listed[:, 2])
    return MadeLists(
        night=night, frames=frames, truth=truth, anchor_ra_deg=np.degrees(ra) % 360, anchor_dec_deg=np.degrees(dec)
    )


def pair_errors(made: MadeLists, found: Sequence[Place | None], references: Sequence[int] = (0,)) -> F64:
    """(median, worst) px, a row a pair: a frame's transform to a reference on a 9 x 15 grid of the common area."""
    width, height = made.night.width, made.night.height
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 15)))
    rows = []
    for r in references:
        for i, (true, place) in enumerate(zip(made.truth, found, strict=True)):
            target = found[r]
            if i == r or place is None or target is None:
                continue
            tx, ty = made.truth[r].pixels(true.sky(x, y))
            inside = (tx >= 0) & (ty >= 0) & (tx <= width - 1) & (ty <= height - 1)
            u, v = target.pixels(place.sky(x, y))
            off = np.hypot(u - tx, v - ty)[inside]
            if len(off):
                rows.append((float(np.median(off)), float(off.max())))
    return np.array(rows).reshape(-1, 2)


def _field(night: ListNight) -> Field:
    rng = np.random.default_rng([night.field, 1])
    across = 1 + 0.8 * (math.isqrt(night.panels) - 1)
    pixel = math.radians(night.scale_arcsec / 3600)
    half = (math.hypot(night.width, night.height) / 2 * across + 150) * pixel
    count = rng.poisson(STARS_A_FRAME * math.pi * half**2 / (night.width * night.height * pixel**2))
    r, angle = half * np.sqrt(rng.random(count)), 2 * math.pi * rng.random(count)
    east, north, centre = (np.array(b) for b in sphere.tangent_basis(*PLACE))
    sky = _unit(centre + np.outer(r * np.cos(angle), east) + np.outer(r * np.sin(angle), north))
    rank = STARS_A_FRAME * (rng.permutation(count) + 0.5) / count
    known = np.flatnonzero(rank < ANCHORS_A_FRAME)
    off = rng.normal(0, night.catalogue_arcsec * sphere.ARCSEC_RAD, (2, len(known)))
    listed = _unit(sky[known] + np.outer(off[0], east) + np.outer(off[1], north))
    return Field(sky=sky, snr=np.minimum(15 * (200 / rank) ** 1.14, 2000.0), known=known, listed=listed)


def _place(night: ListNight, i: int, rng: np.random.Generator) -> Place:
    """The truth of frame `i`."""
    time, side = i / max(1, night.frames - 1), math.isqrt(night.panels)
    late = time >= 0.5
    row, column = divmod(i * night.panels // night.frames, side)
    x = (column - (side - 1) / 2) * 0.8 * night.width + rng.normal(0, night.dither_px)
    y = (row - (side - 1) / 2) * 0.8 * night.height + rng.normal(0, night.dither_px)
    s = night.scale_arcsec / 3600
    base = Wcs(ra_deg=PLACE[0], dec_deg=PLACE[1], x_px=0.0, y_px=0.0, cd=(-s, 0.0, 0.0, s))
    ra, dec = sphere.position(sphere.pixel_to_sky(base, x, y))
    turn = math.radians(night.turn_deg * time + rng.normal(0, 0.05) + 180 * (night.flip and late))
    c, n = (s * (1 + night.scale_step * late) * f for f in (math.cos(turn), math.sin(turn)))
    side_x = -1.0 if night.mirrored else 1.0
    cd = np.array([[-c * side_x, n], [n * side_x, c]])
    if night.zenith_deg is not None:
        z = math.radians(night.zenith_deg[0] + (night.zenith_deg[1] - night.zenith_deg[0]) * time)
        up = np.array([math.sin(math.radians(60 * time - 30)), math.cos(math.radians(60 * time - 30))])
        cd = np.linalg.inv(np.eye(2) - REFRACTION * (np.eye(2) + math.tan(z) ** 2 * np.outer(up, up))) @ cd
    wcs = Wcs(
        ra_deg=ra, dec_deg=dec, x_px=(night.width - 1) / 2, y_px=(night.height - 1) / 2,
        cd=(float(cd[0, 0]), float(cd[0, 1]), float(cd[1, 0]), float(cd[1, 1])),
    )  # fmt: skip
    return Place(wcs=wcs, distortion=_lens(night))


def _lens(night: ListNight) -> Distortion | None:
    k, a = night.corner_px, -0.1 * night.corner_px
    if not k:
        return None
    return Distortion(
        width=night.width, height=night.height,
        x_px=(3 * a, 0.0, a, k, 0.0, k, 0.0), y_px=(0.0, 2 * a, 0.0, 0.0, k, 0.0, k),
    )  # fmt: skip


def _seen(night: ListNight, field: Field, place: Place, hot: F64, rng: np.random.Generator) -> FrameStars:
    """A frame's star list, brightest first, and its first solution."""
    x, y = place.pixels(field.sky)
    with np.errstate(invalid="ignore"):
        inside = (x > 8) & (y > 8) & (x < night.width - 8) & (y < night.height - 8)
    chosen = np.flatnonzero(inside & (rng.random(len(x)) < DETECTED))
    light = field.snr[chosen] * rng.uniform(0.6, 1.0) * np.exp(rng.normal(0, 0.05, len(chosen)))
    order = np.argsort(-light, kind="stable")[: night.stars]
    chosen, snr = chosen[order], light[order] / (6 if night.rough else 1)
    sigma = np.hypot(0.1 if night.rough else 0.01, 1.2 / snr)
    x, y = x[chosen] + rng.normal(0, sigma), y[chosen] + rng.normal(0, sigma)
    wcs = _first_solution(night, field, place, chosen, x, y)
    on = rng.random(len(hot)) < 0.9
    still = hot[on] + rng.normal(0, 0.08, (int(on.sum()), 2))
    snr = np.concatenate([np.full(len(still), 2 * snr.max()), snr])
    light = snr.astype(np.float32)
    x, y = np.concatenate([still[:, 0], x]), np.concatenate([still[:, 1], y])
    stars = StarList(x=x, y=y, flux=light, snr=light, fwhm_px=0 * light + 3, ellipticity=0 * light)
    return FrameStars(stars=stars, wcs=wcs, width=night.width, height=night.height, camera=night.camera)


def _first_solution(night: ListNight, field: Field, place: Place, chosen: I64, x: F64, y: F64) -> Wcs:
    """The linear fit of the frame's detections to the catalogue."""
    _, mine, theirs = np.intersect1d(chosen, field.known, return_indices=True)
    ra, dec = place.wcs.ra_deg, place.wcs.dec_deg
    xi, eta, depth = np.array(sphere.tangent_basis(ra, dec)) @ field.listed[theirs].T
    x0, y0 = (night.width - 1) / 2, (night.height - 1) / 2
    design = np.stack([x[mine] - x0, y[mine] - y0, np.ones(len(mine))], axis=1)
    fit = np.linalg.lstsq(design, np.degrees(np.stack([xi / depth, eta / depth], axis=1)), rcond=None)[0]
    cd = fit[:2].T
    shift = np.linalg.solve(cd, fit[2])
    return Wcs(
        ra_deg=ra, dec_deg=dec, x_px=x0 - float(shift[0]), y_px=y0 - float(shift[1]),
        cd=(float(cd[0, 0]), float(cd[0, 1]), float(cd[1, 0]), float(cd[1, 1])),
    )  # fmt: skip


def _unit(v: F64) -> F64:
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))
