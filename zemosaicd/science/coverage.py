"""Masks of what was seen -> weights that fade towards their edges.

All masks here are True where there is data. Distances are exact Euclidean ones, in pixels, between pixel centres.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Pixels = NDArray[np.float32]


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
    return np.sqrt(np.rint(near * near)).astype(np.float32)
