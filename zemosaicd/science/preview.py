"""A picture for people: the mosaic scaled down, its sky made neutral, stretched; and a few figures of quality.

Pictures are turned upside down against the array: FITS counts rows from the bottom, pictures from the top. North is
not turned up. Nothing here changes measured pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

NO_DATA_GREY = 56
"""Grey of pixels that nothing was seen in: between the sky (about 30) and the nebulae, and without any grain."""
SKY_GREY = 30
BLACK_SIGMA = 2.8
WHITE_PERCENTILE = 99.8
LOWEST_WHITE_SIGMA = 40.0
CELL_PX = 16
CURVE_STEPS = 4096
SAMPLE_PIXELS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures of one channel set, each a tuple in channel order, in the cube's units (ADU).

    `sky`: mode-like centre of the darker half; `noise`: standard deviation of one pixel from neighbouring pixels;
    `unevenness`: standard deviation of the sky on 1/16 of the width (gradients and seams); `filled`: share of pixels
    with data in all channels. Sky and noise of a large mosaic come from about 100,000 of its pixels.
    """

    sky: tuple[float, ...]
    noise: tuple[float, ...]
    unevenness: tuple[float, ...]
    filled: float


def block_mean(cube: F32, factor: int) -> F32:
    """Mean of factor x factor blocks of (C, H, W), NaN left out; NaN where less than half of a block has data.

    Always a copy: a band's picture is written over by the next one's.
    """
    if factor == 1:
        return cube.copy()
    channels, height, width = cube.shape
    out = np.empty((channels, -(-height // factor), -(-width // factor)), np.float32)
    _block_mean(cube, factor, out)
    return out


@njit(cache=True, nogil=True)
def _block_mean(cube: F32, factor: int, out: F32) -> None:
    channels, height, width = cube.shape
    total, count = np.empty(out.shape[2]), np.empty(out.shape[2], np.int64)
    for k in range(channels):
        for row in range(out.shape[1]):
            total[:] = 0.0
            count[:] = 0
            rows = min(height, (row + 1) * factor) - row * factor
            for y in range(row * factor, row * factor + rows):
                for block in range(out.shape[2]):
                    for x in range(block * factor, min(width, (block + 1) * factor)):
                        value = cube[k, y, x]
                        if value - value == 0.0:
                            total[block] += value
                            count[block] += 1
            for block in range(out.shape[2]):
                size = rows * (min(width, (block + 1) * factor) - block * factor)
                enough = count[block] * 2 >= size and count[block] > 0
                out[k, row, block] = total[block] / count[block] if enough else np.nan


def stretch(cube: F32, max_px: int = 2048) -> U8:
    """8-bit picture of a (C, H, W) float32 mosaic, longer side <= max_px: (h, w, 3) for three channels, else (h, w, 1).

    NaN is a pixel never seen: flat grey `NO_DATA_GREY`. Each channel's sky (darkest quarter) goes to one dark grey;
    then one asinh curve of the brightness, the same for all channels (Lupton et al. 2004), so that stars keep their
    colours. More or fewer than three channels are shown as their mean. Never raises for a cube without data.
    """
    if cube.ndim != 3 or max_px < 1:
        raise ValueError("a (C, H, W) cube and a positive size are needed")
    factor = max(1, -(-max(cube.shape[1:]) // max_px))
    small = block_mean(cube, factor) if factor > 1 else cube
    if small.shape[0] != 3:
        small = small.mean(axis=0, keepdims=True)
    picture = np.full((*small.shape[1:], small.shape[0]), NO_DATA_GREY, np.uint8)
    some = small.reshape(len(small), -1)[:, :: _every(small[0].size)]
    some = some[:, np.isfinite(some).all(axis=0)]
    if some.shape[1]:
        black, white, softening = _curve(small, some)
        steps = (np.arange(CURVE_STEPS + 2) / CURVE_STEPS) ** 2
        _paint(small, black, white, np.arcsinh(steps / softening) / math.asinh(1 / softening), picture)
    return picture


def quality(cube: F32) -> Quality:
    """Sky, noise and unevenness of a (C, H, W) float32 mosaic with NaN where nothing was seen."""
    filled = float(np.isfinite(cube).all(axis=0).mean())
    sky, noise, uneven = [], [], []
    coarse = block_mean(cube, max(1, cube.shape[2] // 16))
    every = _every(cube[0].size)
    for plane, blocks in zip(cube[:, ::every], coarse, strict=True):
        values = plane[np.isfinite(plane)]
        sky.append(_sky(values)[0] if values.size else math.nan)
        step = plane[:, 1:] - plane[:, :-1]
        step = step[np.isfinite(step)]
        noise.append(1.4826 * float(np.median(np.abs(step))) / math.sqrt(2) if step.size else math.nan)
        cells = blocks[np.isfinite(blocks)]
        uneven.append(1.4826 * float(np.median(np.abs(cells - np.median(cells)))) if cells.size else math.nan)
    return Quality(sky=tuple(sky), noise=tuple(noise), unevenness=tuple(uneven), filled=filled)


def _every(size: int) -> int:
    """Of so many values, every how manieth is enough for a median."""
    return max(1, size // SAMPLE_PIXELS)


def _sky(values: F32) -> tuple[float, float]:
    """(centre, sigma) of the sky: median after clipping above, the spread from its darker side."""
    kept = values
    for _ in range(5):
        centre = float(np.median(kept))
        below = kept[kept <= centre]
        sigma = 1.4826 * float(np.median(centre - below)) if below.size else 0.0
        smaller = kept[kept <= centre + 3 * sigma]
        if smaller.size == kept.size or smaller.size < 16:
            break
        kept = smaller
    return centre, max(sigma, 1e-6 * max(1.0, abs(centre)))


def _dark_sky(small: F32, some: F32) -> F32:
    """Level of each channel (C,) in the darkest quarter of the picture, the same cells for all: no nebula."""
    cells = block_mean(small, CELL_PX).reshape(len(small), -1)
    cells = cells[:, np.isfinite(cells).all(axis=0)]
    if cells.shape[1] < 16:
        return np.array([_sky(v)[0] for v in some], np.float32)
    brightness = cells.mean(axis=0)
    return np.asarray(np.median(cells[:, brightness <= np.percentile(brightness, 25)], axis=1), np.float32)


def _curve(small: F32, some: F32) -> tuple[F32, float, float]:
    """Neutral sky, linked asinh: the black level of each channel (C,), white above it, and the softening, from a sample
    (C, n) of the pixels with data."""
    sigma = float(np.median([_sky(v)[1] for v in some]))
    # Black lies BLACK_SIGMA below the sky, so that the grain of the sky is not cut off.
    black = np.asarray(_dark_sky(small, some) - np.float32(BLACK_SIGMA * sigma), np.float32)
    brightness = np.maximum(some - black[:, None], 0).mean(axis=0)
    white = max(float(np.percentile(brightness, WHITE_PERCENTILE)), LOWEST_WHITE_SIGMA * sigma)
    return black, white, _softening(BLACK_SIGMA * sigma / white)


@njit(cache=True, nogil=True)
def _paint(small: F32, black: F32, white: float, curve: NDArray[np.float64], picture: U8) -> None:
    """The picture (h, w, C), upside down, of the pixels of (C, h, w) that have data, by a curve of the square root of
    their brightness; all channels come down together where one is over white, so that no star turns white."""
    channels, height, width = small.shape
    lifted = np.empty(channels, np.float32)
    for y in range(height):
        for x in range(width):
            brightness = highest = np.float32(0.0)
            for k in range(channels):
                lifted[k] = max(small[k, y, x] - black[k], np.float32(0.0))
                brightness += lifted[k] / np.float32(channels)
                highest = max(highest, lifted[k])
                if small[k, y, x] - small[k, y, x] != 0.0:
                    brightness = np.float32(np.nan)
            if brightness - brightness != 0.0:
                continue
            place = min(math.sqrt(brightness / white), 1.0) * CURVE_STEPS
            step = int(place)
            shown = (curve[step] + (curve[step + 1] - curve[step]) * (place - step)) * max(1.0, brightness / white)
            gain = shown / max(brightness, np.float32(1e-30))
            gain /= max(highest * gain, 1.0)
            for k in range(channels):
                picture[height - 1 - y, x, k] = np.uint8(lifted[k] * gain * 255.0 + 0.5)


def _softening(sky: float) -> float:
    """The asinh softening that shows a sky at `sky` (share of white) as SKY_GREY, by bisection."""
    low, high = 1e-6, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        shown = math.asinh(sky / middle) / math.asinh(1 / middle)
        low, high = (middle, high) if shown > SKY_GREY / 255 else (low, middle)
    return high
