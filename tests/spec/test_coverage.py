"""Feathers and edge weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.science.coverage import edge_weight, feather

SHAPE = (12, 17)


def nearest_invalid(valid: np.ndarray) -> np.ndarray:
    """Oracle: Euclidean distance of every pixel to the nearest False; nothing lies outside."""
    bad = np.argwhere(~valid)
    return np.array(
        [[min(math.dist((y, x), b) for b in bad) for x in range(valid.shape[1])] for y in range(valid.shape[0])]
    )


@given(seed=st.integers(0, 9999), width=st.floats(0.0, 12.0))
@settings(max_examples=25)
def test_edge_weight_follows_the_distance_to_the_nearest_edge(seed: int, width: float) -> None:
    """Every pixel with data weighs more than 0, every other 0; the weight is the feather of the exact distance."""
    valid = np.random.default_rng(seed).random(SHAPE) > 0.05
    distance = nearest_invalid(np.pad(valid, 1))[1:-1, 1:-1]
    weight = edge_weight(valid, width)
    assert weight.dtype == np.float32
    assert np.array_equal(weight > 0, valid)
    assert weight == pytest.approx(feather(distance.astype(np.float32), width), abs=1e-5)


def test_edge_weight_without_feather_is_the_mask() -> None:
    """A feather of 0 px leaves a plain mask."""
    valid = np.random.default_rng(1).random(SHAPE) > 0.3
    assert np.array_equal(edge_weight(valid, 0.0), valid.astype(np.float32))


def test_feather_has_no_kink() -> None:
    """From 0 to 1 without a step, level at both ends."""
    weight = feather(np.linspace(0.0, 12.0, 1201, dtype=np.float32), 9.0)
    assert (weight[0], weight[-1]) == (0.0, 1.0)
    slope = np.diff(weight)
    assert (slope >= 0).all()
    assert max(slope[0], slope[999]) < slope.max() / 50
