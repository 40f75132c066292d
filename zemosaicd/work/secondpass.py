"""The second pass of Phase 5 (`mosaic.two_pass_enabled`): what each tile weighs is evened out before it is added.

The first pass adds the weights of the tiles as the mosaic will, by stripes of rows, and keeps of each tile its share of
the whole in blocks of 16 x 16 px: a 256th of its size, and no picture. From these follow the factors (science.easing)
that the coadd multiplies weights by.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zemosaicd.science.coadd import Sums
from zemosaicd.science.easing import BLOCK_PX, Share, block_sums, blurred, eased, shares_of, steepness
from zemosaicd.science.kernels import lanczos_table
from zemosaicd.work.coadding import Coadd, TileRows

F64 = NDArray[np.float64]

STRIPE_BLOCKS = 4


def second_pass(coadd: Coadd, threads: int) -> tuple[Coadd, dict[str, object]]:
    """The same coadd with its tiles' factors, and figures: how much a tile's share changes from one block to the next
    where tiles meet, before and after."""
    shares, seen = _shares(coadd, threads)
    there = blurred((seen > 0.0).astype(np.float64))
    eases = [eased(share, there) for share in shares]
    own = [replace(s, share=s.share * e.factor) for s, e in zip(shares, eases, strict=True)]
    total = np.zeros_like(seen)
    for share in own:
        total[_here(share)] += share.share
    after = [replace(s, share=s.share / np.where(total > 0.0, total, 1.0)[_here(s)]) for s in own]
    figures: dict[str, object] = {
        "tiles": len(shares),
        "steepness_before": round(steepness(shares), 4),
        "steepness_after": round(steepness(after), 4),
    }
    return replace(coadd, eases=eases), figures


def _here(share: Share) -> tuple[slice, slice]:
    ny, nx = share.share.shape
    return slice(share.y_block, share.y_block + ny), slice(share.x_block, share.x_block + nx)


def _shares(coadd: Coadd, threads: int) -> tuple[list[Share], F64]:
    """Every tile's share of the weight, and the weight of the whole, in blocks of the grid."""
    grid = coadd.grid
    rows, columns = -(-grid.height // BLOCK_PX), -(-grid.width // BLOCK_PX)
    shares = []
    for tile in coadd.tiles:
        x0, y0, x1, y1 = tile.placement.box
        x, y = max(0, x0) // BLOCK_PX, max(0, y0) // BLOCK_PX
        size = max(0, min(rows, -(-y1 // BLOCK_PX)) - y), max(0, min(columns, -(-x1 // BLOCK_PX)) - x)
        shares.append(Share(x_block=x, y_block=y, share=np.zeros(size)))
    seen = np.zeros((rows, columns))
    stripes = list(range(0, rows, STRIPE_BLOCKS))
    count = max(1, min(threads, len(stripes)))
    edges = [len(stripes) * i // count for i in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda i: _stripes(coadd, stripes[edges[i] : edges[i + 1]], shares, seen), range(count)))
    return shares, seen


def _stripes(coadd: Coadd, stripes: Sequence[int], shares: Sequence[Share], seen: F64) -> None:
    """Fills the rows of blocks of these stripes in the tiles' shares (which other stripes do not touch)."""
    grid, table = coadd.grid, lanczos_table()
    readers = [TileRows(t, c) for t, c in zip(coadd.tiles, coadd.corrections, strict=True)]
    sums = Sums(coadd.channels, STRIPE_BLOCKS * BLOCK_PX, grid.width)
    for first in stripes:
        row0, end = first * BLOCK_PX, min((first + STRIPE_BLOCKS) * BLOCK_PX, grid.height)
        sums.begin(row0, end - row0)
        total = np.zeros((coadd.channels, -(-(end - row0) // BLOCK_PX), seen.shape[1]))
        parts: list[tuple[Share, F64]] = []
        for reader, share in zip(readers, shares, strict=True):
            if reader.box[1] >= end or reader.over(row0) or not share.share.size:
                continue
            slab = reader.read(row0, end)
            if slab is None:
                continue
            reader.add(sums, slab, table)
            columns = share.x_block * BLOCK_PX, min(grid.width, (share.x_block + share.share.shape[1]) * BLOCK_PX)
            parts.append((share, block_sums(sums.weight[:, :, columns[0] : columns[1]])))
            total[:, :, share.x_block : share.x_block + share.share.shape[1]] += parts[-1][1]
            sums.clear(columns)
        last = first + total.shape[1]
        seen[first:last] = total.sum(axis=0)
        for share, own in parts:
            whole = total[:, :, share.x_block : share.x_block + share.share.shape[1]]
            low, high = max(first, share.y_block), min(last, share.y_block + share.share.shape[0])
            found = shares_of(own, whole)[low - first : high - first]
            share.share[low - share.y_block : high - share.y_block] = found
    for reader in readers:
        reader.close()
