"""A camera's distortion on arrays: ideal to recorded pixels and back (`model.Distortion` says what the numbers mean).

All arrays are float64, pixels 0-based.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zemosaicd.model import Distortion
from zemosaicd.science.kernels import bend
from zemosaicd.sphere import INVERSE_ROUNDS

F64 = NDArray[np.float64]


def lens_of(distortion: Distortion | None) -> F64:
    """What the kernels of `science.kernels` want to know of a distortion; empty for none."""
    if distortion is None:
        return np.zeros(0)
    d = distortion
    border = d.border_px
    head = (
        (d.width - 1) / 2, (d.height - 1) / 2, 2 / math.hypot(d.width, d.height), d.width / 2 + border,
        d.height / 2 + border,
    )  # fmt: skip
    return np.array([*head, *d.x_px, *d.y_px], np.float64)


def recorded(distortion: Distortion, x: F64, y: F64) -> tuple[F64, F64]:
    """Recorded positions (px, float64) of ideal ones, any shape; NaN for those beyond the sensor and its border."""
    at_x, at_y = np.array(x, np.float64).reshape(-1), np.array(y, np.float64).reshape(-1)
    bend(at_x, at_y, lens_of(distortion))
    return at_x.reshape(np.shape(x)), at_y.reshape(np.shape(y))


def ideal(distortion: Distortion, x: F64, y: F64) -> tuple[F64, F64]:
    """Ideal positions (px, float64) of recorded ones on the sensor, any shape; to 1e-9 px (`sphere.ideal_pixel`)."""
    u, v = x, y
    for _ in range(INVERSE_ROUNDS):
        a, b = recorded(distortion, u, v)
        dx, dy = x - a, y - b
        u, v = u + dx, v + dy
        if float(np.max(np.abs(dx) + np.abs(dy), initial=0.0)) < 1e-10:
            break
    return u, v


def terms(u: F64, v: F64) -> F64:
    """The polynomial's terms (n, 7) at normalised places u, v (n,)."""
    return np.stack([u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3], axis=1)
