"""Feathers and edge weights, and the mask that coverage makes (SPEC V2 to V8)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.science.coverage import MaskRule, Trim, edge_weight, feather, mask_of, opened, trim_of, unusable

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


# --- the mask of a coverage map -------------------------------------------------------------------------------------

COUNTS = st.integers(0, 9999).map(lambda seed: counts(seed))
RULES = st.builds(
    MaskRule,
    least_frames=st.floats(0.0, 12.0),
    least_share=st.floats(0.0, 1.0),
    opening_px=st.integers(0, 4),
    empty_alpha=st.floats(0.0, 0.5),
    nothing_alpha=st.just(0.5),
)


def counts(seed: int) -> np.ndarray:
    """uint16 (24, 31): a few rectangles laid over each other, as frames lie on a tile, and some lone pixels."""
    rng = np.random.default_rng(seed)
    made = np.zeros((24, 31), np.uint16)
    for _ in range(rng.integers(1, 9)):
        y, x = rng.integers(0, 14), rng.integers(0, 20)
        made[y : y + rng.integers(2, 14), x : x + rng.integers(2, 16)] += 1
    made[rng.random(made.shape) > 0.97] += np.uint16(5)
    return made


@given(coverage=COUNTS, rule=RULES, frames=st.integers(1, 20), width=st.floats(0.0, 12.0))
@settings(max_examples=60)
def test_V4_alpha_is_a_share_without_gaps_of_the_pictures_shape(
    coverage: np.ndarray, rule: MaskRule, frames: int, width: float
) -> None:
    """float32 0..1, never NaN, the map's shape; 0 below the threshold; what is no longer there counts as nothing."""
    mask = mask_of(coverage, frames, rule, width)
    assert (mask.alpha.dtype, mask.alpha.shape, mask.hidden.shape) == (np.float32, coverage.shape, coverage.shape)
    assert np.isfinite(mask.alpha).all()
    assert ((mask.alpha >= 0) & (mask.alpha <= 1)).all()
    assert (mask.alpha[(coverage < mask.threshold) | (coverage == 0)] == 0).all()
    assert (mask.alpha[mask.hidden] == 0).all()
    assert not ((mask.alpha > 0) & (mask.alpha < rule.nothing_alpha)).any()


@given(coverage=COUNTS, less=st.floats(0.0, 9.0), more=st.floats(0.0, 9.0), opening=st.integers(0, 4))
@settings(max_examples=40)
def test_V4_who_asks_for_more_frames_gets_less_alpha(
    coverage: np.ndarray, less: float, more: float, opening: int
) -> None:
    """Alpha never rises anywhere when the threshold does."""
    low, high = sorted((less, more))
    alphas = [
        mask_of(coverage, 20, MaskRule(least_frames=n, least_share=0.0, opening_px=opening), 5.0).alpha
        for n in (low, high)
    ]
    assert (alphas[1] <= alphas[0]).all()


