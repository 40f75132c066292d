"""Pairing two lists of points one to one: each takes its nearest within a radius, and the nearer of two wins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def one_to_one(points: F64, known: F64, radius: float) -> tuple[I64, I64, I64]:
    """(indices of points, indices of their partners in known, indices of points that lost theirs to a nearer one).

    `points` (n, d), `known` (m, d) float64; distances below `radius`. The first two are in order of the first.
    """
    nothing = np.zeros(0, np.int64)
    if not len(points) or not len(known):
        return nothing, nothing, nothing
    found = cKDTree(known).query(points, distance_upper_bound=radius)
    distance, partner = np.asarray(found[0], np.float64), np.asarray(found[1], np.int64)
    order = np.argsort(distance, kind="stable")
    order = order[np.isfinite(distance[order])]
    _, first = np.unique(partner[order], return_index=True)
    chosen = np.sort(order[first])
    return chosen, partner[chosen], np.setdiff1d(order, chosen)
