"""One Gauss-Newton step of the joint solution: its normal equations, solved blockwise.

Frames and stars each have a few unknowns of their own, coupled only through the observations. One side is eliminated
block by block, whichever is cheaper: the frames of a deep field, the stars of a wide mosaic; the other is then solved
at once, bordered by the few unknowns of the lenses. The work is linear in the number of frames of a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import splu

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FRAME_UNKNOWNS = 6
DAMPING = 1e-9
DENSE = 1500
"""Unknowns up to which a dense factor is the faster one: most of them are coupled then."""
SPARSE_COST = 8.0
"""Time of a multiplication in a product of sparse blocks, in those of a dense factor."""


@dataclass(frozen=True, slots=True)
class Equations:
    """m weighted observations, two rows each: residual = frame df + star ds + lens dl, in units of their sigma.

    `frame` (m, 2, 6) and `star` (m, 2, 2) are derivatives by the unknowns of frame `frame_of` and of star `star_of`,
    `lens` (2m, q) those by the unknowns of all free lenses, `residual` (2m,). `prior` (F, 6) are the weights that hold
    the frames' unknowns to steps of `prior_step` (F, 6); `tie` (S,) and `tie_step` (S, 2) the same for the stars.
    """

    frame_of: I64
    star_of: I64
    frame: F64
    star: F64
    lens: F64
    residual: F64
    prior: F64
    prior_step: F64
    tie: F64
    tie_step: F64


@dataclass(frozen=True, slots=True)
class _Side:
    """Frames or stars: derivatives as a sparse matrix of blocks, normal blocks (n, k, k), right-hand side (n k,)."""

    rows: Any
    own: F64
    known: F64


def solve(e: Equations) -> tuple[F64, F64, F64]:
    """Steps of the frames (F, 6), the stars (S, 2) and the lenses (q,).

    What nothing holds (the gauge without a catalogue, a frame or a star that is not observed) stays where it is, by a
    little damping.
    """
    frames = _side(e.frame, e.frame_of, e.prior, e.prior_step, e.residual)
    stars = _side(e.star, e.star_of, np.repeat(e.tie[:, np.newaxis], 2, axis=1), e.tie_step, e.residual)
    if _cost(e.frame_of, e.prior.shape, e.tie_step.shape) <= _cost(e.star_of, e.tie_step.shape, e.prior.shape):
        d_frame, d_star, d_lens = _eliminated(frames, stars, e.lens, e.residual)
    else:
        d_star, d_frame, d_lens = _eliminated(stars, frames, e.lens, e.residual)
    return d_frame.reshape(e.prior.shape), d_star.reshape(e.tie_step.shape), d_lens


def squares(derivatives: F64, of: I64, count: int) -> F64:
    """Each frame's (or star's) own normal matrix (n, k, k) from derivatives (m, 2, k)."""
    k = derivatives.shape[2]
    rows = _blocks(derivatives, of, count)
    product = (rows.T @ rows).tobsr((k, k))
    result = np.zeros((count, k, k))
    result[product.indices] = product.data  # block diagonal: a block's column is its row
    return result


def _side(derivatives: F64, of: I64, prior: F64, prior_step: F64, residual: F64) -> _Side:
    count, k = prior.shape
    rows = _blocks(derivatives, of, count)
    own = squares(derivatives, of, count)
    own += np.eye(k) * (prior + _little(own))[:, :, np.newaxis]
    return _Side(rows, own, rows.T @ residual + (prior * prior_step).reshape(-1))


def _cost(of: I64, inner: tuple[int, ...], outer: tuple[int, ...]) -> float:
    """Multiplications that eliminating the inner side takes; shapes are (number, unknowns of each)."""
    pairs = float((np.bincount(of, minlength=inner[0]).astype(np.float64) ** 2).sum())
    return SPARSE_COST * pairs * outer[1] ** 2 * inner[1] + float(outer[0] * outer[1]) ** 3 / 3


def _eliminated(inner: _Side, outer: _Side, lens: F64, residual: F64) -> tuple[F64, F64, F64]:
    """Steps of the side that is eliminated, of the other, and of the lenses."""
    numbers = np.arange(len(inner.own))
    root = _blocks(np.linalg.inv(np.linalg.cholesky(inner.own)), numbers, len(inner.own))
    k, k_lens, k_known = (root @ (inner.rows.T @ outer.rows), root @ (inner.rows.T @ lens), root @ inner.known)
    kept = _blocks(outer.own, np.arange(len(outer.own)), len(outer.own)) - k.T @ k
    border = outer.rows.T @ lens - k.T @ k_lens
    solved = _solved(kept, np.column_stack([outer.known - k.T @ k_known, border]))
    left = lens.T @ lens - k_lens.T @ k_lens - border.T @ solved[:, 1:]
    left += np.eye(len(left)) * _little(left)
    d_lens = np.linalg.solve(left, lens.T @ residual - k_lens.T @ k_known - border.T @ solved[:, 0])
    d_outer = solved[:, 0] - solved[:, 1:] @ d_lens
    return root.T @ (k_known - k @ d_outer - k_lens @ d_lens), d_outer, d_lens


def _solved(matrix: Any, known: F64) -> F64:
    """Solution of a symmetric positive definite system given as a sparse matrix."""
    if matrix.shape[0] <= DENSE:
        return np.asarray(cho_solve(cho_factor(matrix.toarray(), overwrite_a=True), known))
    lu = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return np.asarray(lu.solve(known))


def _blocks(data: F64, column: I64, columns: int) -> Any:
    """Sparse matrix with one dense block (r, c) a row of blocks, at the given column of blocks."""
    count, r, c = data.shape
    return sparse.bsr_matrix((data, column, np.arange(count + 1)), shape=(r * count, c * columns))


def _little(matrix: F64) -> float:
    return DAMPING * max(float(matrix.max(initial=0.0)), 1e-30)
