"""Pairing two lists of points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zemosaicd.science.matching import nearest, one_to_one


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 3), st.floats(0.01, 0.5), st.integers(0, 10**6))
def test_the_nearest_is_the_nearest(points: int, known: int, axes: int, radius: float, seed: int) -> None:
    """Whatever lies where: what looking at all pairs finds, and nothing beyond the radius."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((points, axes)), rng.random((known, axes))
    distance, partner = nearest(a, b, radius)
    every = np.linalg.norm(a[:, np.newaxis] - b, axis=2)
    for i in range(points):
        if known and every[i].min() < radius:
            assert distance[i] == pytest.approx(every[i].min())
            assert every[i, partner[i]] == every[i].min()
        else:
            assert np.isinf(distance[i])
            assert partner[i] == -1


def test_the_nearer_of_two_wins() -> None:
    """Two points that want the same partner: the nearer has it, the other is told that it lost."""
    points, known = np.array([[0.0, 0.3], [5.0, 5.0], [0.0, 0.1]]), np.array([[9.0, 9.0], [0.0, 0.0], [5.0, 5.1]])
    mine, partner, lost = one_to_one(points, known, 1.0)
    assert (mine.tolist(), partner.tolist(), lost.tolist()) == ([1, 2], [2, 1], [0])
