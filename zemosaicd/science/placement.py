"""Where an image lies on a grid: a coordinate map on a coarse lattice, or a shift by whole pixels.

Any image with any projection is placed the same way: its exact pixel positions are taken at every 16th pixel of the
grid and interpolated bilinearly between them; where that would be off by more than 0.01 px the lattice is made finer.
Two tangent planes are off by 1e-6 px, a degree of SIN or SIP by 1e-5 to 1e-3. The lattice is that of the grid itself,
so a band of rows, whatever its cut, sees the same positions to the last bit (M5). An image that lies on the grid's own
pixels is found here, and is then moved, not interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.sphere import Matrix

Numbers = NDArray[np.float64]
Transform = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
"""0-based x, y on the grid -> 0-based x, y in the image, arrays of one shape; NaN where the image cannot be."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 on the grid, whole pixels; x1 and y1 are excluded."""

STEPS_PX = (16, 8, 4, 2)
MAX_ERROR_PX = 0.01
WIDE_ERROR_PX = 1e-3
"""The same where the grid is that of a wide mosaic: what its own bends add to a tile."""
NODES_KEPT = 64
"""Of so many images, those that were asked for last: hundreds of tiles make a mosaic, a few at a time."""
WHOLE_PX = 1.0 / 2048
"""An image as near as this to the grid's own pixels, everywhere, lies on them: half a phase of the kernels' tables."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """An image of `width` x `height` pixels on a grid.

    `box`: the window of the grid outside which the image is not seen. `shift`: the image's pixel (x, y) is the grid's
    (x + shift[0], y + shift[1]), exactly; None: it is interpolated. `transform`: where the grid's pixels are in the
    image. `spans` (ny, 4): of each of the `ny` rows of `nx` nodes, the first and last + 1 of those in or near the
    image, and the image's rows round them. `error_px`: the largest error of the interpolation, measured half-way
    between nodes. `area`: a pixel of the image in grid pixels.
    """

    width: int
    height: int
    box: Box
    shift: tuple[int, int] | None
    step: int
    x_node: int
    y_node: int
    nx: int
    ny: int
    transform: Transform
    error_px: float
    area: float
    spans: NDArray[np.int64]

    @property
    def nodes(self) -> Numbers:
        """float64 (2, ny, nx): x and y in the image at the grid's pixels ((x_node + i) * step, (y_node + j) * step),
        NaN where it cannot be."""
        return _nodes_of(self)

    def columns_and_rows(self, row0: int, row1: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """((first, last) column of the grid, (first, last) row of the image) that matter to these rows of the grid.

        Exclusive ends; ((0, 0), (0, 0)) if the image is not there. The image's rows are without any kernel's halo.
        """
        x0, y0, x1, y1 = self.box
        row0, row1 = max(row0, y0), min(row1, y1)
        if row0 >= row1:
            return (0, 0), (0, 0)
        if self.shift is not None:
            return (x0, x1), (row0 - self.shift[1], row1 - self.shift[1])
        spans = self.spans[row0 // self.step - self.y_node : -(-row1 // self.step) - self.y_node + 1]
        left, right, top, bottom = _widest(spans)
        if left >= right:
            return (0, 0), (0, 0)
        columns = max(x0, (self.x_node + left - 1) * self.step), min(x1, (self.x_node + right) * self.step + 1)
        return columns, (max(0, top), min(self.height, bottom))

    def nearest(self, columns: tuple[int, int], rows: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The image's pixels, x and y (h, w), nearest to these columns and rows of the grid; -1 where it cannot be.

        For an image that is interpolated. The positions are those that science.coadd takes.
        """
        step, nodes = self.step, self.nodes
        last_y, last_x = nodes.shape[1] - 2, nodes.shape[2] - 2
        x, y = np.arange(*columns), np.arange(*rows)
        i, j = np.clip(x // step - self.x_node, 0, last_x), np.clip(y // step - self.y_node, 0, last_y)
        across, down = (x - (i + self.x_node) * step) / step, ((y - (j + self.y_node) * step) / step)[:, np.newaxis]
        upper, lower = nodes[:, j], nodes[:, j + 1]
        left = upper[:, :, i] * (1.0 - down) + lower[:, :, i] * down
        right = upper[:, :, i + 1] * (1.0 - down) + lower[:, :, i + 1] * down
        place = np.floor(left + (right - left) * across + 0.5)
        place[:, ~np.isfinite(place).all(axis=0)] = -1.0
        return place[0].astype(np.int64), place[1].astype(np.int64)


@lru_cache(maxsize=NODES_KEPT)
def _nodes_of(placement: Placement) -> Numbers:
    p = placement
    return _at(p.transform, _places(p.x_node, p.nx, p.step), _places(p.y_node, p.ny, p.step))


def forget_nodes() -> None:
    """Lets go of the nodes that were asked for last: at a mosaic's end nobody asks for them again."""
    _nodes_of.cache_clear()


def _places(first: int, count: int, step: int) -> Numbers:
    """Columns, or rows, of the grid at which there are nodes."""
    return np.arange(first, first + count, dtype=np.float64) * step


@njit(cache=True, nogil=True)
def _widest(spans: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """The span of several rows of nodes."""
    left, right, top, bottom = spans[0]
    for j in range(1, len(spans)):
        left, right = min(left, spans[j, 0]), max(right, spans[j, 1])
        top, bottom = min(top, spans[j, 2]), max(bottom, spans[j, 3])
    return left, right, top, bottom


def homography_transform(matrix: Matrix) -> Transform:
    """The transform of a homography from the grid to the image; NaN behind the tangent plane."""
    m = matrix

    def transform(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        w = m[6] * x + m[7] * y + m[8]
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(w > 0.0, 1.0 / w, np.nan)
        return (m[0] * x + m[1] * y + m[2]) * inverse, (m[3] * x + m[4] * y + m[5]) * inverse

    return transform


def place(transform: Transform, box: Box, width: int, height: int, most_error_px: float = MAX_ERROR_PX) -> Placement:
    """Places an image of `width` x `height` pixels on the window `box` of a grid, through its exact transform."""
    for step in STEPS_PX:
        x_node, y_node = box[0] // step, box[1] // step
        nx, ny = -(-box[2] // step) + 1 - x_node, -(-box[3] // step) + 1 - y_node
        x, y = _places(x_node, nx, step), _places(y_node, ny, step)
        nodes = _at(transform, x, y)
        error = _error_px(transform, nodes, x, y, width, height)
        if error <= most_error_px:
            break
    area, shift = _area(nodes, step), _whole_shift(nodes, x, y)
    if shift is not None:  # no farther than the image: it may be a trimmed one (V5)
        box = (
            max(box[0], shift[0]),
            max(box[1], shift[1]),
            min(box[2], shift[0] + width),
            min(box[3], shift[1] + height),
        )
    return Placement(
        width=width,
        height=height,
        box=box,
        shift=shift,
        step=step,
        x_node=x_node,
        y_node=y_node,
        nx=nx,
        ny=ny,
        transform=transform,
        error_px=error,
        area=area,
        spans=_spans(nodes, width, height, int(2.0 * step / max(1e-3, area) ** 0.5) + 2),
    )


@njit(cache=True, nogil=True)
def _spans(nodes: Numbers, width: int, height: int, reach: int) -> NDArray[np.int64]:
    """`Placement.spans`. `reach`: more image pixels than lie between a node and the farthest corner of its cells, so
    that all corners of a cell that touches the image are near, and what lies in it lies between their rows."""
    _, rows, columns = nodes.shape
    spans = np.empty((rows, 4), np.int64)
    for j in range(rows):
        spans[j, 0], spans[j, 1], spans[j, 2], spans[j, 3] = columns, 0, height, 0
        for i in range(columns):
            x, y = nodes[0, j, i], nodes[1, j, i]
            if -reach < x < width + reach and -reach < y < height + reach:
                spans[j, 0], spans[j, 1] = min(spans[j, 0], i), i + 1
                spans[j, 2] = min(spans[j, 2], math.floor(y))
                spans[j, 3] = max(spans[j, 3], math.ceil(y) + 1)
    return spans


def _at(transform: Transform, x: Numbers, y: Numbers) -> Numbers:
    """(2, len(y), len(x)) positions in the image."""
    grid_x, grid_y = np.meshgrid(x, y)
    return np.ascontiguousarray(np.stack(transform(grid_x, grid_y)))


def _error_px(transform: Transform, nodes: Numbers, x: Numbers, y: Numbers, width: int, height: int) -> float:
    """Largest distance of the interpolated from the exact position in the middle of the cells that see the image."""
    half_x, half_y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    exact = _at(transform, half_x, half_y)
    middle = (nodes[:, 1:, 1:] + nodes[:, 1:, :-1] + nodes[:, :-1, 1:] + nodes[:, :-1, :-1]) / 4
    with np.errstate(invalid="ignore"):
        inside = (exact[0] > -1) & (exact[0] < width) & (exact[1] > -1) & (exact[1] < height)
        off = np.hypot(*(middle - exact))[inside]
    return float(np.nanmax(off, initial=0.0))


def _whole_shift(nodes: Numbers, x: Numbers, y: Numbers) -> tuple[int, int] | None:
    """The whole-pixel shift that all nodes share; None if there is none."""
    away_x, away_y = x[np.newaxis, :] - nodes[0], y[:, np.newaxis] - nodes[1]
    if not (np.isfinite(away_x).all() and np.isfinite(away_y).all()):
        return None
    dx, dy = round(float(away_x.flat[0])), round(float(away_y.flat[0]))
    exact = np.abs(away_x - dx).max() < WHOLE_PX and np.abs(away_y - dy).max() < WHOLE_PX
    return (dx, dy) if exact else None


def _area(nodes: Numbers, step: int) -> float:
    """Solid angle of the image's pixel in that of the grid's: median over the cells; 1 if no cell is known."""
    u, v = np.diff(nodes, axis=2)[:, :-1], np.diff(nodes, axis=1)[:, :, :-1]
    cells = np.abs(u[0] * v[1] - u[1] * v[0]) / step**2
    cells = cells[np.isfinite(cells) & (cells > 0)]
    return float(1.0 / np.median(cells)) if cells.size else 1.0
