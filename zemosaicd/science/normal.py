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

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FRAME_UNKNOWNS = 6
DAMPING = 1e-9
DENSE = 1500
"""Unknowns up to which a dense factor is the faster one: most of them are coupled then."""
WHOLE = 1 << 23
"""Numbers of a coupling matrix that may be kept with all its zeros: 64 MB."""
SPARSE_COST = 8.0
"""Time of a multiplication in a product of sparse blocks, in those of a dense matrix."""


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
    """Frames or stars, n with k unknowns each: derivatives (m, 2, k) of whom (m,), normal blocks (n, k, k), and the
    right-hand sides (n k, 1 + q) of the residual and of the lenses.
    """

    derivatives: F64
    of: I64
    own: F64
    right: F64

    @property
    def unknowns(self) -> int:
        """n k."""
        return len(self.right)


def solve(e: Equations) -> tuple[F64, F64, F64]:
    """Steps of the frames (F, 6), the stars (S, 2) and the lenses (q,).

    What nothing holds (the gauge without a catalogue, a frame or a star that is not observed) stays where it is, by a
    little damping.
    """
    frames = _side(e.frame, e.frame_of, e.prior, e.prior_step, e)
    stars = _side(e.star, e.star_of, np.repeat(e.tie[:, np.newaxis], 2, axis=1), e.tie_step, e)
    inner, outer, whole = _order(frames, stars)
    d_inner, d_outer, d_lens = _eliminated(inner, outer, e.lens, e.residual, whole)
    d_frame, d_star = (d_inner, d_outer) if inner is frames else (d_outer, d_inner)
    return d_frame.reshape(e.prior.shape), d_star.reshape(e.tie_step.shape), d_lens


def squares(derivatives: F64, of: I64, count: int) -> F64:
    """Each frame's (or star's) own normal matrix (n, k, k) from derivatives (m, 2, k)."""
    return _products(derivatives, derivatives, of, count)


def _side(derivatives: F64, of: I64, prior: F64, prior_step: F64, e: Equations) -> _Side:
    count, k = prior.shape
    own = squares(derivatives, of, count)
    own += np.eye(k) * (prior + _little(own))[:, :, np.newaxis]
    by = np.column_stack([e.residual, e.lens]).reshape(len(of), 2, -1)
    right = _products(derivatives, by, of, count)
    right[:, :, 0] += prior * prior_step
    return _Side(derivatives, of, own, right.reshape(count * k, -1))


def _products(left: F64, right: F64, of: I64, count: int) -> F64:
    """Sums (count, k, q) of left^T right over the observations (m, 2, k) and (m, 2, q) of each."""
    one, other = (np.ascontiguousarray(side.transpose(1, 2, 0)) for side in (left, right))
    sums = np.empty((count, len(one[0]), len(other[0])))
    for i, j in np.ndindex(*sums.shape[1:]):
        if left is right and j < i:
            sums[:, i, j] = sums[:, j, i]
        else:
            sums[:, i, j] = np.bincount(of, one[0, i] * other[0, j] + one[1, i] * other[1, j], count)
    return sums


def _order(frames: _Side, stars: _Side) -> tuple[_Side, _Side, bool]:
    """(who is eliminated, who is solved at once, whether what couples them is kept with its zeros): the cheapest."""
    ways = []
    for inner, outer in ((frames, stars), (stars, frames)):
        factor = float(outer.unknowns) ** 3 / 3
        pairs = float((np.bincount(inner.of).astype(np.float64) ** 2).sum())
        sizes = outer.own.shape[1] ** 2 * inner.own.shape[1]
        ways.append((SPARSE_COST * pairs * sizes + factor, inner, outer, False))
        if inner.unknowns * outer.unknowns <= WHOLE and outer.unknowns <= DENSE:
            ways.append((float(inner.unknowns) * outer.unknowns**2 + factor, inner, outer, True))
    return min(ways, key=lambda way: way[0])[1:]


