"""The alpha of a master tile: what its frames saw, counted as it is stacked, and for an alt-az tile its mask.

Every tile's ALPHA rises from the edges of its data. Where the gate is open (M2, M3) the edges are those of what is
covered well, so that corners which the turning field showed to a few frames only do not fringe the mosaic. The mask
travels as this ALPHA alone, once and soft (V5): pixels keep their values, but those it leaves nothing of become NaN.
The grid, and so the WCS, is untouched by it; only who asks for it gets empty margins cut off.

What is hidden from the mosaic is not hidden from Phase 5: the picture without the mask stays in the tile, as UNMASKED.
Turned fields overlap in their weakly covered parts above all, and tiles that share a star or none there would be
brought to levels of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core import mount
from zemosaicd.core.modes import mode_named
from zemosaicd.model import LogNote, Plan, TileSpec
from zemosaicd.science import combine, coverage
from zemosaicd.work.fitswrite import FitsImage, FitsWriter, ImageSpec, write_fits
from zemosaicd.work.jobs import MaskSettings

CHUNK_ROWS = 256
LEAST_KEPT = 0.1
"""A mask that leaves less of a tile's pixels is worse than none (V8)."""


def gate(plan: Plan, spec: TileSpec) -> bool:
    """Whether a tile gets a mask: the session's clean-up is on, its group is ALT_AZ (M3), its mode masks tiles (V8)."""
    return mode_named(plan.mode).masks_tiles and mount.tile_cleanup(plan.altaz_cleanup, spec.mount_mode)


class TileMask:
    """What was seen of a tile, band by band, and then its alpha.

    `covered` (H, W): pixels with data; `gated`: it may get a mask; `trim`: margins that are to be cut off.
    """

    def __init__(self, plan: Plan, spec: TileSpec, frames: int, settings: MaskSettings) -> None:
        self._tile, self._frames, self.gated = spec.tile, frames, gate(plan, spec)
        self._trims = settings.edge_trim and mode_named(plan.mode).masks_tiles
        self.trim = coverage.Trim()
        self._rule = coverage.MaskRule(
            least_frames=settings.min_coverage_abs,
            least_share=settings.min_coverage_frac,
            opening_px=settings.morph_open_px,
            empty_alpha=settings.nanize_threshold,
            nothing_alpha=settings.alpha_soft_threshold,
        )
        shape = spec.grid.height, spec.grid.width
        self.covered = np.zeros(shape, np.bool_)
        self._looked: NDArray[np.uint16] = np.zeros(shape if self.gated else (0, 0), np.uint16)

    def add(self, row0: int, band: combine.Combined) -> None:
        """Takes up a band. Frames count by their footprint, rejected samples too: a star is no gap (V2)."""
        seen = band.count > 0
        rows = slice(row0, row0 + len(seen))
        self.covered[rows] = seen
        if self.gated:
            self._looked[rows] = np.where(seen, band.count + band.lost, 0)

    def write(self, writer: FitsWriter, feather_px: float) -> list[LogNote]:
        """Writes ALPHA, empties what the mask hides, and tells (V7)."""
        mask, notes = self._mask(feather_px) if self.gated else (None, [])
        alpha = coverage.edge_weight(self.covered, feather_px) if mask is None else mask.alpha
        writer.write("ALPHA", 0, alpha)
        if mask is not None:
            writer.fill("", mask.hidden, np.nan)
            writer.fill("WEIGHT", mask.hidden, 0.0)
        if self._trims:
            self.trim = coverage.trim_of(self.covered & (alpha > 0))
        stats = {
            "min": round(float(alpha.min()), 4),
            "max": round(float(alpha.max()), 4),
            "nonzero_frac": round(np.count_nonzero(alpha) / alpha.size, 4),
        }
        applied, level = mask is not None, "info" if self.gated else "debug"
        threshold = 0.0 if mask is None else mask.threshold
        return [
            *notes,
            LogNote(level=level, event="ALPHA_STATS", fields={"tile_id": self._tile, **stats}),
            LogNote(
                level=level,
                event="MT_PIPELINE",
                fields={"tile_id": self._tile, "altaz_cleanup": applied, "threshold": threshold},
            ),
            LogNote(
                level="debug",
                event="MT_PIPELINE_FLAGS",
                fields={"tile_id": self._tile, "altaz_cleanup": applied, "edge_trim": bool(self.trim)},
            ),
        ]

    def _mask(self, feather_px: float) -> tuple[coverage.Mask | None, list[LogNote]]:
        """The mask, or None and why there is none."""
        reason = coverage.unusable(self._looked, self.covered.shape)
        if reason:
            fields: dict[str, object] = {"tile_id": self._tile, "reason": reason}
            return None, [LogNote(level="warning", event="MT_COVERAGE_IGNORED", fields=fields)]
        mask = coverage.mask_of(self._looked, self._frames, self._rule, feather_px)
        if mask.kept < LEAST_KEPT:
            fields = {"tile_id": self._tile, "kept_frac": round(mask.kept, 4)}
            return None, [LogNote(level="warning", event="MT_MASK_TOO_STRONG", fields=fields)]
        return mask, []


def trimmed(path: Path, images: Sequence[ImageSpec], trim: coverage.Trim, tile: int) -> LogNote:
    """Writes a tile again without its empty margins; `images` as it was written. CRPIX moves with them (V5)."""
    height, width = images[0].shape[-2:]
    rows, columns = range(trim.top, height - trim.bottom), slice(trim.left, width - trim.right)
    smaller = [
        replace(
            image,
            shape=(*image.shape[:-2], len(rows), columns.stop - columns.start),
            wcs=image.wcs and replace(image.wcs, x_px=image.wcs.x_px - trim.left, y_px=image.wcs.y_px - trim.top),
        )
        for image in images
    ]
    with write_fits(path, smaller, overwrite=True, mode=0o600) as writer:
        for image in images:
            with FitsImage(path, image.name) as whole:
                for first in range(rows.start, rows.stop, CHUNK_ROWS):
                    band = whole.rows(first, min(first + CHUNK_ROWS, rows.stop))
                    writer.write(image.name, first - trim.top, band[..., columns])
    return LogNote(level="info", event="MT_EDGE_TRIM", fields={"tile_id": tile, **asdict(trim)})
