"""Tiles of one grid judged against each other: which of their pixels are no sky, before they are added.

A mega tile of a sweep has seen most of its pixels once or twice, which tells nothing about a satellite; the other mega
tiles have seen the same pixels. So the rule of `science.combine`, that judges the frames of a tile, judges tiles here:
sample v_i against the median m of all tiles at a pixel,

    sigma_i^2 = K variance_i (1 + p s) + (c g)^2,    s = max(m - pedestal, 0)

with variance_i of the tile's own pixel (its WEIGHT, so by how many frames it is), p the photons' share, g the local
gradient of m, K and k as there, c = 0.75. It needs three tiles at a pixel, grows over trails' wings, and never
empties one. What is rejected is so in all channels. Each outcome depends on the pixels within HALO rows and columns
alone, so bands and windows leave no trace (M5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaicd.science import medians, rejection
from zemosaicd.science.combine import GROW_LEAST, HALO, Rule
from zemosaicd.science.medians import UNSEEN, Codes, Numbers, Pixels
from zemosaicd.science.rejection import Flags

COLUMNS = 512
"""Columns of the grid that are judged at a time: so much of many tiles stays in a processor's caches."""
RULE = Rule(gradient=0.75)
"""A sample here is often one frame's and the median one of few tiles': at 0.5 star cores lost a fifth more frames, and
zero points scattered by a fifth more; at 1 trails left a third more light."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What noise to expect. `photon` float64 (C,): variance that an ADU of signal adds, in parts of the sky's;
    `pedestal` (C,): the sky's level, ADU."""

    photon: Numbers
    pedestal: Numbers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """Rows of a tile on the grid's own pixels. `pixels` float32 (C, h, W), NaN without data, `weight` (C, h, W) inverse
    variances; `row`, `column`: the grid's of its first pixel. `change` (4, C): what becomes of its pixels
    (coadd.linear)."""

    pixels: Pixels
    weight: Pixels
    row: int
    column: int
    change: Numbers


def outlying(layers: Sequence[Layer], rows: tuple[int, int], width: int, judgement: Judgement) -> list[Flags]:
    """Bool (rows, width) of each layer: True where it is left out of rows first to last of a grid of that width.

    Layers have HALO rows more on either side, as far as their tiles go. Fewer than three: nothing is left out.
    """
    height = rows[1] - rows[0]
    out = [np.zeros((height, width), np.bool_) for _ in layers]
    if len(layers) < rejection.MIN_JUDGED:
        return out
    for left in range(0, width, COLUMNS):
        right = min(width, left + COLUMNS)
        low, high = max(0, left - HALO), min(width, right + HALO)
        top = max(0, rows[0] - HALO)
        found = _judged(layers, (top, rows[1] + HALO), (low, high), judgement)
        here = found[:, rows[0] - top : rows[0] - top + height, left - low : right - low]
        for flags, part in zip(out, here, strict=True):
            flags[:, left:right] = part
    return out


def _judged(layers: Sequence[Layer], rows: tuple[int, int], columns: tuple[int, int], judgement: Judgement) -> Flags:
    """(n, R, W): what is rejected in a window of the grid, judged with all that lies in it."""
    samples, variance, codes = _window(layers, rows, columns)
    channels = samples.shape[1]
    centre, low = np.empty((2, *samples.shape[1:]), np.float32)
    count = np.empty(samples.shape[1:], np.int32)
    medians.medians(samples, codes, medians.median_network(len(samples)), centre, low, count)
    gradient = np.empty_like(centre)
    rejection.gradients(centre, count, gradient)
    _reject(
        samples, variance, codes, centre, low, gradient, judgement.photon, judgement.pedestal,
        RULE.kernel_gain * RULE.k**2, RULE.k * RULE.gradient,
    )  # fmt: skip
    rejection.grow(codes, count[0] >= rejection.MIN_JUDGED, -(-GROW_LEAST * channels // 3))
    rejection.restore(codes, channels)
    seen = codes & UNSEEN == 0
    rejected = seen & (codes != 0)
    return np.asarray(rejected & (seen & ~rejected).any(axis=0))


def _window(layers: Sequence[Layer], rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Pixels, Pixels, Codes]:
    """Samples and their variances (n, C, R, W), as they go into the sums, and the codes of what is not seen."""
    shape = len(layers[0].pixels), rows[1] - rows[0], columns[1] - columns[0]
    samples, variance = np.zeros((2, len(layers), *shape), np.float32)
    codes = np.full((len(layers), *shape[1:]), UNSEEN, np.uint8)
    for i, layer in enumerate(layers):
        height, width = layer.pixels.shape[1:]
        top, bottom = max(rows[0], layer.row), min(rows[1], layer.row + height)
        left, right = max(columns[0], layer.column), min(columns[1], layer.column + width)
        if top >= bottom or left >= right:
            continue
        mine = np.s_[top - layer.row : bottom - layer.row, left - layer.column : right - layer.column]
        here = np.s_[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]]
        _load(
            layer.pixels[:, *mine], layer.weight[:, *mine], layer.change, (top, left),
            samples[i][:, *here], variance[i][:, *here], codes[i][here],
        )  # fmt: skip
    return samples, variance, codes


@njit(cache=True, nogil=True)
def _load(
    pixels: Pixels, weight: Pixels, change: Numbers, corner: tuple[int, int], samples: Pixels, variance: Pixels,
    codes: Codes,
) -> None:  # fmt: skip
    """What a layer's pixels (C, h, w), the first at row and column `corner` of the grid, become; 0 where not seen."""
    channels, height, width = pixels.shape
    for r in range(height):
        for x in range(width):
            there = True
            for k in range(channels):
                v = pixels[k, r, x]
                there = there and v - v == 0.0 and weight[k, r, x] > 0.0
            if not there:
                continue
            codes[r, x] = 0
            for k in range(channels):
                gain, flat = change[0, k], change[1, k] + change[3, k] * (corner[0] + r)
                samples[k, r, x] = gain * pixels[k, r, x] + (flat + change[2, k] * (corner[1] + x))
                variance[k, r, x] = gain * gain / weight[k, r, x]


@njit(cache=True, nogil=True)
def _reject(
    samples: Pixels, variance: Pixels, codes: Codes, centre: Pixels, low: Pixels, gradient: Pixels, photon: Numbers,
    pedestal: Numbers, k_noise: float, k_gradient: float,
) -> None:  # fmt: skip
    """Marks what lies too far from the median; where that is all there is, the lower of the two camps is right."""
    n, channels, rows, width = samples.shape
    for k in range(channels):
        bit = np.uint8(1 << k)
        for r in range(rows):
            for x in range(width):
                g = k_gradient * gradient[k, r, x]
                if not g < np.inf:  # too few to judge
                    continue
                for m in (np.float64(centre[k, r, x]), np.float64(low[k, r, x])):
                    noise, kept = k_noise * (1.0 + photon[k] * max(m - pedestal[k], 0.0)), False
                    for i in range(n):
                        d = samples[i, k, r, x] - m
                        there = codes[i, r, x] & UNSEEN == 0
                        out = d * d > noise * variance[i, k, r, x] + g * g
                        codes[i, r, x] &= ~bit
                        codes[i, r, x] |= bit if there and out else np.uint8(0)
                        kept = kept or (there and not out)
                    if kept:
                        break
