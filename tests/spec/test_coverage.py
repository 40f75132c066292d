"""Footprints, coverage, alpha and edge weights (SPEC V1, V2, V4, V5, V6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.science.coverage import (
    add_coverage,
    alpha_from_coverage,
    coverage_problem,
    coverage_threshold,
    edge_weight,
    feather,
    shift_footprint,
    valid_footprint,
)

SHAPE = (12, 17)


def nearest_invalid(valid: np.ndarray) -> np.ndarray:
    """Oracle: Euclidean distance of every pixel to the nearest False; nothing lies outside."""
    bad = np.argwhere(~valid)
    return np.array(
        [[min(math.dist((y, x), b) for b in bad) for x in range(valid.shape[1])] for y in range(valid.shape[0])]
    )


def test_V1_coverage_counts_frames_that_serve_all_channels() -> None:
    """A pixel counts a frame once, and only where all of its channels are seen."""
    coverage = np.zeros(SHAPE, np.uint16)
    flat, deep = np.ones(SHAPE, bool), np.ones((*SHAPE, 3), bool)
    flat[0] = False
    deep[:, 0, 2] = False
    add_coverage(coverage, flat)
    add_coverage(coverage, deep)
    assert (coverage[1:, 1:] == 2).all()
    assert (coverage[0, 1:] == 1).all()
    assert (coverage[1:, 0] == 1).all()
    assert coverage[0, 0] == 0


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["2-D", "channels last", "channels first"])
def test_V2_a_footprint_is_true_where_there_is_no_data(kind: type, layout: str) -> None:
    """astroalign's polarity is turned round, for 2-D and 3-D, bool and numbers; any channel without data counts."""
    empty = np.zeros(SHAPE, bool)
    empty[3:5, 2:9] = True
    array = empty.astype(kind)
    if layout == "channels last":
        array = np.stack([np.zeros_like(array), array, array], axis=2)
    elif layout == "channels first":
        array = np.stack([np.zeros_like(array), array, array], axis=0)
    valid = valid_footprint(array, SHAPE)
    assert valid is not None
    assert np.array_equal(valid, ~empty)


def test_V2_an_ambiguous_footprint_is_no_footprint() -> None:
    """Absent, of another shape, with values that are no mask, or that could be read two ways: None."""
    for footprint in (
        None,
        np.zeros((5, 5), bool),
        np.full(SHAPE, np.nan),
        np.full(SHAPE, 7.0),
        np.full(SHAPE, "x"),
        np.zeros((3, 3, 3), bool),
    ):
        assert valid_footprint(footprint, SHAPE if np.ndim(footprint) != 3 else (3, 3)) is None


def test_V2_a_shift_leaves_the_overlap_rectangle() -> None:
    """With a shift-only fallback the footprint is the overlap, whole pixels that all exist."""
    valid = shift_footprint(2.0, -3.5, SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[2:, : 17 - 4] = True
    assert np.array_equal(valid, expected)


def test_V4_threshold_is_the_larger_of_count_and_share() -> None:
    """max(abs, frac * max), abs clamped to the frames that were stacked."""
    coverage = np.full(SHAPE, 20, np.uint16)
    assert coverage_threshold(coverage, 20) == 8.0
    assert coverage_threshold(coverage // 4, 5) == 3.0
    assert coverage_threshold(coverage // 10, 2) == 2.0


def test_V4_alpha_is_zero_where_coverage_is_low_and_feathers_inwards() -> None:
    """Outside 0, at the rim small but above 0, from the feather's width on 1; the image's own edge is no rim."""
    coverage = np.full((40, 60), 10, np.uint16)
    coverage[:, :10] = 3
    alpha = alpha_from_coverage(coverage, 10, feather_px=6)
    assert alpha.dtype == np.float32
    assert not alpha[:, :10].any()
    assert 0.0 < alpha[0, 10] < 0.1
    assert (np.diff(alpha[20, 9:18]) >= 0).all()
    assert (alpha[:, 16:] == 1.0).all()
    assert (alpha_from_coverage(coverage, 10)[:, 10:] == 1.0).all()


def test_V4_opening_removes_specks_and_never_adds() -> None:
    """A lone well-covered pixel is opened away; nothing below the threshold ever gets alpha."""
    rng = np.random.default_rng(3)
    coverage = rng.integers(0, 11, (50, 60)).astype(np.uint16)
    coverage[10:40, 10:50] = 10
    for open_px in (1, 2, 3, 4, 5):
        alpha = alpha_from_coverage(coverage, 10, open_px=open_px)
        assert not alpha[coverage < 4].any()
        assert (alpha[12:38, 12:48] == 1.0).all()
    lone = np.zeros((9, 9), np.uint16)
    lone[4, 4] = 10
    assert not alpha_from_coverage(lone, 10).any()
    assert alpha_from_coverage(lone, 10, open_px=0)[4, 4] == 1.0


@given(seed=st.integers(0, 9999), width=st.floats(0.0, 12.0))
@settings(max_examples=25, deadline=None)
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


@pytest.mark.parametrize(
    ("coverage", "reason"),
    [
        (np.full(SHAPE, 3, np.uint16), None),
        (np.full(SHAPE, 3.0, np.float32), None),
        (np.full((12, 16), 3.0), "shape_mismatch"),
        (np.full((12, 17, 3), 3.0), "shape_mismatch"),
        (np.zeros(SHAPE), "empty"),
        (None, "empty"),
        (np.full(SHAPE, np.nan), "non_finite"),
        (np.full(SHAPE, np.inf), "non_finite"),
        (np.full(SHAPE, "3"), "non_float"),
        (np.full(SHAPE, 3 + 0j), "non_float"),
    ],
)
def test_V6_a_coverage_map_that_cannot_be_used_says_why(coverage: np.ndarray | None, reason: str | None) -> None:
    """The reason is the one that MT_COVERAGE_IGNORED logs; None means that the map can be used."""
    assert coverage_problem(coverage, SHAPE) == reason
