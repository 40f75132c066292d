"""One source -> one window of a grid: the single resampler of the engine.

`resample` takes any window of an output grid from any source that a homography ties to it: a raw CFA plane (demosaic
and warp in one step, each colour from its own lattice only, so no colour borrows from another), a mono plane, or an
image of several channels. Only the box of the source named by `source_box` has to be in memory; the result has the same
bits whichever window or slab it comes from (M5).

Values are surface brightness: ADU a source pixel. A change of scale rescales nothing here; who needs flux a grid pixel
multiplies by the ratio of the pixels' solid angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from zemosaicd.model import Distortion
from zemosaicd.science.distortion import lens_of
from zemosaicd.science.kernels import (
    PIXEL_REACH,
    WIDE_REACH,
    Box,
    Flags,
    Pixels,
    keys_table,
    kriging_table,
    lanczos_table,
    warp_bayer,
    warp_planes,
)
from zemosaicd.science.lattices import Levels, level_slab
from zemosaicd.sphere import Matrix, apply

RED_SITE = {"RGGB": (0, 0), "GRBG": (1, 0), "GBRG": (0, 1), "BGGR": (1, 1)}
"""Bayer pattern of array [0, 0], [0, 1], [1, 0], [1, 1] -> (x, y) of the red photosite."""
NOTHING: Box = (0, 0, 0, 0)
CATMULL_ROM = -0.5


class Kernel(StrEnum):
    """How values between pixels are found.

    KRIGING: 6x6 taps that predict best between samples of a star image; on the 2-px lattices of red and blue tuned to
    the frames' sharpness, so that flux in a small aperture is green's (`curvature_of`). LANCZOS3: 6x6 taps. CATMULL_ROM
    (Keys a = -0.5): 4x4 taps, the quickest and smoothest. At FWHM 3.2 px they differ from green by 0.2, -0.7 and 0.3 %.
    """

    KRIGING = "kriging"
    LANCZOS3 = "lanczos3"
    CATMULL_ROM = "catmull_rom"


NOISE_GAIN = {Kernel.KRIGING: 0.8, Kernel.LANCZOS3: 0.8, Kernel.CATMULL_ROM: 0.66}
"""Variance of an interpolated sample over that of a pixel, mean over the phases in two dimensions."""
RED_BLUE_FWHM = 1.45
"""In steps of 2 px: stars of 2.9 px."""
RED_BLUE_CURVATURES = ((1.9, 0.14), (2.07, 0.105), (2.39, 0.025), (2.82, -0.03), (3.2, -0.05))
"""FWHM of the frames as Phase 1 measures it (median, px), and the curvature with which red and blue stars on the stack
come nearest to green's flux: it lies between what circles of 1.8 times that FWHM want, and of 1.8 times the FWHM that
the light has. On simulated nights of 50 frames the latter say 0.2 % too much at 3.2 px, 0.6 at 2.8 and 1.2 at 2.4, the
former 1 % too little; one curvature for all, -0.05, had 1.1 % too much at 2.8 px, 3.5 at 2.4 and 6.6 at 2.1."""
USUAL_CURVATURE = -0.05
"""Of frames whose FWHM nobody knows."""
GREEN_FWHM, PLANE_FWHM = 2.05, 2.9
"""The same stars in steps of sqrt 2 and of 1 px, which are fine enough to need no sharpening."""


def curvature_of(fwhm_px: NDArray[np.float64]) -> float:
    """Curvature of the kriging kernel for red and blue of frames of these FWHM (n,), px, NaN where unknown: that of the
    median, in steps of 1/200, each of which is a table."""
    known = fwhm_px[np.isfinite(fwhm_px)]
    if not len(known):
        return USUAL_CURVATURE
    return round(200.0 * float(np.interp(np.median(known), *np.array(RED_BLUE_CURVATURES).T))) / 200.0


@cache
def _tables(kernel: Kernel, curvature: float) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """(4 taps; 6 taps for red and blue, for green, for whole pixels), the latter empty where there are none."""
    narrow = keys_table(CATMULL_ROM)
    match kernel:
        case Kernel.KRIGING:
            red_blue = kriging_table(RED_BLUE_FWHM, curvature)
            green, plane = kriging_table(GREEN_FWHM, 0.0), kriging_table(PLANE_FWHM, 0.0)
        case Kernel.LANCZOS3:
            red_blue = green = plane = lanczos_table()
        case Kernel.CATMULL_ROM:
            red_blue = green = plane = np.empty(0, np.float32)
    for table in (narrow, red_blue, green, plane):
        table.setflags(write=False)
    return narrow, red_blue, green, plane


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Pixels and how to read them.

    `pixels`: (h, w) for a CFA or mono plane, (C, h, w) for channels, any real numbers: the box of the image whose top
    left pixel is `corner` (x, y), both even for a CFA. `width`, `height`: of the whole image (0: all of it is here).
    `bayer`: a key of RED_SITE, or "" for no CFA; it names the whole image's first cell. `levels`: applied on the way
    (None: as they are). `valid`: bool (h, w), True where the pixel may be used; None: all. A pixel that is not finite
    is never used either. `distortion`: of the camera that recorded the whole image.
    """

    pixels: NDArray[np.generic]
    bayer: str = ""
    corner: tuple[int, int] = (0, 0)
    width: int = 0
    height: int = 0
    levels: Levels | None = None
    valid: Flags | None = None
    distortion: Distortion | None = None

    def __post_init__(self) -> None:
        if self.bayer and (self.bayer not in RED_SITE or self.pixels.ndim != 2):
            raise ValueError(f"no CFA plane: pattern {self.bayer!r}, {self.pixels.ndim} dimensions")
        if self.pixels.ndim not in (2, 3):
            raise ValueError(f"source pixels must be (h, w) or (C, h, w), not of {self.pixels.ndim} dimensions")
        if self.valid is not None and self.valid.shape != self.pixels.shape[-2:]:
            raise ValueError(f"validity mask {self.valid.shape} does not fit pixels {self.pixels.shape}")
        if self.bayer and (self.corner[0] % 2 or self.corner[1] % 2):
            raise ValueError(f"a CFA slab begins at a whole cell, not at {self.corner}")
        left, top, right, bottom = self.box
        if left < 0 or top < 0 or right > self.full_size[0] or bottom > self.full_size[1]:
            raise ValueError(f"the box {self.box} does not lie in an image of {self.full_size} px")

    @property
    def box(self) -> Box:
        """What of the whole image is here."""
        height, width = self.pixels.shape[-2:]
        return self.corner[0], self.corner[1], self.corner[0] + width, self.corner[1] + height

    @property
    def full_size(self) -> tuple[int, int]:
        """(width, height) of the whole image."""
        return self.width or self.pixels.shape[-1], self.height or self.pixels.shape[-2]

    @property
    def channels(self) -> int:
        """Channels of what comes out: 3 for a CFA plane."""
        return 3 if self.bayer else (self.pixels.shape[0] if self.pixels.ndim == 3 else 1)

    def usable(self) -> NDArray[np.generic]:
        """The pixels with NaN where `valid` is False (a copy then); NaN stops at the kernels, which see it (V3)."""
        if self.valid is None or bool(self.valid.all()):
            return self.pixels
        return np.where(self.valid, self.pixels.astype(np.float32), np.float32(np.nan))


