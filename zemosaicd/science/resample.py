"""One source -> one band of a grid: the single resampler of the engine.

`resample_band` takes any rows of an output grid from any source that a homography ties to it, with the distortion of
the source's camera on top of it where that is known: a raw CFA plane (demosaic and warp in one step, each colour from
its own lattice only, so no colour borrows from another), a mono plane, or an image of several channels. Only the source
rows named by `source_rows_needed` have to be in memory; the result has the same bits whichever band, window or slab it
comes from (M5).

Kernels (measured against drizzle, Lanczos, Malvar and bilinear): Keys a = -1 for red and blue, Catmull-Rom for green
and for whole pixels. Red and blue flux reads 1.4 % high against green inside small apertures (the kernel's ringing, the
same for every star colour).

Values are surface brightness: ADU a source pixel. A change of scale rescales nothing here; who needs flux a grid pixel
multiplies by the ratio of the pixels' solid angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from zemosaicd.model import Distortion
from zemosaicd.science.distortion import lens_of
from zemosaicd.science.kernels import (
    BAYER_REACH,
    CUBIC_REACH,
    Flags,
    Pixels,
    keys_table,
    warp_bayer,
    warp_pixels,
)
from zemosaicd.sphere import Matrix, apply

RED_BLUE_KEYS = -1.0
CATMULL_ROM = -0.5
RED_SITE = {"RGGB": (0, 0), "GRBG": (1, 0), "GBRG": (0, 1), "BGGR": (1, 1)}
"""Bayer pattern of array [0, 0], [0, 1], [1, 0], [1, 1] -> (x, y) of the red photosite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Pixels and how to read them.

    `pixels`: float32, (h, W) for a CFA or mono plane, (h, W, C) for channels; C-contiguous rows `row0` to `row0 + h` of
    an image of `height` rows (0: all of it is here, row0 is 0). `bayer`: a key of RED_SITE, or "" for no CFA; it names
    the whole image's first cell whatever `row0` is. `valid`: bool (h, W), True where the pixel may be used; None: all.
    A pixel that is not finite is never used either. `distortion`: of the camera that recorded the whole image.
    """

    pixels: Pixels
    bayer: str = ""
    row0: int = 0
    height: int = 0
    valid: Flags | None = None
    distortion: Distortion | None = None

    def __post_init__(self) -> None:
        if self.bayer and (self.bayer not in RED_SITE or self.pixels.ndim != 2):
            raise ValueError(f"no CFA plane: pattern {self.bayer!r}, {self.pixels.ndim} dimensions")
        if self.pixels.ndim not in (2, 3) or self.pixels.dtype != np.float32:
            raise ValueError(f"source pixels must be float32 (h, W) or (h, W, C), not {self.pixels.dtype}")
        if self.valid is not None and self.valid.shape != self.pixels.shape[:2]:
            raise ValueError(f"validity mask {self.valid.shape} does not fit pixels {self.pixels.shape}")
        if self.row0 < 0 or self.row0 + self.pixels.shape[0] > self.full_height:
            raise ValueError(
                f"rows {self.row0}+{self.pixels.shape[0]} do not lie in an image of {self.full_height} rows"
            )

    @property
    def full_height(self) -> int:
        """Rows of the whole image."""
        return self.height or self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        """Channels of what comes out: 3 for a CFA plane."""
        if self.bayer:
            return 3
        return int(self.pixels.shape[2]) if self.pixels.ndim == 3 else 1

    def usable(self) -> Pixels:
        """The pixels with NaN where `valid` is False (a copy then); NaN stops at the kernels, which see it (V3)."""
        pixels = np.ascontiguousarray(self.pixels)
        if self.valid is None or bool(self.valid.all()):
            return pixels
        valid = self.valid if pixels.ndim == 2 else self.valid[:, :, np.newaxis]
        return np.where(valid, pixels, np.float32(np.nan))


def resample_band(
    source: Source,
    matrix: Matrix,
    row0: int,
    rows: int,
    width: int,
    *,
    col0: int = 0,
    into: tuple[Pixels, Flags] | None = None,
) -> tuple[Pixels, Flags]:
    """Rows `row0` to `row0 + rows`, columns `col0` to `col0 + width` of a grid, from one source.

    `matrix` takes 0-based (x, y) of the grid to 0-based (x, y) of the source image (`sphere.homography(grid, source)`),
    which the source's distortion then bends; its w is positive where the source can be seen. Returns values float32
    (rows, width, C) and seen bool (rows, width), or fills and returns `into` (C-contiguous, of those shapes). Where
    seen is False, the value is 0 and means nothing.

    Footprint: a CFA sample is seen when its position lies at least 4 px inside the image on every side, so that all
    taps of all colours exist and the three colours share one footprint (V1, V8). Otherwise all 16 taps must exist; a
    position on a pixel centre (within 1/2048 px) needs that pixel alone and takes its value unchanged, so tiles on one
    lattice are placed exactly. No edge is ever extended, and a sample with an invalid tap is not seen (V2, V3).
    ValueError if the slab lacks rows that the band needs.
    """
    _check_slab(source, matrix, row0, rows, width, col0)
    values, seen = into or (
        np.empty((rows, width, source.channels), np.float32),
        np.empty((rows, width), np.bool_),
    )
    if values.shape != (rows, width, source.channels) or seen.shape != (rows, width):
        raise ValueError(f"cannot put a band {(rows, width, source.channels)} into {values.shape} and {seen.shape}")
    pixels, m, lens = source.usable(), np.array(matrix, np.float64), lens_of(source.distortion)
    if source.bayer:
        red, tables = RED_SITE[source.bayer], (_table(RED_BLUE_KEYS), _table(CATMULL_ROM))
        warp_bayer(pixels, source.row0, source.full_height, red, m, lens, row0, col0, *tables, values, seen)
    else:
        cube = pixels.reshape(pixels.shape[0], source.width, source.channels)
        warp_pixels(cube, source.row0, m, lens, row0, col0, _table(CATMULL_ROM), values, seen)
    return values, seen


def source_rows_needed(
    matrix: Matrix,
    row0: int,
    rows: int,
    width: int,
    source_height: int,
    source_width: int,
    *,
    bayer: str = "",
    distortion: Distortion | None = None,
    col0: int = 0,
) -> tuple[int, int]:
    """First and last + 1 source row that a band of the grid needs, kernel halo included; (0, 0) if it needs none.

    For a CFA both are even (or the image's end). A homography keeps lines straight, so the band's outline, cut to the
    part in front of the tangent plane and to the source's columns, holds the extremes; a distortion moves them by no
    more than its reach.
    """
    left, right, top, bottom = float(col0), col0 + width - 1.0, float(row0), row0 + rows - 1.0
    outline = [apply(matrix, x, y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
    shift = distortion.reach_px if distortion else 0.0
    left_of, right_of = 2.0 + shift, source_width + 1.0 + shift
    for keeps in (lambda p: p[2] - 1e-9, lambda p: p[0] + left_of * p[2], lambda p: right_of * p[2] - p[0]):
        outline = _cut(outline, keeps)
    if not outline or rows <= 0 or width <= 0:
        return 0, 0
    heights = [y / w for _, y, w in outline]
    halo = (BAYER_REACH if bayer else CUBIC_REACH) + 1 + shift
    first, last = (
        max(0.0, math.floor(min(heights) - halo)),
        min(float(source_height), math.ceil(max(heights) + halo) + 1.0),
    )
    if first >= last:
        return 0, 0
    if bayer:
        return int(first) // 2 * 2, min(source_height, (int(last) + 1) // 2 * 2)
    return int(first), int(last)


Point = tuple[float, float, float]


def _cut(outline: list[Point], keeps: Callable[[Point], float]) -> list[Point]:
    """A polygon (homogeneous coordinates) cut to where the linear form `keeps` is positive (Sutherland & Hodgman)."""
    cut: list[Point] = []
    for a, b in zip(outline, outline[1:] + outline[:1], strict=True):
        inside_a, inside_b = keeps(a), keeps(b)
        if inside_a > 0.0:
            cut.append(a)
        if (inside_a > 0.0) != (inside_b > 0.0):
            t = inside_a / (inside_a - inside_b)
            cut.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2])))
    return cut


def _check_slab(source: Source, matrix: Matrix, row0: int, rows: int, width: int, col0: int) -> None:
    height = source.full_height
    if source.pixels.shape[0] == height:
        return
    first, last = source_rows_needed(
        matrix, row0, rows, width, height, source.width, bayer=source.bayer, distortion=source.distortion, col0=col0
    )
    if first < last and (first < source.row0 or last > source.row0 + source.pixels.shape[0]):
        have = (source.row0, source.row0 + source.pixels.shape[0])
        raise ValueError(f"the band needs source rows {(first, last)}, the slab holds {have}")


@cache
def _table(a: float) -> Pixels:
    table = keys_table(a)
    table.setflags(write=False)
    return table
