"""A slab of raw pixels, levelled and laid out for the warp: one pass from the cache's numbers to float32 photosites.

Levelled means brought to the reference: `(raw - sky - bowl (f - 1)) * gain / f + zero`, with the frame's sky plane
`sky + slope_x (x - x_c) + slope_y (y - y_c)` at the photosite (x, y), f the illumination there (1 in the middle of the
sensor, below 1 where less light falls) and `bowl` the sky light that the illumination dims. Interpolation weights sum
to 1 and reproduce a slope, so it does not matter that this comes before the warp.

Layout of a CFA slab of h rows and w columns: red and blue as planes ((h + 1) // 2, (w + 1) // 2); green by its
quincunx, q = (x + shift - y) / 2 and p = (x + shift + y) / 2 with shift making them whole, as ((h + w) // 2 + 2, h):
row q + h // 2, column y = p - q, so that steps along p are neighbours in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.kernels import Box, Numbers, Pixels
from zemosaicd.science.taps import SPARE

ILLUMINATION_TERMS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """How the pixels of one frame are brought to the reference; float64 (C,) each, in ADU and source px.

    `illumination` (C, 3): f = 1 + a r^2 + b r^4 + c r^6, r from the middle of the sensor in half diagonals. `middle`:
    (x_c, y_c) of the sensor, `radius` its half diagonal.
    """

    gain: Numbers
    zero: Numbers
    sky: Numbers
    slope_x: Numbers
    slope_y: Numbers
    bowl: Numbers
    illumination: Numbers
    middle: tuple[float, float]
    radius: float
    table: Numbers = field(init=False)
    """(C, 9) for the kernels: gain, zero, sky, slopes, bowl, illumination."""

    def __post_init__(self) -> None:
        columns = [self.gain, self.zero, self.sky, self.slope_x, self.slope_y, self.bowl]
        table = np.ascontiguousarray(np.column_stack([*columns, self.illumination]), np.float64)
        object.__setattr__(self, "table", table)

    @classmethod
    def plain(cls, channels: int) -> Levels:
        """Levels that change nothing."""
        one, nothing = np.ones(channels), np.zeros(channels)
        return cls(
            gain=one, zero=nothing, sky=nothing, slope_x=nothing, slope_y=nothing, bowl=nothing,
            illumination=np.zeros((channels, ILLUMINATION_TERMS)), middle=(0.0, 0.0), radius=1.0,
        )  # fmt: skip


# Python would have to raise at a division by 0, and so no loop with a division would run on vectors.
@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _level_row(
    raw: NDArray[np.generic], y: float, x0: float, step: int, levels: Numbers, radius: float, out: Pixels
) -> None:
    """out[i] = level of raw[i * step], which lies at (x0 + i step, y) from the sensor's middle."""
    gain, zero, slope = levels[0], levels[1], levels[3]
    base = levels[2] + levels[4] * y
    bowl, a, b, c = levels[5], levels[6], levels[7], levels[8]
    if a == 0.0 and b == 0.0 and c == 0.0:
        for i in range(out.shape[0]):
            out[i] = (np.float64(raw[i * step]) - (base + slope * (x0 + i * step))) * gain + zero
        return
    scale = 1.0 / (radius * radius)
    for i in range(out.shape[0]):
        x = x0 + i * step
        r2 = (x * x + y * y) * scale
        dimmed = r2 * (a + r2 * (b + r2 * c))
        out[i] = (np.float64(raw[i * step]) - (base + slope * x) - bowl * dimmed) * (gain / (1.0 + dimmed)) + zero


@njit(cache=True, nogil=True)
def level_plane(
    raw: NDArray[np.generic], corner: tuple[int, int], middle: tuple[float, float], radius: float, levels: Numbers,
    out: Pixels,
) -> None:  # fmt: skip
    """One plane (h, w) of a slab whose (left, top) is `corner`: out = its levels, float32."""
    for r in range(raw.shape[0]):
        _level_row(raw[r], corner[1] + r - middle[1], corner[0] - middle[0], 1, levels, radius, out[r])


@njit(cache=True, nogil=True)
def level_bayer(
    raw: NDArray[np.generic], corner: tuple[int, int], site: tuple[int, int], middle: tuple[float, float],
    radius: float, levels: Numbers, red: Pixels, green: Pixels, blue: Pixels,
) -> None:  # fmt: skip
    """A CFA slab (h, w) whose (left, top) is `corner`, both even: levelled into the module's layout.

    `site`: (x, y) of the red photosite in a cell. Places of `green` that no photosite has are left as they are.
    """
    height, width = raw.shape
    rx, ry = site
    shift, deep = (rx + ry + 1) % 2, height // 2
    line = np.empty((width + 1) // 2, np.float32)
    for r in range(height):
        y = corner[1] + r - middle[1]
        of_red = r % 2 == ry
        x = rx if of_red else 1 - rx
        coloured = (red if of_red else blue)[r // 2, : (width - x + 1) // 2]
        _level_row(raw[r, x:], y, corner[0] + x - middle[0], 2, levels[0 if of_red else 2], radius, coloured)
        count = (width - (1 - x) + 1) // 2
        _level_row(raw[r, 1 - x :], y, corner[0] + 1 - x - middle[0], 2, levels[1], radius, line[:count])
        first = (1 - x + shift - r) // 2 + deep
        for i in range(count):
            green[first + i, r] = line[i]


@njit(cache=True, nogil=True)
def level_cfa(
    raw: NDArray[np.generic], corner: tuple[int, int], colours: NDArray[np.int64], middle: tuple[float, float],
    radius: float, levels: Numbers, out: Pixels,
) -> None:  # fmt: skip
    """A CFA slab (h, w) whose (left, top) is `corner`, both even: levelled where it is, out (h, w) float32.

    `colours` (2, 2): channel of a photosite by the parity of its row and column.
    """
    for r in range(raw.shape[0]):
        for x in range(2):
            row = levels[colours[r % 2, x]]
            _level_row(raw[r, x:], corner[1] + r - middle[1], corner[0] + x - middle[0], 2, row, radius, out[r, x::2])


def bayer_arrays(height: int, width: int) -> tuple[Pixels, Pixels, Pixels]:
    """Empty red, green, blue of the module's layout for a slab (h, w)."""
    half = (height + 1) // 2, (width + 1) // 2
    deep = (height + width) // 2 + 2
    return _roomy(half), _roomy((deep, height)), _roomy(half)


def _roomy(shape: tuple[int, ...]) -> Pixels:
    """Zeros of this shape, and behind the last of them the floats that the warp may load."""
    size = math.prod(shape)
    return np.zeros(size + SPARE, np.float32)[:size].reshape(shape)


def level_slab(
    raw: NDArray[np.generic], slab: Box, site: tuple[int, int] | None, levels: Levels
) -> tuple[Pixels, Pixels, Pixels] | Pixels:
    """A slab (h, w) or (C, h, w) of raw numbers, levelled: the three arrays of a CFA, or float32 (C, h, w)."""
    table, corner, pixels = levels.table, (slab[0], slab[1]), np.ascontiguousarray(raw)
    if site is not None:
        arrays = bayer_arrays(*pixels.shape)
        level_bayer(pixels, corner, site, levels.middle, levels.radius, table, *arrays)
        return arrays
    planes = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    out = _roomy(planes.shape)
    for k in range(len(planes)):
        level_plane(planes[k], corner, levels.middle, levels.radius, table[k], out[k])
    return out
