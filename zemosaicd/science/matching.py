"""Pairing two lists of points one to one: each takes its nearest within a radius, and the nearer of two wins."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def one_to_one(points: F64, known: F64, radius: float) -> tuple[I64, I64, I64]:
    """(indices of points, indices of their partners in known, indices of points that lost theirs to a nearer one).

    `points` (n, d), `known` (m, d) float64; distances below `radius`. The first two are in order of the first.
    """
    distance, partner = nearest(points, known, radius)
    order = np.argsort(distance, kind="stable")
    order = order[np.isfinite(distance[order])]
    _, first = np.unique(partner[order], return_index=True)
    chosen = np.sort(order[first])
    return chosen, partner[chosen], np.setdiff1d(order, chosen)


def nearest(points: F64, known: F64, radius: float) -> tuple[F64, I64]:
    """Each point's distance (n,) to the nearest of `known`, and which that is; inf and -1 if none is below `radius`.

    `points` (n, d), `known` (m, d) float64. Those that lie in a strip about the point in the first coordinate are
    looked at: stars within seconds of arc, of thousands in a field.
    """
    if not len(points) or not len(known):
        return np.full(len(points), np.inf), np.full(len(points), -1, np.int64)
    order = np.argsort(known[:, 0], kind="stable")
    distance, place = _nearest(np.ascontiguousarray(points), np.ascontiguousarray(known[order]), radius)
    return distance, np.where(place < 0, place, order[place])


@njit(cache=True, nogil=True)
def _nearest(points: F64, known: F64, radius: float) -> tuple[F64, I64]:
    """What `nearest` says, of `known` sorted by its first column."""
    distance, place = np.full(len(points), np.inf), np.full(len(points), -1, np.int64)
    for i in range(len(points)):
        best = radius * radius
        k = np.searchsorted(known[:, 0], points[i, 0] - radius)
        while k < len(known) and known[k, 0] <= points[i, 0] + radius:
            r2 = 0.0
            for axis in range(points.shape[1]):
                r2 += (points[i, axis] - known[k, axis]) ** 2
            if r2 < best:
                best, place[i] = r2, k
            k += 1
        if place[i] >= 0:
            distance[i] = np.sqrt(best)
    return distance, place