def resample(
    source: Source,
    matrix: Matrix,
    window: Box,
    *,
    kernel: Kernel = Kernel.KRIGING,
    curvature: float = USUAL_CURVATURE,
    into: tuple[Pixels, Flags] | None = None,
) -> tuple[Pixels, Flags]:
    """A window (left, top, right, bottom) of a grid, from one source.

    `matrix` takes 0-based (x, y) of the grid to 0-based (x, y) of the source image (`sphere.homography(grid, source)`),
    which the source's distortion then bends; its w is positive where the source can be seen. `curvature`: what
    `curvature_of` says of all frames of a stack, which KRIGING goes by in red and blue of a CFA. Returns values float32
    (C, rows, width) and seen bool (rows, width), or fills and returns `into` (C-contiguous, of those shapes). Where
    seen is False, the value is 0 and means nothing; where it is True, all channels are finite.

    Footprint: a CFA sample is seen when its position lies at least 4 px inside the image on every side, so that all
    taps of all colours exist and the three colours share one footprint (V1, V8). Otherwise all 16 taps must exist; a
    position on a pixel centre (within 1/2048 px) needs that pixel alone and takes its value unchanged, so tiles on one
    lattice are placed exactly. Kernels of 6x6 taps fall back to 4x4 at the image's rim. No edge is ever extended, and a
    sample with an invalid tap is not seen (V2, V3). ValueError if the source lacks pixels that the window needs.
    """
    left, top, right, bottom = window
    shape = source.channels, max(0, bottom - top), max(0, right - left)
    values, seen = into or (np.empty(shape, np.float32), np.empty(shape[1:], np.bool_))
    if values.shape != shape or seen.shape != shape[1:]:
        raise ValueError(f"cannot put a window {shape} into {values.shape} and {seen.shape}")
    _check_box(source, matrix, window)
    m, lens = np.array(matrix, np.float64), lens_of(source.distortion)
    levels = source.levels or Levels.plain(source.channels)
    narrow, red_blue, green_wide, plane_wide = _tables(kernel, curvature)
    if source.bayer:
        site = RED_SITE[source.bayer]
        red, green, blue = level_slab(source.usable(), source.box, site, levels)
        warp_bayer(red, green, blue, site, source.box, m, lens, top, left, narrow, red_blue, green_wide, values, seen)
    else:
        cube = level_slab(source.usable(), source.box, None, levels)
        warp_planes(cube, source.box, m, lens, top, left, narrow, plane_wide, values, seen)
    return values, seen