def _eliminated(inner: _Side, outer: _Side, lens: F64, residual: F64, whole: bool) -> tuple[F64, F64, F64]:
    """Steps of the side that is eliminated, of the other, and of the lenses."""
    root = np.linalg.inv(np.linalg.cholesky(inner.own))
    k = _coupling(inner, outer, root) if whole else _sparse_coupling(inner, outer, root)
    right = (root @ inner.right.reshape(*root.shape[:2], -1)).reshape(inner.right.shape)
    kept = _diagonal(outer.own, whole) - k.T @ k
    both = outer.right - k.T @ right
    solved, border = _solved(kept, both), both[:, 1:]
    left = lens.T @ lens - right[:, 1:].T @ right[:, 1:] - border.T @ solved[:, 1:]
    left += np.eye(len(left)) * _little(left)
    known = lens.T @ residual - right[:, 1:].T @ right[:, 0] - border.T @ solved[:, 0]
    d_lens = np.asarray(np.linalg.solve(left, known), np.float64)
    d_outer = solved[:, 0] - solved[:, 1:] @ d_lens
    rest = (right[:, 0] - k @ d_outer - right[:, 1:] @ d_lens).reshape(*root.shape[:2], 1)
    return (root.transpose(0, 2, 1) @ rest).reshape(-1), d_outer, d_lens


def _solved(matrix: Any, known: F64) -> F64:
    """Solution of a symmetric positive definite system given as a matrix with or without its zeros."""
    if isinstance(matrix, np.ndarray):
        return np.asarray(np.linalg.solve(matrix, known))
    from scipy.linalg import cho_factor, cho_solve
    from scipy.sparse.linalg import splu

    if matrix.shape[0] <= DENSE:
        return np.asarray(cho_solve(cho_factor(matrix.toarray(), overwrite_a=True), known))
    lu = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return np.asarray(lu.solve(known))


def _coupling(inner: _Side, outer: _Side, root: F64) -> F64:
    """What couples the sides (unknowns of the inner, of the outer), with its zeros, after `root` (n, k, k)."""
    (n, k, _), (others, q, _) = inner.own.shape, outer.own.shape
    blocks = _products(inner.derivatives, outer.derivatives, inner.of * others + outer.of, n * others)
    rows = blocks.reshape(n, others, k, q).transpose(0, 2, 1, 3).reshape(n, k, others * q)
    return np.asarray((root @ rows).reshape(n * k, others * q))


def _sparse_coupling(inner: _Side, outer: _Side, root: F64) -> Any:
    """The same in scipy's sparse blocks."""
    order = np.lexsort((outer.of, inner.of))
    blocks = root[inner.of[order]] @ (inner.derivatives[order].transpose(0, 2, 1) @ outer.derivatives[order])
    starts = np.concatenate([[0], np.cumsum(np.bincount(inner.of, minlength=len(root)))])
    return _blocks(blocks, outer.of[order], starts, (inner.unknowns, outer.unknowns))


def _diagonal(blocks: F64, whole: bool) -> Any:
    """The matrix with these blocks (n, q, q) on its diagonal, with or without its zeros."""
    n, q, _ = blocks.shape
    if not whole:
        return _blocks(blocks, np.arange(n), np.arange(n + 1), (n * q, n * q))
    matrix = np.zeros((n, q, n, q))
    matrix[np.arange(n), :, np.arange(n), :] = blocks
    return matrix.reshape(n * q, n * q)


def _blocks(data: F64, column: I64, starts: I64, shape: tuple[int, int]) -> Any:
    """A sparse matrix of blocks. scipy is imported where it is needed: that takes a third of a second, as long as a
    night of fifty frames takes to be solved without it.
    """
    from scipy import sparse

    return sparse.bsr_matrix((data, column, starts), shape=shape)


def _little(matrix: F64) -> float:
    return DAMPING * max(float(matrix.max(initial=0.0)), 1e-30)
