"""Least squares over pairs of tiles: the same answer as a dense solver's, at the cost of a band."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.science.pairsolve import order_along, parts_of, solve_pairs


@given(n=st.integers(1, 12), m=st.integers(1, 3), links=st.integers(0, 30), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_phase5_the_band_solver_agrees_with_a_dense_one(n: int, m: int, links: int, seed: int) -> None:
    """Any graph, any order of elimination, pairs that come twice (oracle: numpy.linalg.solve)."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, n, (2, links))
    keep = first != second
    first, second = first[keep], second[keep]
    own, dense = np.tile(0.1 * np.eye(m), (n, 1, 1)), np.zeros((n * m, n * m))
    cross = np.empty((len(first), m, m))
    for p, (i, j) in enumerate(zip(first, second, strict=True)):
        a, b = rng.normal(0, 1, (2, m, m))
        own[i] += a.T @ a
        own[j] += b.T @ b
        cross[p] = -a.T @ b
        dense[i * m : i * m + m, j * m : j * m + m] += cross[p]
        dense[j * m : j * m + m, i * m : i * m + m] += cross[p].T
    for i in range(n):
        dense[i * m : i * m + m, i * m : i * m + m] += own[i]
    right = rng.normal(0, 1, (n, m))
    place = order_along(rng.uniform(0, 10, n), rng.uniform(0, 3, n))
    found = solve_pairs(own, first, second, cross, right, place)
    np.testing.assert_allclose(found.ravel(), np.linalg.solve(dense, right.ravel()), rtol=1e-6, atol=1e-9)


def test_phase5_a_system_that_is_open_is_refused() -> None:
    """What the observations do not determine is an error, not a number."""
    with pytest.raises(ValueError, match="open"):
        solve_pairs(
            np.zeros((2, 1, 1)), np.array([0]), np.array([1]), np.zeros((1, 1, 1)), np.ones((2, 1)), np.arange(2)
        )


def test_phase5_connected_parts_are_counted_and_named() -> None:
    """Parts are numbered in the order of their first tile; a tile without links is one."""
    count, label = parts_of([4, 0, 3], [5, 2, 4], 7)
    assert count == 4
    assert label.tolist() == [0, 1, 0, 2, 2, 2, 3]
