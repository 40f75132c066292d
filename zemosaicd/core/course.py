"""The course of a telescope over a night, as headers tell it before any frame is solved: does it sweep (D2)?

Pure. A smart telescope in mosaic mode goes on after a frame or a few and comes round again and again. Then batches in
time order each cover the field, and mode SDS makes of them what classic makes of pointings. What says so are the cards
of pointing, scale and time: a frame counts as a square of its own area, since no card tells how it was turned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zemosaicd import sphere
from zemosaicd.core.cells import Point
from zemosaicd.core.sweeps import RASTER, in_batches, points_in
from zemosaicd.model import FrameFacts, Wcs

STILL = 0.1
"""A telescope that moves by less than this part of a frame's short side dithers, it does not go on."""
LONGEST_STAY = 4.0
"""Frames in a row at one pointing, in the mean: a night that dwells for longer is one of pointings."""
LEAST_FIELDS = 2.0
"""The whole field in fields of a frame."""
LEAST_LOOPS = 3
"""Batches that each cover the field, and frames that must see a point for it to be of the field. Fewer mega tiles than
that cannot judge one another (science.outliers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How the telescope went: frames in a row at a pointing, the field in frames' fields, how often it was covered.

    `unknown`: why headers do not tell.
    """

    stay: float = math.inf
    fields: float = 0.0
    loops: int = 0
    unknown: str = ""

    @property
    def sweeps(self) -> bool:
        """Whether it is a sweep."""
        short, wide = self.stay <= LONGEST_STAY, self.fields >= LEAST_FIELDS
        return short and wide and self.loops >= LEAST_LOOPS and not self.unknown

    def __str__(self) -> str:
        if self.unknown:
            return self.unknown
        if self.stay > LONGEST_STAY:
            return f"{self.stay:.1f} frames in a row at a pointing"
        return f"{self.stay:.1f} frames in a row at a pointing, {self.fields:.1f} fields, covered {self.loops} times"


def course_of(frames: Sequence[FrameFacts]) -> Course:
    """The course of raw frames in any order."""
    if len({_kind(f) for f in frames}) > 1:
        return Course(unknown="frames of several kinds")
    known = [(f.observed_s, f.ra_deg, f.dec_deg, f.scale_arcsec) for f in frames if f.scale_arcsec > 0]
    told = sorted((t, a, d, s) for t, a, d, s in known if t is not None and a is not None and d is not None)
    if not told or len(told) < len(frames):
        return Course(unknown="not all headers tell pointing, scale and time")
    side_deg = told[0][3] / 3600 * math.sqrt(frames[0].width * frames[0].height)
    short = math.sqrt(min(frames[0].width, frames[0].height) / max(frames[0].width, frames[0].height))
    plane = Wcs(ra_deg=told[0][1], dec_deg=told[0][2], x_px=0.0, y_px=0.0, cd=(-side_deg, 0.0, 0.0, side_deg))
    places = [sphere.sky_to_pixel(plane, sphere.direction(ra, dec)) for _, ra, dec, _ in told]
    seen = [p for p in places if p is not None]
    if len(seen) < len(places):
        return Course(unknown="pointings all over the sky")
    stay = len(seen) / _stays(seen, STILL * short)
    if stay > LONGEST_STAY:
        return Course(stay=stay)
    fields, loops = _covered(seen)
    return Course(stay=stay, fields=fields, loops=loops)


def _kind(f: FrameFacts) -> tuple[object, ...]:
    """What must be alike for frames to mix in a mega tile (C3), as far as headers tell."""
    return f.filter_name, f.sensor, f.exposure_s, f.gain, f.bayer, f.channels


def _stays(places: Sequence[Point], still: float) -> int:
    """How often the telescope came to rest: anew wherever it is farther than `still` from where it last began to."""
    stays, at = 0, (math.inf, math.inf)
    for place in places:
        if not math.dist(place, at) <= still:
            stays, at = stays + 1, place
    return stays


def _covered(places: Sequence[Point]) -> tuple[float, int]:
    """The area that is seen as often as it must be by unit squares at all places, and how many batches in their order
    cover it."""
    xs, ys = zip(*places, strict=True)
    x0, y0 = min(xs) - 0.5, min(ys) - 0.5
    width, height = max(xs) + 0.5 - x0, max(ys) + 0.5 - y0
    scale = RASTER / width, RASTER / height
    masks: dict[tuple[int, int], int] = {}
    seen, often = [], [0] * LEAST_LOOPS
    for x, y in places:
        at = round((x - x0) * scale[0]), round((y - y0) * scale[1])
        if at not in masks:
            half_x, half_y = scale[0] / 2, scale[1] / 2
            corners = [(at[0] + i * half_x, at[1] + j * half_y) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            masks[at] = points_in(corners, (0, 0, RASTER, RASTER))
        seen.append(masks[at])
        for level in range(LEAST_LOOPS - 1, 0, -1):
            often[level] |= often[level - 1] & masks[at]
        often[0] |= masks[at]
    field = often[-1]  # where it came again and again: one stray pointing is no part of it
    return field.bit_count() / RASTER**2 * width * height, len(in_batches([mask & field for mask in seen]))
