"""Many samples a pixel to one: bands, rejection by name and by noise model, weights (SPEC M5, M6, V1, V3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from zemosaicd.science import combine as combiner
from zemosaicd.science.combine import HALO, Average, Combined, Method, NoiseModel, Rule, halo_of
from zemosaicd.science.medians import FEW, NETWORK_FRAMES, median_network
from zemosaicd.science.resample import Source, resample

SKY = 500.0
SIGMA = 10.0


def flat_noise(n: int, channels: int, sigma: float = SIGMA, photon: float = 0.0) -> NoiseModel:
    """A model whose K * variance is the variance that the samples of these tests really have."""
    return NoiseModel(
        variance=np.full((n, channels), sigma**2 / 0.7),
        photon=np.full((n, channels), photon),
        pedestal=np.full(channels, SKY),
    )


def sky(n: int, height: int, width: int, channels: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(SKY, SIGMA, (n, height, width, channels)).astype(np.float32)


def all_seen(samples: np.ndarray) -> np.ndarray:
    return np.ones(samples.shape[:3], bool)


def combine_window(
    samples: np.ndarray,
    seen: np.ndarray,
    weights: np.ndarray,
    rule: Rule,
    noise: NoiseModel | None = None,
    **more: Any,
) -> Combined:
    """The combiner on samples with the channels last, as is handy here; so are mean and weight that come out."""
    got = combiner.combine(np.moveaxis(samples, 3, 1), seen, weights, rule, noise, **more)
    return replace(got, mean=np.moveaxis(got.mean, 0, 2), weight=np.moveaxis(got.weight, 0, 2))


def combine(samples: np.ndarray, rule: Rule, seen: np.ndarray | None = None, **more: Any) -> Combined:
    n, _, _, channels = samples.shape
    mask = all_seen(samples) if seen is None else seen
    return combine_window(samples, mask, np.ones(n), rule, flat_noise(n, channels), **more)


def messy(n: int, height: int, width: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky with a star, trails, hot pixels, unseen regions, and rubbish where nothing was seen."""
    rng = np.random.default_rng(seed)
    samples = sky(n, height, width, channels, seed)
    y, x = np.mgrid[0:height, 0:width]
    samples += (4000.0 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / 4.0)).astype(np.float32)[
        None, :, :, None
    ]
    for i in range(n):
        trail = np.abs(y - height * rng.random() - x * rng.normal(0.0, 0.5)) < 1.5
        samples[i, trail] += 300.0
    samples[rng.random(samples.shape) < 0.004] += 2000.0
    seen = rng.random((n, height, width)) > 0.05
    samples[~seen] = np.nan
    seen[0, :, : width // 3] = False
    seen[1:, : height // 4, : width // 8] = False
    return samples, seen


def test_median_network_finds_the_middle() -> None:
    """After the pruned network the two middle values stand in their places, for every number of frames."""
    rng = np.random.default_rng(3)
    for n in list(range(1, 40)) + [64, 100]:
        values = rng.permutation(n)
        ordered = values.copy()
        for a, b in median_network(n):
            ordered[a], ordered[b] = min(ordered[a], ordered[b]), max(ordered[a], ordered[b])
        for place in {max(0, n // 2 - 1), n // 2}:
            assert ordered[place] == place


def test_the_network_of_many_frames_sorts_a_few_of_them() -> None:
    """Where counting begins, a sample of the frames is put in order."""
    values = np.random.default_rng(4).permutation(FEW)
    for a, b in median_network(NETWORK_FRAMES + 1):
        values[a], values[b] = min(values[a], values[b]), max(values[a], values[b])
    assert np.array_equal(values, np.arange(FEW))


@given(
    n=st.sampled_from([NETWORK_FRAMES, NETWORK_FRAMES + 1, NETWORK_FRAMES + 2, 300, 301]), seed=st.integers(0, 999),
    unseen=st.sampled_from([0.0, 0.3, 0.97, 1.0]), steps=st.sampled_from([0.0, 5.0]),
)  # fmt: skip
@settings(max_examples=40)
def test_M6_the_median_of_many_frames_is_exact(n: int, seed: int, unseen: float, steps: float) -> None:
    """Found by counting beyond the network's frames: the same value, outliers, ties and missing samples or not."""
    rng = np.random.default_rng(seed)
    samples = sky(n, 3, 40, 2, seed)
    samples[rng.random(samples.shape) < 0.01] += np.float32(rng.choice([1e3, 1e7, -1e7]))
    if steps:
        samples = np.round(samples / steps) * steps
    seen = rng.random((n, 3, 40)) >= unseen
    got = combine(samples, Rule(method=Method.NONE, average=Average.MEDIAN), seen)
    expected = oracles.nan_median(np.where(seen[..., np.newaxis], samples, np.nan).astype(np.float64))
    assert np.array_equal(got.mean, np.where(seen.any(axis=0)[..., np.newaxis], expected, 0.0).astype(np.float32))


@pytest.mark.parametrize("method", list(Method))
@given(
    n=st.integers(1, 9), channels=st.sampled_from([1, 3]), seed=st.integers(0, 999), average=st.sampled_from(Average)
)
@settings(max_examples=12)
def test_M5_every_band_height_gives_the_same_bits(
    method: Method, n: int, channels: int, seed: int, average: Average
) -> None:
    """Bands of 1, 7 and 64 rows with their halo, put together, are the whole array's result bit by bit."""
    samples, seen = messy(max(n, 2), 70, 33, channels, seed)
    samples, seen = samples[:n], seen[:n]
    rule = Rule(method=method, average=average)
    whole = combine(samples, rule, seen)
    for step in (1, 7, 64):
        parts = []
        for row0 in range(0, 70, step):
            rows = min(step, 70 - row0)
            above, below = halo_of(row0, rows, 70)
            band = slice(row0 - above, row0 + rows + below)
            parts.append(combine(samples[:, band], rule, seen[:, band], halo=(above, below)))
        for name in ("mean", "weight", "count", "lost"):
            assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name)), (step, name)
        assert np.array_equal(sum(p.rejected for p in parts), whole.rejected)
        assert np.array_equal(sum(p.samples for p in parts), whole.samples)


@given(n=st.integers(3, 25), seed=st.integers(0, 999), k_low=st.floats(1.0, 4.0), k_high=st.floats(1.0, 4.0))
@settings(max_examples=30)
def test_M6_kappa_sigma_equals_its_definition(n: int, seed: int, k_low: float, k_high: float) -> None:
    """Sample by sample the oracle keeps and rejects the same; mean, median, weight and rejected_pct follow."""
    samples, seen = messy(n, 9, 40, 3, seed)
    values = np.where(seen[..., np.newaxis], samples, np.nan).astype(np.float64)
    kept = oracles.kappa_sigma(values, k_low, k_high)
    there = ~np.isnan(values)
    for average in Average:
        got = combine(samples, Rule(method=Method.KAPPA_SIGMA, k_low=k_low, k_high=k_high, average=average), seen)
        assert np.array_equal(got.weight, kept.sum(axis=0))
        assert np.array_equal(got.rejected, (there & ~kept).sum(axis=(1, 2, 3)))
        assert np.array_equal(got.count, kept.all(axis=3).sum(axis=0))
        assert got.rejected_pct == pytest.approx(100.0 * (there & ~kept).sum() / there.sum())
        left = np.where(kept, values, np.nan)
        found = kept.any(axis=0)
        expected = (
            oracles.nan_median(left)[found]
            if average is Average.MEDIAN
            else np.nansum(left, 0)[found] / kept.sum(0)[found]
        )
        assert got.mean[found] == pytest.approx(expected, rel=1e-6)
        assert not got.mean[~found].any()


@pytest.mark.parametrize("n", range(3, 12))
def test_M6_kappa_sigma_is_blind_for_seven_frames_and_less(n: int) -> None:
    """At k = 3 one outlier, however large, is rejected from 8 frames on and never from fewer."""
    samples = np.zeros((n, 1, 1, 1), np.float32)
    samples[0] = 1e6
    got = combine(samples, Rule(method=Method.KAPPA_SIGMA))
    assert got.rejected[0] == (1 if n >= 8 else 0)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("method", list(Method))
def test_M6_one_or_two_frames_are_never_rejected(method: Method, n: int) -> None:
    """Two samples cannot outvote one another: their weighted mean stands, whatever they are."""
    samples = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1) * 1e4 + np.zeros((n, 4, 5, 3), np.float32)
    got = combine(samples, Rule(method=method))
    assert got.rejected.sum() == 0
    assert (got.count == n).all()
    assert np.allclose(got.mean, samples.mean(axis=0))


@given(n=st.integers(1, 12), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 999), grow=st.booleans())
@settings(max_examples=30)
def test_M6_auto_equals_its_definition(n: int, channels: int, seed: int, grow: bool) -> None:
    """The compiled default rule keeps and rejects sample by sample what its plain definition does."""
    samples, seen = messy(max(n, 2), 24, 30, channels, seed)
    samples, seen = samples[:n], seen[:n]
    rng = np.random.default_rng(seed)
    noise = NoiseModel(
        variance=rng.uniform(80, 200, (n, channels)),
        photon=rng.uniform(0, 5, (n, channels)),
        pedestal=np.full(channels, SKY),
    )
    got = combine_window(samples, seen, np.ones(n), Rule(grow=grow), noise)
    values = np.where(seen[..., np.newaxis], samples, np.nan).astype(np.float64)
    least = -(-8 * channels // 3) if grow else 10**6
    kept = oracles.auto_kept(values, noise.variance, noise.photon, noise.pedestal, k=3.5, c=0.5, gain=0.7, least=least)
    assert np.array_equal(got.weight, kept.sum(axis=0))
    assert np.array_equal(got.rejected, (~np.isnan(values) & ~kept).sum(axis=(1, 2, 3)))
    found = kept.any(axis=0)
    assert got.mean[found] == pytest.approx(np.where(kept, values, 0.0).sum(0)[found] / kept.sum(0)[found], rel=1e-6)


@pytest.mark.parametrize("n", [3, 4, 5, 10])
def test_M6_auto_rejects_a_single_outlier_of_few_frames(n: int) -> None:
    """One hot sample among three or more is thrown out, and what it leaves is the others' mean."""
    samples = sky(n, 16, 16)
    samples[1, 8, 8, 0] += 100.0 * SIGMA
    got = combine(samples, Rule())
    assert got.weight[8, 8, 0] == n - 1
    assert got.count[8, 8] == n - 1
    assert got.mean[8, 8, 0] == pytest.approx(np.delete(samples[:, 8, 8, 0], 1).mean(), rel=1e-6)


def test_M6_auto_rejects_two_trails_of_five_with_their_wings() -> None:
    """Where two trails of ten sigma cross five frames less than a sixth of their light stays, wings included."""
    samples = sky(5, 80, 80)
    y, x = np.mgrid[0:80, 0:80]
    clean = samples.copy()
    for i, distance in ((0, y - 0.7 * x - 11.3), (3, y + 0.4 * x - 60.2)):
        samples[i] += (10.0 * SIGMA * np.exp(-((distance / 1.2) ** 2) / 2)).astype(np.float32)[:, :, np.newaxis]
    got, plain, truth = (combine(s, Rule(method=m)) for s, m in ((samples, "auto"), (samples, "none"), (clean, "none")))
    kept_light = (got.mean - truth.mean).sum() / (plain.mean - truth.mean).sum()
    assert abs(kept_light) < 1 / 6


def test_M6_auto_protects_star_cores() -> None:
    """Bright stars whose seeing varies by 12 % lose almost nothing; without the gradient term they lose much."""
    n, rng = 20, np.random.default_rng(8)
    y, x = np.mgrid[0:64, 0:64]
    samples = np.empty((n, 64, 64, 3), np.float32)
    for i, width in enumerate(1.23 * rng.uniform(0.88, 1.12, n)):
        star = sum(
            3000.0 * (1.23 / width) ** 2 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * width**2))
            for a, b in ((16, 16), (44, 40))
        )
        samples[i] = rng.normal(SKY + star[..., np.newaxis], np.sqrt(SIGMA**2 + star[..., np.newaxis]), (64, 64, 3))
    core = np.hypot(x - 16, y - 16) < 2.5
    noise = flat_noise(n, 3, photon=1.0 / 0.7)
    kept = combine_window(samples, all_seen(samples), np.ones(n), Rule(), noise)
    bare = combine_window(samples, all_seen(samples), np.ones(n), Rule(gradient=0.0), noise)
    assert kept.weight[core].mean() > 0.99 * n
    assert bare.weight[core].mean() < 0.9 * n
    assert kept.mean[core].sum() == pytest.approx(samples[:, core].mean(axis=0).sum(), rel=0.005)


