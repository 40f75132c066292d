"""The second pass: how much each tile counts where coverage jumps, evened out.

A pixel of a mosaic is the mean of its tiles, each in its share of the weight there. Where a tile begins or ends its
share goes from nothing to its full value within the feather, and so do the noise, and whatever two tiles still differ
by. Known the weights of a first pass, the shares are taken as maps of blocks, blurred by a Gaussian that is normalised
by what was seen (so that nothing fades at the mosaic's own edges), and each tile's *weight* is multiplied by blurred
share over share, clipped to LIMITS. Fluxes are never multiplied: a star's flux is a mean of what its tiles say of it,
with weights that hardly change across it. The factor is the same in all channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Numbers = NDArray[np.float64]

BLOCK_PX = 16
SIGMA_PX = 50.0
TRUNCATE = 4.0
LIMITS = (0.5, 2.0)
"""What a weight may be multiplied by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """A tile's share of the weight: `share` (ny, nx) 0..1 for the grid's blocks from (`x_block`, `y_block`) on."""

    x_block: int
    y_block: int
    share: Numbers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ease:
    """What a tile's weight is multiplied by at the middles of the grid's blocks, float32 (ny, nx); of size 0: by 1."""

    x_block: int
    y_block: int
    factor: Pixels


NO_EASE = Ease(x_block=0, y_block=0, factor=np.empty((0, 0), np.float32))


def block_sums(weights: Numbers) -> Numbers:
    """Sums over whole blocks of (C, h, w), the last ones cut off by its edge: (C, ny, nx)."""
    rows, columns = (np.arange(0, side, BLOCK_PX) for side in weights.shape[1:])
    return np.asarray(np.add.reduceat(np.add.reduceat(weights, rows, axis=1), columns, axis=2))


def shares_of(own: Numbers, total: Numbers) -> Numbers:
    """A tile's share of the blocks' weight, mean over the channels: (C, ny, nx) twice -> (ny, nx), 0 without weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0.0, own / total, 0.0).mean(axis=0))


def eased(share: Share, seen: Numbers) -> Ease:
    """The factors of one tile. `seen` (NY, NX): 1 for blocks of the grid that have weight, blurred (`blurred`)."""
    ny, nx = share.share.shape
    here = seen[share.y_block : share.y_block + ny, share.x_block : share.x_block + nx]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = blurred(share.share) / (here * share.share)  # no share of its own: as much as may be
    factor = np.clip(np.where(np.isfinite(ratio), ratio, LIMITS[1]), *LIMITS).astype(np.float32)
    return Ease(x_block=share.x_block, y_block=share.y_block, factor=factor)


def blurred(blocks: Numbers) -> Numbers:
    """Gaussian blur of a map of blocks, (ny, nx), with nothing beyond its edges; sums in one fixed order."""
    reach = int(TRUNCATE * SIGMA_PX / BLOCK_PX + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * BLOCK_PX / SIGMA_PX) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(blocks, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)])
        size = blocks.shape[axis]
        parts = [weight * np.take(padded, range(i, i + size), axis=axis) for i, weight in enumerate(kernel)]
        blocks = np.sum(np.stack(parts), axis=0)
    return blocks


def steepness(shares: Sequence[Share]) -> float:
    """How much a tile's share changes from one block to the next where it has not all of the weight: 90th percentile,
    so that neither the smooth middle nor a corner of the mosaic's outline decides."""
    steps = [np.empty(0)]
    for share in shares:
        for axis in (0, 1):
            a, b = np.delete(share.share, -1, axis), np.delete(share.share, 0, axis)
            steps.append(np.abs(a - b)[((a < 1.0) | (b < 1.0)) & (a + b > 0.0)])
    every = np.concatenate(steps)
    return float(np.percentile(every, 90)) if every.size else 0.0


@njit(cache=True, nogil=True)
def ease_of(factor: Pixels, x_block: int, y_block: int, x0: int, y: int, out: Numbers) -> None:
    """out = the factor at the grid's pixels (x0 ..., y): linear between the middles of blocks, as at the nearest
    beyond the outermost; 1 without factors. A function of the pixel alone."""
    rows, columns = factor.shape
    if rows == 0 or columns == 0:
        out[:] = 1.0
        return
    v = min(max((y + 0.5) / BLOCK_PX - 0.5 - y_block, 0.0), rows - 1.0)
    j = min(int(v), max(0, rows - 2))
    below, under = v - j, min(j + 1, rows - 1)
    for i in range(len(out)):
        u = min(max((x0 + i + 0.5) / BLOCK_PX - 0.5 - x_block, 0.0), columns - 1.0)
        k = min(int(u), max(0, columns - 2))
        right, beside = u - k, min(k + 1, columns - 1)
        upper = factor[j, k] * (1.0 - right) + factor[j, beside] * right
        lower = factor[under, k] * (1.0 - right) + factor[under, beside] * right
        out[i] = upper * (1.0 - below) + lower * below
