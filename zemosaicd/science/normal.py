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
    return _sums(np.einsum("mri,mrj->mij", derivatives, derivatives), of, count)


def _side(derivatives: F64, of: I64, prior: F64, prior_step: F64, e: Equations) -> _Side:
    count, k = prior.shape
    own = squares(derivatives, of, count)
    own += np.eye(k) * (prior + _little(own))[:, :, np.newaxis]
    by = np.column_stack([e.residual, e.lens]).reshape(len(of), 2, -1)
    right = _sums(np.einsum("mrk,mrq->mkq", derivatives, by), of, count)
    right[:, :, 0] += prior * prior_step
    return _Side(derivatives, of, own, right.reshape(count * k, -1))


def _sums(values: F64, of: I64, count: int) -> F64:
    """Sums (count, ...) of the values (m, ...) of each."""
    columns = values.reshape(len(values), -1).T
    sums = np.array([np.bincount(of, column, count) for column in columns]).reshape(len(columns), count)
    return np.ascontiguousarray(sums.T).reshape(count, *values.shape[1:])


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
    coupling = root[inner.of] @ np.einsum("mri,mrj->mij", inner.derivatives, outer.derivatives)
    k = _matrix(coupling, inner.of, outer.of, (inner.unknowns, outer.unknowns), whole)
    right = (root @ inner.right.reshape(*root.shape[:2], -1)).reshape(inner.right.shape)
    each = np.arange(len(outer.own))
    kept = _matrix(outer.own, each, each, (outer.unknowns, outer.unknowns), whole) - k.T @ k
    known = outer.right - k.T @ right
    solved, border = _solved(kept, known), known[:, 1:]
    left = lens.T @ lens - right[:, 1:].T @ right[:, 1:] - border.T @ solved[:, 1:]
    left += np.eye(len(left)) * _little(left)
    d_lens = np.linalg.solve(left, lens.T @ residual - right[:, 1:].T @ right[:, 0] - border.T @ solved[:, 0])
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


def _matrix(blocks: F64, row: I64, column: I64, shape: tuple[int, int], whole: bool) -> Any:
    """The matrix of blocks (m, r, c) at the given rows and columns of blocks: an array, or scipy's sparse blocks, which
    take a third of a second to import, as long as a night of fifty frames takes to be solved without them.
    """
    _, r, c = blocks.shape
    rows, columns = shape[0] // r, shape[1] // c
    if whole:
        sums = _sums(blocks, row * columns + column, rows * columns).reshape(rows, columns, r, c)
        return np.ascontiguousarray(sums.transpose(0, 2, 1, 3)).reshape(shape)
    from scipy import sparse

    order = np.lexsort((column, row))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return sparse.bsr_matrix((blocks[order], column[order], starts), shape=shape)


def _little(matrix: F64) -> float:
    return DAMPING * max(float(matrix.max(initial=0.0)), 1e-30)