def test_M6_auto_loses_few_good_samples() -> None:
    """Of pure noise with the right model less than one sample in a thousand goes."""
    assert combine(sky(10, 100, 100), Rule()).rejected_pct < 0.1


def test_M6_auto_never_empties_a_pixel() -> None:
    """Of two camps of equal size the lower is kept; growth that would leave nothing is taken back."""
    samples = sky(4, 12, 12)
    samples[:2] += 50.0 * SIGMA
    got = combine(samples, Rule())
    assert (got.weight >= 1).all()
    assert got.mean == pytest.approx(samples[2:].mean(axis=0), abs=4 * SIGMA)


@pytest.mark.parametrize("n", [5, 10])
def test_M6_hot_photosites_and_trails_do_not_survive_the_engine(n: int) -> None:
    """Dithered CFA frames through resampling and `auto`: hot photosites and 2 trails in 5 leave nearly nothing."""
    rng, (height, width) = np.random.default_rng(n), (72, 88)
    hot = rng.random((height, width)) < 0.0005
    y, x = np.mgrid[0:height, 0:width]
    stacks = []
    for defects in (True, False):
        rng = np.random.default_rng(n + 1)
        samples, seen = np.empty((n, 56, 68, 3), np.float32), np.empty((n, 56, 68), bool)
        for i in range(n):
            cfa, dx, dy = rng.normal(SKY, SIGMA, (height, width)), 4.3 + 5.1 * (i % 3), 4.2 + 3.4 * (i // 3)
            slope, offset = rng.normal(0.0, 1.0), rng.uniform(0, height)
            if defects:
                cfa[hot] += 3000.0
            if defects and i % 5 in (1, 3):
                cfa[np.abs(y - slope * (x - 40) - offset) < 1.2] += 15 * SIGMA
            source = Source(pixels=cfa.astype(np.float32), bayer="GRBG")
            planes, seen[i] = resample(source, (1.0, 0.0, dx, 0.0, 1.0, dy, 0.0, 0.0, 1.0), (0, 0, 68, 56))
            samples[i] = np.moveaxis(planes, 0, 2)
        stacks += [combine(samples, Rule(method=method), seen) for method in ("auto", "none")]
    found, plain, clean = stacks[0], stacks[1], stacks[3]
    added, left = plain.mean - clean.mean, found.mean - clean.mean
    assert added.mean() > 0.1 * SIGMA
    assert abs(left.mean()) < 0.03 * added.mean()
    assert (np.abs(left) > 4 * SIGMA).mean() < 5e-4  # pixels that three of five defects share
    assert np.abs(left).max() < 6 * SIGMA


def test_M6_auto_needs_a_noise_model_that_fits() -> None:
    """Without a noise model, or with one of other frames, `auto` is refused rather than guessed."""
    samples = sky(5, 4, 4)
    for noise in (None, flat_noise(4, 3)):
        with pytest.raises(ValueError, match="noise model"):
            combine_window(samples, all_seen(samples), np.ones(5), Rule(), noise)


@pytest.mark.parametrize(
    ("method", "k", "lost"), [(Method.WINSORIZED_SIGMA, 5.0, 0.01), (Method.LINEAR_FIT, 3.0, 0.05)]
)
def test_M6_the_other_rules_by_name_reject_outliers_of_ten(method: Method, k: float, lost: float) -> None:
    """Winsorized sigma and linear fit throw out one wild sample of ten and keep nearly all that is good."""
    samples = sky(10, 30, 30, seed=4)
    samples[7] += 40.0 * SIGMA
    got = combine(samples, Rule(method=method, k_low=k, k_high=k))
    assert got.rejected[7] == 30 * 30 * 3
    assert np.delete(got.rejected, 7).sum() < lost * 9 * 30 * 30 * 3
    assert (got.weight >= 3).all()


def test_V1_count_is_of_frames_that_serve_all_channels() -> None:
    """A frame that is rejected in one colour still serves the others, but is counted as lost there, not as kept."""
    samples = sky(6, 8, 8)
    samples[4, 5, 5, 0] += 100.0 * SIGMA
    got = combine(samples, Rule())
    assert (got.count[5, 5], got.lost[5, 5]) == (5, 1)
    assert list(got.weight[5, 5]) == [5.0, 6.0, 6.0]
    assert (got.count.sum(), got.lost.sum()) == (6 * 64 - 1, 1)
    assert got.count.dtype == got.lost.dtype == np.uint16


@pytest.mark.parametrize("method", list(Method))
def test_V3_unseen_samples_have_no_say(method: Method) -> None:
    """Whatever lies under seen = False changes no bit: a pixel that nobody sees has weight 0 and value 0."""
    samples, seen = messy(7, 20, 30, 3, 5)
    seen[:, 10, 10] = False
    first = combine(samples, Rule(method=method), seen)
    for rubbish in (np.nan, np.inf, -1e30):
        other = combine(np.where(seen[..., np.newaxis], samples, np.float32(rubbish)), Rule(method=method), seen)
        assert np.array_equal(first.mean, other.mean)
        assert np.array_equal(first.weight, other.weight)
        assert np.array_equal(first.rejected, other.rejected)
    assert not first.weight[10, 10].any()
    assert not first.mean[10, 10].any()
    assert np.isfinite(first.mean).all()


def test_weights_of_frames_channels_and_pixels() -> None:
    """The mean is weighted by frame and channel, times a map; the weight that comes out is their sum."""
    samples, rng = sky(4, 5, 6), np.random.default_rng(2)
    weights, maps = rng.uniform(0.5, 2.0, (4, 3)), rng.uniform(0.0, 1.0, (4, 5, 6)).astype(np.float32)
    maps[:, 2, 2] = 0.0
    got = combine_window(samples, all_seen(samples), weights, Rule(method=Method.NONE), weight_maps=maps)
    w = weights[:, None, None, :] * maps[..., None].astype(np.float64)
    some = w.sum(axis=0) > 0
    assert got.weight == pytest.approx(w.sum(axis=0), rel=1e-6)
    assert got.mean[some] == pytest.approx(((w * samples).sum(axis=0)[some] / w.sum(axis=0)[some]), rel=1e-6)
    assert not got.mean[2, 2].any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    """Masks, maps and halos are checked against the samples before any kernel runs."""
    samples = sky(3, 6, 6)
    for seen, halo, maps in (
        (np.ones((3, 6, 5), bool), (0, 0), None),
        (all_seen(samples), (4, 4), None),
        (all_seen(samples), (0, 0), np.ones((2, 6, 6), np.float32)),
    ):
        with pytest.raises(ValueError):
            combine_window(samples, seen, np.ones(3), Rule(method=Method.NONE), halo=halo, weight_maps=maps)


def test_halo_stops_at_the_edge_of_the_grid() -> None:
    """A band asks for four rows of its neighbours, and for none where the grid ends."""
    assert halo_of(0, 10, 100) == (0, HALO)
    assert halo_of(50, 10, 100) == (HALO, HALO)
    assert halo_of(88, 10, 100) == (HALO, 2)
