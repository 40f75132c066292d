"""Planes through a frame's blocks: their equations, eliminated from those of what frames share, and robust fits.

Knows blocks (m) of n frames and C channels, and a plane's basis (m, 3): 1 and the place in x and y; never what the
levels mean. float64 throughout; a block of weight 0 has no data.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROUNDS = 3
HUBER = 2.0
LEAST_BLOCKS = 12
FLATTEST = 1e-9
"""Of blocks on a line the determinant over that of independent axes; they determine no plane."""


@njit(cache=True, nogil=True)
def add_frames(
    frames: I64, node: I64, share: F64, transparency: F64, light: F64, dimmed: F64, basis: F64, value: F64, weight: F64,
    normal: F64, target: F64,
) -> None:  # fmt: skip
    """Adds what some frames say to normal (C, N, N) and target (C, N), each frame's plane eliminated a channel.

    A block of frame i is transparency (n, C) times the nodes `node` (n, m, 4) that it lies between, by their `share`
    (n, m, 4), plus light (n, C) times the terms' `dimmed` (m, T), plus the frame's plane; value and weight (n, C, m).
    The terms are the last T of N. A frame with fewer than LEAST_BLOCKS blocks, or with all on a line, says nothing.
    """
    corners, terms = node.shape[2], dimmed.shape[1]
    nodes = normal.shape[1] - terms
    place, part = np.empty(corners + terms, np.int64), np.empty(corners + terms)
    place[corners:] = nodes + np.arange(terms)
    for i in frames:
        for k in range(normal.shape[0]):
            own, flat = np.zeros((3, 3)), np.zeros(3)
            if not _own_plane(value[i, k], weight[i, k], basis, own, flat):
                continue
            mixed, sums, right = np.zeros((3, nodes + terms)), normal[k], target[k]
            for b in range(len(basis)):
                w = weight[i, k, b]
                if w > 0.0:
                    place[:corners] = node[i, b]
                    part[:corners] = share[i, b] * transparency[i, k]
                    part[corners:] = dimmed[b] * light[i, k]
                    _add_row(place, part, value[i, k, b], w, basis[b], sums, right, mixed)
            _eliminate(own, flat, mixed, sums, right)


@njit(cache=True, nogil=True)
def _own_plane(value: F64, weight: F64, basis: F64, own: F64, flat: F64) -> bool:
    """Normal equations (3, 3), (3,) of the plane through a frame's blocks; False if they do not determine one."""
    for b in range(len(basis)):
        for p in range(3):
            flat[p] += weight[b] * basis[b, p] * value[b] if weight[b] > 0.0 else 0.0
            for q in range(3):
                own[p, q] += weight[b] * basis[b, p] * basis[b, q]
    enough = (weight > 0.0).sum() >= LEAST_BLOCKS
    return enough and _cofactors(own, np.empty((3, 3))) > FLATTEST * own[0, 0] * own[1, 1] * own[2, 2]


@njit(cache=True, nogil=True)
def _add_row(
    place: I64, part: F64, value: float, weight: float, basis: F64, normal: F64, target: F64, mixed: F64
) -> None:
    """Adds a sparse row (place, part (p,)) to normal (N, N) and target (N,), and its products with the frame's plane
    basis (3,) to mixed (3, N).
    """
    for k in range(len(place)):
        scaled = weight * part[k]
        target[place[k]] += scaled * value
        for j in range(len(place)):
            normal[place[k], place[j]] += scaled * part[j]
        for p in range(3):
            mixed[p, place[k]] += scaled * basis[p]


@njit(cache=True, nogil=True)
def _eliminate(own: F64, flat: F64, mixed: F64, normal: F64, target: F64) -> None:
    """Takes a frame's plane (equations own (3, 3), flat (3,), mixed (3, N)) out of normal (N, N) and target (N,)."""
    m = np.empty((3, 3))
    m /= _cofactors(own, m)
    for k in range(len(target)):
        x, y, z = mixed[0, k], mixed[1, k], mixed[2, k]
        a = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z
        b = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z
        c = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z
        target[k] -= a * flat[0] + b * flat[1] + c * flat[2]
        row = normal[k]
        for j in range(len(row)):
            row[j] -= a * mixed[0, j] + b * mixed[1, j] + c * mixed[2, j]


@njit(cache=True, nogil=True)
def fit_planes(value: F64, weight: F64, basis: F64, planes: F64, off: F64) -> None:
    """Robust planes (n, C, 3) through every frame's blocks, value and weight (n, C, m), put into `planes`; residuals
    over their noise (n, C, m) into `off`. The level is NaN where there are no data.
    """
    for i in range(value.shape[0]):
        for k in range(value.shape[1]):
            _fit_plane(value[i, k], weight[i, k], basis, planes[i, k], off[i, k])


@njit(cache=True, nogil=True)
def _fit_plane(value: F64, weight: F64, basis: F64, plane: F64, off: F64) -> None:
    """Robust plane (3,) through a frame's blocks (m,), and their residuals over their noise; NaN level without data.

    Where they determine no plane, their median level and no slope.
    """
    good = np.flatnonzero(weight > 0.0)
    if not _own_plane(value, weight, basis, np.zeros((3, 3)), np.zeros(3)):
        plane[0] = np.median(value[good]) if len(good) > 0 else np.nan
        for b in good:
            off[b] = (value[b] - plane[0]) * math.sqrt(weight[b])
        return
    pull, size, inverse = np.ones(len(good)), np.empty(len(good)), np.empty((3, 3))
    for _ in range(ROUNDS):
        normal, right = np.zeros((3, 3)), np.zeros(3)
        for j in range(len(good)):
            b = good[j]
            w = weight[b] * pull[j]
            for p in range(3):
                right[p] += w * basis[b, p] * value[b]
                for q in range(3):
                    normal[p, q] += w * basis[b, p] * basis[b, q]
        determinant = _cofactors(normal, inverse)
        for p in range(3):
            plane[p] = (inverse[p] * right).sum() / determinant
        for j in range(len(good)):
            b = good[j]
            there = basis[b, 0] * plane[0] + basis[b, 1] * plane[1] + basis[b, 2] * plane[2]
            off[b] = (value[b] - there) * math.sqrt(weight[b])
            size[j] = abs(off[b])
        scale = max(1.4826 * float(np.median(size)), 1e-12) * HUBER
        for j in range(len(good)):
            pull[j] = min(1.0, scale / max(size[j], 1e-12))


@njit(cache=True, nogil=True)
def _cofactors(a: F64, out: F64) -> float:
    """Cofactors (3, 3) of a symmetric matrix, which are its inverse times its determinant; returns that."""
    for p in range(3):
        for q in range(3):
            i, j, k, n = (p + 1) % 3, (p + 2) % 3, (q + 1) % 3, (q + 2) % 3
            out[p, q] = a[i, k] * a[j, n] - a[i, n] * a[j, k]
    return float(a[0, 0] * out[0, 0] + a[0, 1] * out[0, 1] + a[0, 2] * out[0, 2])
