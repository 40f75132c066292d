"""Trails of satellites and aircraft: straight lines of light across one frame, found by summing along all lines.

Knows one plane at a time, and the lines of a group's frames. The frame is averaged in cells of 4 px, cleared of its
sky, clipped so that stars count for little, and summed along lines (Radon transform) in cells of 16 px; a line that
stands out is refined in the small cells and its profile measured. A trail far below the noise of a pixel is found that
way, and so are the wings of bright ones that no judgement pixel by pixel can see. Lines run across the whole frame:
satellites do, and what is masked in vain on the rest of the line costs little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.model import Trail
from zemosaicd.science.robust import median_of
from zemosaicd.sphere import Matrix, apply_plane, inverse

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CELL_PX = 4
COARSE = 4
"""Small cells a side of a large one."""
SKY_CELLS = 16
"""Small cells a side of the blocks whose median is the local sky."""
NOISE_ROWS = 128
"""Rows of small cells, at least, that tell the cells' noise."""
CLIP_SIGMA = 4.0
ANGLES = 256
NEAR_ANGLES = 6.0
"""A faint line that rows or columns of large cells follow may be that many angles from where it shows best in them."""
LEAST_LENGTH = 0.4
"""Lines shorter than this part of the frame's short side, in a corner, are not looked at."""
FIND_SIGMA, KEEP_SIGMA = 8.0, 10.0
"""Of a line's sum in large cells over the scatter of all lines; of its mean in small cells after refinement."""
LEAST_HEIGHT = 0.4
"""A trail is at least so many times as high as the noise of a mean of 4 px: fainter ones leave nothing in a stack."""
MOST_TRAILS = 6
PROFILE_PX = 20
PIECES = 12
"""A line is straightened by the profiles of so many pieces of it."""
WING_SIGMA, WING_SHARE = 3.0, 0.005
"""The mask ends where the mean profile is below so many of its own sigmas, or below that part of its peak."""
MARGIN_PX = 2.0
"""What distortion and a wobble may bend a trail by, added on both sides."""
SMALLEST_SIDE_PX = 256
SAME_PX = 8.0
SHARED_PART = 0.2
"""A line that so many of a group's frames show (and two at least) within SAME_PX is no satellite."""


def find_trails(plane: F32) -> tuple[Trail, ...]:
    """The trails of a frame (H, W), CFA or mono, hot pixels repaired; brightest line first. NaN is no data."""
    if min(plane.shape) < SMALLEST_SIDE_PX:
        return ()
    cells, sigma = _flat_cells(np.ascontiguousarray(plane, np.float32))
    if not sigma > 0.0:
        return ()
    unit = np.clip(cells / np.float32(sigma), -CLIP_SIGMA, CLIP_SIGMA).astype(np.float32)
    trails: list[Trail] = []
    for _ in range(MOST_TRAILS):
        found = _strongest_line(unit)
        if found is None:
            break
        a, b, c, strength = found
        trail = _measured(plane, a, b, c, strength)
        _clear_line(unit, a, b, c, (trail.half_width_px if trail else 0.0) + CELL_PX)
        if trail is not None:
            trails.append(trail)
    return tuple(trails)


def own_trails(
    trails: Sequence[Sequence[Trail]], to_common: Sequence[Matrix], size: tuple[int, int]
) -> list[tuple[Trail, ...]]:
    """Of each frame's trails, those that it does not share with many others of its group.

    What several frames show at the same place of the sky or of the sensor is an edge of a nebula or a fault of the
    camera, not a satellite. `to_common`: frame px -> px of the group's common plane; `size`: (width, height) of all.
    """
    back = [inverse(m) for m in to_common]
    most = max(2.0, SHARED_PART * len(trails))

    def sharers(i: int, trail: Trail) -> int:
        ends = _ends(trail, size)
        on_sensor, on_sky = set(), set()
        for j, others in enumerate(trails):
            there = [apply_plane(back[j], *apply_plane(to_common[i], *end)) for end in ends]
            for other in others if j != i else ():
                on_sensor |= {j} if _lie_on(ends, other) else set()
                on_sky |= {j} if _lie_on(there, other) else set()
        return max(len(on_sensor), len(on_sky))

    return [tuple(t for t in some if sharers(i, t) < most) for i, some in enumerate(trails)]


