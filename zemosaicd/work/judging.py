"""Phase 5 of a sweep: what the other mega tiles do not confirm of one is left out of the band (D2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zemosaicd.model import FramePlan
from zemosaicd.science.coadd import Slab, linear
from zemosaicd.science.combine import HALO
from zemosaicd.science.outliers import COLUMNS, Judgement, Layer, outlying
from zemosaicd.science.tilesolve import TileCorrection


def judgement_of(frames: Sequence[FramePlan], reference: FramePlan) -> Judgement:
    """What noise tiles of these frames have beside that of the sky, in the reference's ADU: the median frame's."""
    noise, photon, scale = (
        np.array(values, np.float64)
        for values in zip(*((f.noise_adu, f.photon_adu, f.transparency) for f in frames), strict=True)
    )
    return Judgement(
        photon=np.median(photon * scale / np.square(noise), axis=0), pedestal=np.array(reference.sky_adu, np.float64)
    )


def judged(
    slabs: Sequence[Slab],
    shifts: Sequence[tuple[int, int]],
    corrections: Sequence[TileCorrection],
    rows: tuple[int, int],
    width: int,
    judgement: Judgement,
) -> list[Slab]:
    """The slabs, that have HALO rows more on either side, cut to `rows` of the grid: NaN where they are left out.

    `shifts`: the grid's column and row of each tile's first pixel. A slab that lies outside `rows` has no row left.
    """
    layers = [
        Layer(pixels=s.pixels, weight=s.weight, row=s.row0 + y, column=x, change=linear(c))
        for s, (x, y), c in zip(slabs, shifts, corrections, strict=True)
    ]
    cut = []
    for slab, layer, out in zip(slabs, layers, outlying(layers, rows, width, judgement), strict=True):
        top, bottom = max(rows[0], layer.row), max(rows[0], min(rows[1], layer.row + slab.pixels.shape[1]))
        mine = slice(top - layer.row, bottom - layer.row)
        left, right = max(0, layer.column), min(width, layer.column + slab.pixels.shape[2])
        pixels = slab.pixels[:, mine].copy()
        part = pixels[:, :, left - layer.column : right - layer.column]
        part[:, out[top - rows[0] : bottom - rows[0], left:right]] = np.nan
        alpha = slab.alpha[mine] if slab.alpha.size else slab.alpha
        cut.append(
            replace(
                slab,
                pixels=pixels,
                weight=np.ascontiguousarray(slab.weight[:, mine]),
                alpha=alpha,
                row0=slab.row0 + mine.start,
            )
        )
    return cut


def judging_bytes(tiles: int, channels: int, rows: int) -> int:
    """Predicted memory of judging a band: samples, variances and codes of a window."""
    return tiles * (8 * channels + 1) * (rows + 2 * HALO) * (COLUMNS + 2 * HALO)