@lru_cache(maxsize=8)  # who cuts the box asks, and so does `resample`, which makes sure
def source_box(
    matrix: Matrix, window: Box, width: int, height: int, *, bayer: bool = False, distortion: Distortion | None = None
) -> Box:
    """The box of a source image (width, height) that a window of the grid needs, kernel halo included; NOTHING if none.

    For a CFA its corner is even. A homography keeps lines straight, so the window's outline, cut to the part in front
    of the tangent plane and to the image, holds the extremes; a distortion moves them by no more than its reach.
    """
    if window[0] >= window[2] or window[1] >= window[3]:
        return NOTHING
    left, top, right, bottom = float(window[0]), float(window[1]), window[2] - 1.0, window[3] - 1.0
    outline = [apply(matrix, x, y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
    shift = distortion.reach_px if distortion else 0.0
    low, high_x, high_y = 2.0 + shift, width + 1.0 + shift, height + 1.0 + shift
    sides: tuple[Callable[[Point], float], ...] = (
        lambda p: p[2] - 1e-9,
        lambda p: p[0] + low * p[2],
        lambda p: high_x * p[2] - p[0],
        lambda p: p[1] + low * p[2],
        lambda p: high_y * p[2] - p[1],
    )
    for keeps in sides:
        if min(map(keeps, outline), default=0.0) <= 0.0:  # else all of it is kept, as most windows' outlines are
            outline = _cut(outline, keeps)
    if not outline:
        return NOTHING
    halo = (WIDE_REACH if bayer else PIXEL_REACH) + 1 + math.ceil(shift)
    xs, ys = [x / w for x, _, w in outline], [y / w for _, y, w in outline]
    x0, y0 = max(0, math.floor(min(xs)) - halo), max(0, math.floor(min(ys)) - halo)
    x1, y1 = min(width, math.ceil(max(xs)) + halo + 1), min(height, math.ceil(max(ys)) + halo + 1)
    if x0 >= x1 or y0 >= y1:
        return NOTHING
    return (x0 // 2 * 2, y0 // 2 * 2, x1, y1) if bayer else (x0, y0, x1, y1)


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


def _check_box(source: Source, matrix: Matrix, window: Box) -> None:
    have, (width, height) = source.box, source.full_size
    if have == (0, 0, width, height):
        return
    need = source_box(matrix, window, width, height, bayer=bool(source.bayer), distortion=source.distortion)
    if need == NOTHING:
        return
    if need[0] < have[0] or need[1] < have[1] or need[2] > have[2] or need[3] > have[3]:
        raise ValueError(f"the window needs the source's box {need}, here is {have}")
