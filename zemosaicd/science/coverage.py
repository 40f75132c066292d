"""What was seen, and how often -> weights that fade towards their edges.

All masks here are True where there is data. Distances are exact Euclidean ones, in pixels, between pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRule:
    """What coverage is enough (V4): `least_frames`, never more than were stacked, and `least_share` of the best seen.

    `opening_px`: what a disc of this radius does not fit into is removed. Alpha below `nothing_alpha` counts as
    nothing, and where it is `empty_alpha` or less the pixel is emptied (V8).
    """

    least_frames: float = 3.0
    least_share: float = 0.4
    opening_px: int = 3
    empty_alpha: float = 0.001
    nothing_alpha: float = 0.001

    def threshold(self, most: float, frames: int) -> float:
        """Frames that a pixel must have been seen by; `most`: the best seen one's, of `frames` that were stacked."""
        return round(max(min(self.least_frames, frames), self.least_share * most), 6)  # 0.55 * 100 is not 55


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """`alpha` float32 (H, W) 0..1, never NaN; `hidden` (H, W): pixels to be emptied; `threshold` in frames."""

    alpha: Pixels
    hidden: Flags
    threshold: float

    @property
    def kept(self) -> float:
        """Share of the tile's pixels that stay and count."""
        return float(np.mean((self.alpha > 0) & ~self.hidden))


def mask_of(coverage: NDArray[np.generic], frames: int, rule: MaskRule, feather_px: float) -> Mask:
    """The mask of a usable coverage map (H, W) of `frames` frames: enough, opened, feathered by distance (V4)."""
    threshold = rule.threshold(float(np.max(coverage)), frames)
    enough = np.greater(coverage, 0) & np.greater_equal(coverage, threshold)
    alpha = edge_weight(opened(enough, rule.opening_px), feather_px)
    hidden = alpha <= rule.empty_alpha
    return Mask(alpha=np.where(alpha < rule.nothing_alpha, np.float32(0.0), alpha), hidden=hidden, threshold=threshold)


TRIM_SHARE = 0.01
"""A row or column with data in no larger share of it is almost wholly invalid (V5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """How many rows and columns are cut off each side of a picture."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def __bool__(self) -> bool:
        return bool(self.top or self.bottom or self.left or self.right)


def trim_of(valid: Flags) -> Trim:
    """The rows and columns at the edges of a picture (H, W) that are almost wholly invalid; none if all are."""
    rows = np.flatnonzero(valid.mean(axis=1) > TRIM_SHARE)
    columns = np.flatnonzero(valid.mean(axis=0) > TRIM_SHARE)
    if not rows.size or not columns.size:
        return Trim()
    height, width = valid.shape
    return Trim(
        top=int(rows[0]), bottom=height - 1 - int(rows[-1]), left=int(columns[0]), right=width - 1 - int(columns[-1])
    )


def unusable(coverage: NDArray[np.generic], shape: tuple[int, int]) -> str:
    """Why a coverage map cannot be the mask of a picture of this shape (V6); "" if it can.

    It must be real numbers, one for each pixel, and never stretched to fit: of several planes none is the right one.
    """
    if coverage.dtype.kind not in "uif":
        return "non_float"
    if coverage.ndim != 2:
        return "ambiguous_footprint"
    if coverage.shape != shape:
        return "shape_mismatch"
    if not np.isfinite(coverage).all():
        return "non_finite"
    return "" if np.greater(coverage, 0).any() else "empty"


def opened(mask: Flags, radius_px: int) -> Flags:
    """The mask (H, W) where a disc of this radius, px, fits into it; beyond the picture it goes on as at its edge.

    Morphological opening by two distance transforms, whose cost does not grow with the radius.
    """
    if radius_px <= 0 or bool(mask.all()):
        return mask
    core = _distance(mask) > radius_px
    return mask & (_distance(~core) <= radius_px) if core.any() else core


def feather(distance_px: Pixels, feather_px: float) -> Pixels:
    """Weight float32 0..1 from the distance to the nearest pixel without data: 0 there, 1 from `feather_px` + 1 on.

    Smoothstep, so that it joins both ends without a kink; every pixel with data (distance >= 1) has a weight above 0.
    """
    t = np.clip(distance_px / np.float32(max(feather_px, 0.0) + 1.0), 0.0, 1.0).astype(np.float32)
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


def edge_weight(valid: Flags, feather_px: float) -> Pixels:
    """float32 (H, W) 0..1 for the feathered coadd: rises from every edge of the data, the image's own edge included."""
    return feather(_distance(np.pad(valid, 1))[1:-1, 1:-1], feather_px)


def _distance(valid: Flags) -> Pixels:
    """Distance of each pixel to the nearest one without data, float32 px; the image's diagonal if all have data."""
    if valid.size == 0 or bool(valid.all()):
        return np.full(valid.shape, np.float32(np.hypot(*valid.shape) + 1.0), np.float32)
    near = cv2.distanceTransform(valid.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    # Its last bit depends on how many threads opencv has (C7); a squared distance is a whole number.
    near *= near
    return np.sqrt(np.rint(near, out=near), out=near).astype(np.float32)