@given(coverage=COUNTS, seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_V4_a_pixel_seen_more_often_takes_nothing_from_the_others(coverage: np.ndarray, seed: int) -> None:
    """Alpha never falls anywhere when coverage grows and the best seen pixel stays the best."""
    grown = coverage + (np.random.default_rng(seed).random(coverage.shape) > 0.8).astype(np.uint16)
    grown = np.minimum(grown, coverage.max())
    before, after = (mask_of(c, 20, MaskRule(opening_px=2), 5.0).alpha for c in (coverage, grown))
    assert (after >= before).all()


@pytest.mark.parametrize(
    ("most", "frames", "threshold"),
    [(60, 60, 24.0), (5, 5, 3.0), (2, 2, 2.0), (1, 1, 1.0), (2, 9, 3.0), (8, 8, 3.2)],
)
def test_V4_the_threshold_is_the_larger_of_frames_and_share(most: int, frames: int, threshold: float) -> None:
    """3 frames, but never more than were stacked, or 0.4 of the best seen."""
    assert MaskRule().threshold(most, frames) == threshold


def test_V4_a_share_that_comes_out_whole_is_met_by_that_many_frames() -> None:
    """0.55 of 100 frames is 55 frames, whatever the last bit says."""
    assert MaskRule(least_share=0.55).threshold(100, 100) == 55.0


def test_V4_opening_removes_islands_and_spikes_and_keeps_the_rest() -> None:
    """A lone patch and a spike go, a square stays but for the tips of its corners; the picture's edge cuts nothing."""
    mask = np.zeros((40, 60), np.bool_)
    mask[:, :30] = True
    mask[20, 30:50] = True
    mask[5:8, 50:53] = True
    kept = opened(mask, 3)
    assert kept[:, :30].all()
    assert not kept[:, 31:].any()
    square = np.zeros((40, 60), np.bool_)
    square[10:30, 10:30] = True
    lost = np.argwhere(square & ~opened(square, 3))
    assert 0 < len(lost) <= 4 * 5
    assert np.array_equal(opened(mask, 0), mask)


@given(seed=st.integers(0, 9999), radius=st.integers(0, 5))
@settings(max_examples=40)
def test_V4_opening_only_removes_and_removes_once(seed: int, radius: int) -> None:
    """What is left is part of the mask, and opening it again changes nothing."""
    mask = counts(seed) > 1
    once = opened(mask, radius)
    assert not (once & ~mask).any()
    assert np.array_equal(opened(once, radius), once)


def test_V8_alpha_at_the_one_threshold_empties_and_below_the_other_counts_as_nothing() -> None:
    """Between the two the pixel stays in the tile and has no weight."""
    coverage = np.full((60, 60), 9, np.uint16)
    mask = mask_of(coverage, 9, MaskRule(empty_alpha=0.01, nothing_alpha=0.3), 20.0)
    soft = edge_weight(coverage > 0, 20.0)
    assert np.array_equal(mask.hidden, soft <= 0.01)
    between = (soft > 0.01) & (soft < 0.3)
    assert between.any()
    assert (mask.alpha[between] == 0).all()
    assert np.array_equal(mask.alpha[soft >= 0.3], soft[soft >= 0.3])
    assert mask.kept == pytest.approx(np.mean(soft >= 0.3))


@pytest.mark.parametrize(
    ("coverage", "reason"),
    [
        (np.ones((4, 5), np.uint16), ""),
        (np.ones((4, 5), np.float32), ""),
        (np.ones((5, 4), np.float32), "shape_mismatch"),
        (np.ones((2, 2), np.float32), "shape_mismatch"),
        (np.zeros((4, 5), np.float32), "empty"),
        (np.full((4, 5), np.nan, np.float32), "non_finite"),
        (np.full((4, 5), np.inf, np.float64), "non_finite"),
        (np.ones((4, 5), np.bool_), "non_float"),
        (np.full((4, 5), "1"), "non_float"),
        (np.ones((3, 4, 5), np.float32), "ambiguous_footprint"),
    ],
)
def test_V6_a_map_that_cannot_be_the_pictures_is_named_not_stretched(coverage: np.ndarray, reason: str) -> None:
    """The reasons of MT_COVERAGE_IGNORED."""
    assert unusable(coverage, (4, 5)) == reason


def test_V5_only_margins_almost_without_data_are_trimmed() -> None:
    """A column with one pixel in 200 goes, one with three stays; gaps within stay; so does a picture of nothing."""
    valid = np.zeros((200, 300), np.bool_)
    valid[20:190, 40:250] = True
    valid[100, 250] = True
    valid[100:103, 39] = True
    valid[60:80] = False
    assert trim_of(valid) == Trim(top=20, bottom=10, left=39, right=50)
    assert not trim_of(np.ones((4, 5), np.bool_))
    assert not trim_of(np.zeros((4, 5), np.bool_))
