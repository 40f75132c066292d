"""Level and spread from histograms: as good as the sorted definitions, and never moved by what is not sky."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.science.robust import block_statistics, kth_smallest, median_of, robust_level, robust_spread
from zemosaicd.science.stars import _middle_mean


def samples(seed: int, n: int = 4000, sigma: float = 20.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1000, sigma, n).astype(np.float32)


def steps(values: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(values))


FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(FLOATS, min_size=1, max_size=40), st.data())
@settings(max_examples=200)
def test_counting_finds_what_sorting_finds(values: list[float], data: st.DataObject) -> None:
    """Any order statistic and the median of any floats, equal ones and infinities among them, to the last bit."""
    array = np.array(values, np.float32)
    k = data.draw(st.integers(0, len(values) - 1))
    assert kth_smallest(array, k) == np.sort(array)[k]
    with np.errstate(invalid="ignore", over="ignore"):
        middle = np.median(array)
    assert median_of(array) == middle or not np.isfinite(middle)


@given(st.lists(st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, 2.0]), min_size=4, max_size=60))
@settings(max_examples=200)
def test_the_middle_half_is_that_of_the_sorted_values(values: list[float]) -> None:
    """The sky of a star's ring: mean of the values without the lowest and the highest quarter, whatever repeats."""
    ordered, quarter = np.sort(np.array(values)), len(values) // 4
    wanted = ordered[quarter : len(values) - quarter].mean()
    assert _middle_mean(np.array(values, np.float32)) == pytest.approx(wanted, rel=1e-6, abs=1e-3)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1e4))
@settings(max_examples=40)
def test_gaussian_noise_has_its_mean_and_sigma(seed: int, sigma: float) -> None:
    """Level within five standard errors (1.2 sigma / sqrt n) of the truth, spread within 7 %."""
    values = samples(seed, sigma=sigma)
    assert robust_level(values, sigma) == pytest.approx(1000, abs=5 * 1.2 * sigma / np.sqrt(len(values)))
    assert robust_spread(steps(values)) == pytest.approx((np.sqrt(2) * sigma,) * 2, rel=0.07)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_spread_by_the_median_is_that_of_the_sorted_values(seed: int) -> None:
    """1.4826 times the median, to 2 %; on average it is 0.2 % off."""
    values = steps(samples(seed))
    assert robust_spread(values)[0] == pytest.approx(1.4826 * np.median(values), rel=0.02)


@pytest.mark.parametrize(("share", "off"), [(0.05, 0.06), (0.2, 0.25)])
def test_star_light_hardly_moves_the_level(share: float, off: float) -> None:
    """With a share of the pixels raised by star light, less than half of what the median moves, or 0.06 sigma."""
    rng = np.random.default_rng(1)
    values = samples(2, 40000)
    lit = rng.random(len(values)) < share
    values[lit] += rng.exponential(60, lit.sum()).astype(np.float32)
    assert abs(robust_level(values, 20.0) - 1000) < off * 20.0
    assert robust_level(values, 20.0) < np.median(values)


@pytest.mark.parametrize("step", [1.0, 16.0, 40.0])
def test_whole_numbers_are_resolved_below_their_step(step: float) -> None:
    """Data in steps of up to two sigma: level to a tenth of sigma, spread to 8 %."""
    values = (step * np.round(samples(3, 40000) / step)).astype(np.float32)
    sigma = np.hypot(20.0, step / np.sqrt(12))
    assert robust_level(values, sigma) == pytest.approx(1000, abs=2.0)
    assert robust_spread(steps(values))[1] == pytest.approx(np.sqrt(2) * sigma, rel=0.08)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 4.0, 1024.0]))
@settings(max_examples=20)
def test_units_do_not_matter(seed: int, factor: float) -> None:
    """Electrons or ADU: level and spread scale with the values."""
    values = samples(seed, 500)
    scaled = values * np.float32(factor)
    assert robust_level(scaled, 20 * factor) == pytest.approx(factor * robust_level(values, 20), rel=1e-6)
    assert robust_spread(steps(scaled)) == pytest.approx(np.multiply(factor, robust_spread(steps(values))), rel=1e-6)


@pytest.mark.parametrize("period", [3, 4, 7, 64, 129])
def test_a_pattern_in_the_values_deceives_nobody(period: int) -> None:
    """One value in `period` is quiet, the others are not: spread and level are those of the many."""
    values = samples(5, 40000)
    loud = np.arange(len(values)) % period > 0
    spread = np.where(loud, np.abs(values - 1000), 0.01).astype(np.float32)
    assert robust_spread(spread)[0] == pytest.approx(1.4826 * np.median(spread), rel=0.01)
    assert robust_level(np.where(loud, values, 5000).astype(np.float32), 20.0) == pytest.approx(1000, abs=1.5)


def test_half_a_block_of_padding_leaves_one_of_the_two_levels() -> None:
    """Zeros and sky, half and half: one of them, and nothing between."""
    values = samples(6)
    values[::2] = 0
    assert min(abs(robust_level(values, 20.0) - level) for level in (0, 1000)) < 2


def test_F30_constant_values_have_no_spread() -> None:
    """Nothing moves: spread 0, and the level is the value."""
    assert robust_spread(np.zeros(100, np.float32)) == (0.0, 0.0)
    assert robust_level(np.full(100, 7, np.float32), 0.0) == 7.0


def test_blocks_cover_the_plane_and_leave_out_what_is_no_number() -> None:
    """Each block has its own level; a slope adds no noise; fewer than 16 samples are NaN, as are NaN and infinity."""
    rng = np.random.default_rng(4)
    plane = rng.normal(0, 5, (130, 200)) + 100 * (np.arange(130) // 65)[:, None] + 0.05 * np.arange(200)
    plane[0:65, 0:66] = np.nan
    plane[3, 3:12] = 1.0
    plane[70, 70] = np.inf
    found = block_statistics(plane.astype(np.float32), 65, 2, 1)
    assert found.shape == (2, 3, 2)
    assert np.isnan(found[0, 0]).all()
    assert found[1, :, 0] == pytest.approx([101.65, 105, 108.3], abs=1.0)
    assert found[0, 1:, 1] == pytest.approx([5, 5], rel=0.06)
    assert found[1, :, 1] == pytest.approx([5, 5, 5], rel=0.06)
