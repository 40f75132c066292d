"""Least squares over pairs: n nodes of m unknowns each, observations that compare two of them; direct, without scipy.

The nodes are ordered along the mosaic, so that the normal matrix is a band (as wide as a column of tiles); its Cholesky
factor costs unknowns x width^2, linear in the number of tiles of a mosaic of given height.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.parts import Parts

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def parts_of(first: Sequence[int], second: Sequence[int], n: int) -> tuple[int, I64]:
    """How many connected parts n nodes fall into under these links, and the part of each, numbered by first node."""
    parts = Parts(n)
    for a, b in zip(first, second, strict=True):
        parts.join(a, b)
    label, members = np.empty(n, np.int64), parts.members()
    for number, mine in enumerate(members):
        label[mine] = number
    return len(members), label


def order_along(x: F64, y: F64) -> I64:
    """Position int64 (n,) of each node (x, y in any unit) in an order along the longer side of what they cover."""
    along = np.lexsort((y, x)) if np.ptp(x) >= np.ptp(y) else np.lexsort((x, y))
    place = np.empty(len(x), np.int64)
    place[along] = np.arange(len(x))
    return place


def solve_pairs(own: F64, first: I64, second: I64, cross: F64, right: F64, place: I64) -> F64:
    """Solves a symmetric positive definite system of n x n blocks of m x m; returns (n, m).

    `own` (n, m, m): the blocks on the diagonal; `cross` (p, m, m): block (first, second) of each pair, added up where a
    pair comes twice; `right` (n, m); `place` (n,): the order of elimination. Raises ValueError if it is not definite.
    """
    n, m = right.shape
    width = m * (int(np.abs(place[first] - place[second]).max(initial=0)) + 1)
    band = np.zeros((n * m, width + 1))
    vector = np.zeros(n * m)
    _assemble(own, first, second, cross, right, place, band, vector)
    if not _cholesky(band):
        raise ValueError("the overlaps leave a tile open")
    _substitute(band, vector)
    return vector.reshape(n, m)[place]


@njit(cache=True, nogil=True)
def _assemble(own: F64, first: I64, second: I64, cross: F64, right: F64, place: I64, band: F64, vector: F64) -> None:
    """Lower triangle by rows: band[i, width + j - i] is element (i, j)."""
    n, m = right.shape
    width = band.shape[1] - 1
    for node in range(n):
        at = place[node] * m
        for i in range(m):
            vector[at + i] = right[node, i]
            for j in range(i + 1):
                band[at + i, width + j - i] += own[node, i, j]
    for p in range(len(first)):
        a, b = place[first[p]] * m, place[second[p]] * m
        for i in range(m):
            for j in range(m):
                row, column = a + i, b + j
                if row > column:
                    band[row, width + column - row] += cross[p, i, j]
                else:
                    band[column, width + row - column] += cross[p, i, j]


@njit(cache=True, nogil=True)
def _cholesky(band: F64) -> bool:
    """The factor in place; False if a pivot is not positive."""
    n, width = band.shape[0], band.shape[1] - 1
    for i in range(n):
        for j in range(max(0, i - width), i + 1):
            total = band[i, width + j - i]
            for k in range(max(0, i - width, j - width), j):
                total -= band[i, width + k - i] * band[j, width + k - j]
            if j < i:
                band[i, width + j - i] = total / band[j, width]
            elif total > 0.0:
                band[i, width] = np.sqrt(total)
            else:
                return False
    return True


@njit(cache=True, nogil=True)
def _substitute(band: F64, vector: F64) -> None:
    """Forward and back substitution in place."""
    n, width = band.shape[0], band.shape[1] - 1
    for i in range(n):
        for k in range(max(0, i - width), i):
            vector[i] -= band[i, width + k - i] * vector[k]
        vector[i] /= band[i, width]
    for i in range(n - 1, -1, -1):
        vector[i] /= band[i, width]
        for k in range(max(0, i - width), i):
            vector[k] -= band[i, width + k - i] * vector[i]
