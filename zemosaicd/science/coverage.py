"""Footprints -> coverage -> alpha and edge weights.

Coverage counts, pixel by pixel, the frames that contribute in all channels (V1). `combine.Combined.count` is that map
of a stack; `add_coverage` makes it frame by frame where nothing is combined. All masks here are True where there is
data. Distances are exact Euclidean ones, in pixels, between pixel centres.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Flags = NDArray[np.bool_]
Pixels = NDArray[np.float32]
Counts = NDArray[np.uint16]


def valid_footprint(footprint: ArrayLike | None, shape: tuple[int, int]) -> Flags | None:
    """bool (H, W), True where there is data, from an alignment's footprint; None if it is absent or ambiguous (V2).

    astroalign's polarity: True (1) where there is NO data. (H, W), (H, W, C) or (C, H, W); bool, or numbers between 0
    and 1 that are cut at 0.5. A pixel lacks data if any channel does. Ambiguous: any other shape, other values.
    """
    if footprint is None:
        return None
    empty = np.asarray(footprint)
    if empty.dtype.kind not in "bufi":
        return None
    if empty.ndim == 3:
        fits = [axis for axis in (2, 0) if tuple(np.delete(empty.shape, axis)) == shape]
        if len(fits) != 1:
            return None
        empty = empty.max(axis=fits[0], initial=0)
    if empty.shape != shape or not bool(np.all((empty >= 0) & (empty <= 1))):
        return None
    return np.asarray(empty <= 0.5)


def shift_footprint(dy: float, dx: float, shape: tuple[int, int]) -> Flags:
    """bool (H, W): the overlap rectangle of an image of `shape` moved by (dy, dx) px over its own grid (V2)."""
    rows, columns = np.arange(shape[0]) - dy, np.arange(shape[1]) - dx
    inside_y, inside_x = (rows >= 0) & (rows <= shape[0] - 1), (columns >= 0) & (columns <= shape[1] - 1)
    return inside_y[:, np.newaxis] & inside_x[np.newaxis, :]


def add_coverage(coverage: Counts, seen: Flags) -> None:
    """Count one more frame where `seen` (H, W) or, in all channels, (H, W, C); coverage (H, W) in place (V1)."""
    coverage += (seen if seen.ndim == 2 else seen.all(axis=2)).astype(np.uint16)


def coverage_problem(coverage: ArrayLike | None, shape: tuple[int, int]) -> str | None:
    """Why a coverage map cannot be used with an image of `shape` (H, W): the reason's name in the log, or None (V6)."""
    if coverage is None:
        return "empty"
    values = np.asarray(coverage)
    if values.dtype.kind not in "bufi":
        return "non_float"
    if values.shape != shape:
        return "shape_mismatch"
    if values.size == 0:
        return "empty"
    if not bool(np.isfinite(values).all()):
        return "non_finite"
    return None if bool(values.max() > 0) else "empty"


def feather(distance_px: Pixels, feather_px: float) -> Pixels:
    """Weight float32 0..1 from the distance to the nearest pixel without data: 0 there, 1 from `feather_px` + 1 on.

    Smoothstep, so that it joins both ends without a kink; every pixel with data (distance >= 1) has a weight above 0.
    """
    t = np.clip(distance_px / np.float32(max(feather_px, 0.0) + 1.0), 0.0, 1.0).astype(np.float32)
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


def edge_weight(valid: Flags, feather_px: float) -> Pixels:
    """float32 (H, W) 0..1 for the feathered coadd: rises from every edge of the data, the image's own edge included."""
    return feather(_distance(np.pad(valid, 1))[1:-1, 1:-1], feather_px)


def coverage_threshold(coverage: Counts | Pixels, frames: int, minimum: float = 3.0, fraction: float = 0.4) -> float:
    """max(abs, frac * max coverage), abs clamped to the number of frames that were stacked (V4)."""
    return max(min(minimum, float(frames)), fraction * float(coverage.max(initial=0)))


def alpha_from_coverage(
    coverage: Counts | Pixels,
    frames: int,
    *,
    minimum: float = 3.0,
    fraction: float = 0.4,
    open_px: int = 3,
    feather_px: float = 0.0,
) -> Pixels:
    """Alpha float32 (H, W) 0..1 from a map that `coverage_problem` has passed (V4): 0 where coverage is too low.

    What reaches `coverage_threshold` is opened by a disc of `open_px` (0, 1: not; even: one more) and feathered
    inwards. The image's own edge is no edge of the mask: what is well covered up to the last row keeps alpha 1 there.
    """
    good = (coverage >= coverage_threshold(coverage, frames, minimum, fraction)).astype(np.uint8)
    if open_px > 1:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (open_px | 1, open_px | 1))
        good = cv2.morphologyEx(good, cv2.MORPH_OPEN, disc)
    return feather(_distance(good.astype(np.bool_)), feather_px)


def _distance(valid: Flags) -> Pixels:
    """Distance of each pixel to the nearest one without data, float32 px; the image's diagonal if all have data."""
    if valid.size == 0 or bool(valid.all()):
        return np.full(valid.shape, np.float32(np.hypot(*valid.shape) + 1.0), np.float32)
    near = cv2.distanceTransform(valid.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    # Its last bit depends on how many threads opencv has (C7); a squared distance is a whole number.
    return np.sqrt(np.rint(near * near)).astype(np.float32)