def _ends(trail: Trail, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Where a line enters and leaves a frame (width, height)."""
    across = []
    for x in (0.0, size[0] - 1.0):
        across += [(x, -(trail.a * x + trail.c) / trail.b)] if trail.b else []
    for y in (0.0, size[1] - 1.0):
        across += [(-(trail.b * y + trail.c) / trail.a, y)] if trail.a else []
    inside = [(x, y) for x, y in across if -0.5 <= x <= size[0] - 0.5 and -0.5 <= y <= size[1] - 0.5]
    return [min(inside), max(inside)] if inside else []


def _lie_on(points: Sequence[tuple[float, float]], trail: Trail) -> bool:
    return bool(points) and all(abs(trail.a * x + trail.b * y + trail.c) <= SAME_PX for x, y in points)


def _flat_cells(plane: F32) -> tuple[F32, float]:
    """Means of 4x4 px over the local sky, float32 (H // 4, W // 4), 0 without data; and their noise."""
    cells = _cell_means(plane)
    good = np.isfinite(cells)
    sky = _block_medians(cells)
    if not np.isfinite(sky).any():
        return cells, 0.0
    sky[~np.isfinite(sky)] = np.nanmedian(sky)
    # between the blocks' middles as the crow flies: steps at their borders would look like lines
    y = (np.arange(cells.shape[0]) + 0.5) / SKY_CELLS - 0.5
    x = (np.arange(cells.shape[1]) + 0.5) / SKY_CELLS - 0.5
    at = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    cells -= cv2.remap(sky, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cells[~good] = 0.0
    every = max(1, len(cells) // NOISE_ROWS)
    some = cells[::every][good[::every]]
    return cells, 1.4826 * median_of(np.abs(some)) if some.size else 0.0


@njit(cache=True, nogil=True)
def _block_medians(cells: F32) -> F32:
    """Median of each 16x16 cells; NaN where none is finite."""
    rows, columns = -(-cells.shape[0] // SKY_CELLS), -(-cells.shape[1] // SKY_CELLS)
    out, values = np.full((rows, columns), np.nan, np.float32), np.empty(SKY_CELLS * SKY_CELLS, np.float32)
    for r in range(rows):
        for c in range(columns):
            n = 0
            for y in range(r * SKY_CELLS, min((r + 1) * SKY_CELLS, cells.shape[0])):
                for x in range(c * SKY_CELLS, min((c + 1) * SKY_CELLS, cells.shape[1])):
                    if np.isfinite(cells[y, x]):
                        values[n] = cells[y, x]
                        n += 1
            if n > 0:
                out[r, c] = median_of(values[:n])
    return out


@njit(cache=True, nogil=True)
def _cell_means(plane: F32) -> F32:
    rows, columns = plane.shape[0] // CELL_PX, plane.shape[1] // CELL_PX
    out = np.empty((rows, columns), np.float32)
    for r in range(rows):
        for c in range(columns):
            total = np.float32(0.0)
            for y in range(CELL_PX * r, CELL_PX * (r + 1)):
                for x in range(CELL_PX * c, CELL_PX * (c + 1)):
                    total += plane[y, x]
            out[r, c] = total / np.float32(CELL_PX * CELL_PX)
    return out


def _strongest_line(unit: F32) -> tuple[float, float, float, float] | None:
    """(a, b, c, sigmas) of the line that stands out most, px; None if none does."""
    rows, columns = (n // COARSE for n in unit.shape)
    coarse = unit[: rows * COARSE, : columns * COARSE].reshape(rows, COARSE, columns, COARSE).mean(axis=(1, 3))
    total, length = _line_sums(np.ascontiguousarray(coarse)), _lengths(rows, columns)
    # a line between two rows of cells has half its light in either
    total = np.stack([total, total + np.roll(total, -1, axis=1)])
    score = total / np.sqrt(np.maximum(length, 1.0))
    for one, cells, least in zip(score, length, (1, 2), strict=True):
        enough = cells >= least * LEAST_LENGTH * min(rows, columns)
        some = one[::4][enough[::4]]
        spread = 1.4826 * median_of(np.abs(some - np.float32(median_of(some)))) if some.size else 0.0
        if not spread > 0.0:
            return None
        one[:] = np.where(enough, one / spread, 0.0)
    pair, angle, offset = np.unravel_index(int(np.argmax(score)), score.shape)
    if score[pair, angle, offset] < FIND_SIGMA:
        return None
    theta, size = math.pi * angle / ANGLES, CELL_PX * COARSE
    middle = ((columns - 1) / 2, (rows - 1) / 2)
    rho = offset + pair / 2 - (score.shape[2] - 1) / 2
    # in px: cell k covers px size k to size k + size - 1, its middle lies at size k + (size - 1) / 2
    a, b = math.cos(theta), math.sin(theta)
    c = -size * (rho + a * middle[0] + b * middle[1]) - (a + b) * (size - 1) / 2
    return _refined(unit, a, b, c)


@cache
def _lengths(rows: int, columns: int) -> F32:
    """Cells on each of `_line_sums`' lines, and on each with the next one: (2, ANGLES, offsets), not to be written."""
    length = _line_sums(np.ones((rows, columns), np.float32))
    both = np.stack([length, length + np.roll(length, -1, axis=1)])
    both.setflags(write=False)
    return both


@njit(cache=True, nogil=True)
def _line_sums(coarse: F32) -> F32:
    """Sums float32 (ANGLES, offsets) along lines x cos + y sin = offset about the middle, a cell apart."""
    rows, columns = coarse.shape
    reach = int(math.hypot(rows, columns) / 2) + 1
    total = np.zeros((ANGLES, 2 * reach + 1), np.float32)
    for k in range(ANGLES):
        cos, sin = math.cos(math.pi * k / ANGLES), math.sin(math.pi * k / ANGLES)
        step, sums = np.int64(math.floor(cos * 2**32 + 0.5)), total[k]
        for r in range(rows):
            row = coarse[r]
            # whole numbers of 2^-32 cells: twice as quick as turning each place into one
            place = np.int64(((r - (rows - 1) / 2) * sin - (columns - 1) / 2 * cos + reach + 0.5) * 2**32)
            for c in range(columns):
                sums[np.uint64(place) >> np.uint64(32)] += row[c]
                place += step
    return total


def _refined(unit: F32, a: float, b: float, c: float) -> tuple[float, float, float, float] | None:
    """The best line near one of the coarse ones, and its mean over the mean's error; None below KEEP_SIGMA."""
    rows, columns = unit.shape
    x0, y0 = CELL_PX * columns / 2, CELL_PX * rows / 2
    best, theta0, foot0 = (a, b, c, 0.0), math.atan2(b, a), a * x0 + b * y0 + c
    for span, turns in ((1.0, NEAR_ANGLES), (0.25, 1.5)):
        theta, foot = math.atan2(best[1], best[0]) if span < 1.0 else theta0, foot0
        if span < 1.0:
            foot = best[0] * x0 + best[1] * y0 + best[2]
        for turn in np.linspace(-turns, turns, round(8 * turns) + 1) * span * math.pi / ANGLES:
            for shift in np.linspace(-1.5, 1.5, 13) * span * CELL_PX * COARSE:
                u, v = math.cos(theta + turn), math.sin(theta + turn)
                w = foot + shift - u * x0 - v * y0
                strength = _along(unit, u, v, w)
                if strength > best[3]:
                    best = (u, v, w, strength)
    return best if best[3] >= KEEP_SIGMA else None


@njit(cache=True, nogil=True)
def _along(unit: F32, a: float, b: float, c: float) -> float:
    """Mean of the cells along a line (px) over the error of the mean, cells of unit noise."""
    rows, columns = unit.shape
    total, n = 0.0, 0
    half = (CELL_PX - 1) / 2
    if abs(b) >= abs(a):
        for i in range(columns):
            j = round((-(a * (CELL_PX * i + half) + c) / b - half) / CELL_PX)
            if 0 <= j < rows:
                total += unit[j, i]
                n += 1
    else:
        for j in range(rows):
            i = round((-(b * (CELL_PX * j + half) + c) / a - half) / CELL_PX)
            if 0 <= i < columns:
                total += unit[j, i]
                n += 1
    return total / math.sqrt(n) if n > 0 else 0.0


@njit(cache=True, nogil=True)
def _clear_line(unit: F32, a: float, b: float, c: float, half_width_px: float) -> None:
    """Set cells within so many px of a line to 0."""
    half = (CELL_PX - 1) / 2
    for j in range(unit.shape[0]):
        for i in range(unit.shape[1]):
            if abs(a * (CELL_PX * i + half) + b * (CELL_PX * j + half) + c) <= half_width_px:
                unit[j, i] = 0.0


def _measured(plane: F32, a: float, b: float, c: float, sigma: float) -> Trail | None:
    """The trail near a line, from its profiles across; None if they show no light worth a mask."""
    a, b, c = _straightened(plane, a, b, c)
    light, _ = _light(plane, a, b, c)
    if light.shape[1] < 2 * PROFILE_PX:
        return None
    mean = np.median(light, axis=1)
    spread = 1.4826 * np.median(np.abs(light - mean[:, np.newaxis]), axis=1)
    axis = PROFILE_PX + int(np.argmax(mean[PROFILE_PX - 4 : PROFILE_PX + 5])) - 4
    error = 1.2533 * spread / math.sqrt(light.shape[1])
    bright = mean > np.maximum(WING_SIGMA * error, WING_SHARE * mean[axis])
    if not bright[axis] or mean[axis] < LEAST_HEIGHT * float(np.median(spread)):
        return None
    low, high = axis, axis
    while low > 0 and bright[low - 1]:
        low -= 1
    while high < len(mean) - 1 and bright[high + 1]:
        high += 1
    half = max(high - PROFILE_PX, PROFILE_PX - low) + 0.5 + MARGIN_PX
    return Trail(a=a, b=b, c=c, half_width_px=half, peak_adu=float(mean[axis]), sigma=sigma)


def _light(plane: F32, a: float, b: float, c: float) -> tuple[F32, F64]:
    """Light at -20 to 20 px across a line (rows) over the median of that further out and its slope, and where along the
    line its columns lie, px from the foot of the frame's middle.
    """
    strip = _strip(plane, a, b, c, 2 * PROFILE_PX)
    whole = np.flatnonzero(np.isfinite(strip).all(axis=0))
    inside = strip[PROFILE_PX : 3 * PROFILE_PX + 1, whole]
    if not len(whole):
        return inside, whole - (strip.shape[1] - 1) / 2
    left, right = strip[:PROFILE_PX, whole], strip[3 * PROFILE_PX + 1 :, whole]
    slope = float(np.median(np.median(right, axis=0) - np.median(left, axis=0))) / (3 * PROFILE_PX + 1)
    across = np.arange(-PROFILE_PX, PROFILE_PX + 1, dtype=np.float32)[:, np.newaxis] * np.float32(slope)
    light = inside - across - np.median(np.concatenate([left, right]), axis=0)
    return light, whole - (strip.shape[1] - 1) / 2


def _straightened(plane: F32, a: float, b: float, c: float) -> tuple[float, float, float]:
    """The line moved and turned to where the light is in each of its pieces: cells of 4 px know it to 2 px only."""
    light, along = _light(plane, a, b, c)
    if len(along) < PIECES * PROFILE_PX // 2:
        return a, b, c
    columns = np.array_split(np.arange(len(along)), PIECES)
    reach = PROFILE_PX // 2
    near = slice(PROFILE_PX - reach, PROFILE_PX + reach + 1)
    profile = np.maximum([np.median(light[near, k], axis=1) for k in columns], 0.0) ** 2
    place = (profile @ np.arange(-reach, reach + 1.0)) / np.maximum(profile.sum(axis=1), 1e-12)
    middle = np.array([along[k].mean() for k in columns])
    # a bright star may lie beside a piece: median of all pairs' slopes (Theil 1950, Sen 1968)
    one, other = np.triu_indices(PIECES, 1)
    slope = float(np.median((place[other] - place[one]) / (middle[other] - middle[one])))
    start = float(np.median(place - slope * middle))
    height, width = plane.shape
    foot = a * (width - 1) / 2 + b * (height - 1) / 2 + c
    x, y = (width - 1) / 2 + a * (start - foot), (height - 1) / 2 + b * (start - foot)
    length = math.hypot(1.0, slope)
    u, v = (a + slope * b) / length, (b - slope * a) / length
    return u, v, -(u * x + v * y)


@njit(cache=True, nogil=True)
def _strip(plane: F32, a: float, b: float, c: float, reach: int) -> F32:
    """Light at -reach to reach px across a line (rows), a pixel apart along it (columns): means of 2x2 px, in which no
    Bayer pattern shows; NaN outside the frame.
    """
    height, width = plane.shape
    x0, y0 = (width - 1) / 2, (height - 1) / 2
    foot = a * x0 + b * y0 + c
    half = int(math.hypot(width, height) / 2)
    out = np.full((2 * reach + 1, 2 * half + 1), np.nan, np.float32)
    for k in range(2 * half + 1):
        for j in range(2 * reach + 1):
            # the 2x2 mean that starts at a pixel belongs half a pixel further down and right
            x = x0 - a * foot - b * (k - half) + a * (j - reach) - 0.5
            y = y0 - b * foot + a * (k - half) + b * (j - reach) - 0.5
            ix, iy = round(x), round(y)
            if 0 <= ix < width - 1 and 0 <= iy < height - 1:
                total = plane[iy, ix] + plane[iy, ix + 1] + plane[iy + 1, ix] + plane[iy + 1, ix + 1]
                out[j, k] = np.float32(0.25) * total
    return out
