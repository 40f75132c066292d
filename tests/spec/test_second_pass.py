"""`mosaic.two_pass_enabled`: what tiles weigh is evened out where coverage jumps; what stars shine stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import scenes
from tests.nights import TINY, Place, drop, night
from tests.spec.test_assembly import STARS, STEP, H, W, place_of, strip, whole
from zemosaicd.core.modes import MODES
from zemosaicd.model import Plan
from zemosaicd.science.easing import BLOCK_PX, LIMITS, SIGMA_PX, Share, blurred, ease_of, eased, steepness
from zemosaicd.settings import Config, MosaicTable
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.simulate import Night

FEATHER = 0.05
"""A narrow feather, so that a tile's border is a jump."""


def two_tiles(folder: Path, depths: tuple[int, ...] = (6, 2)) -> tuple[Plan, tuple[tuple[int, str], ...]]:
    """A deep tile and a shallow one side by side."""
    plan = strip(folder / "c", depths)
    return plan, scenes.stack_all(folder, plan, feather_fraction=FEATHER)


def mosaic(folder: Path, plan: Plan, tiles: Any, **settings: Any) -> tuple[dict[str, Any], Any]:
    """Its pictures and what the job reports."""
    path, made = scenes.mosaic(folder, plan, tiles, feather_fraction=FEATHER, **settings)
    return scenes.planes(path), made


# --- factors -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_weight_is_never_multiplied_beyond_the_limits(ny: int, nx: int, seed: int) -> None:
    """Whatever the shares, the factor lies between 0.5 and 2, and is a number."""
    share = np.random.default_rng(seed).choice([0.0, 0.01, 0.3, 1.0], (ny, nx))
    ease = eased(Share(x_block=0, y_block=0, share=share), blurred(np.ones((ny, nx))))
    assert ease.factor.min() >= LIMITS[0]
    assert ease.factor.max() <= LIMITS[1]


def test_a_tile_that_has_all_of_the_sky_is_left_alone() -> None:
    """No jump, no factor: at the mosaic's own edges nothing fades either."""
    ease = eased(Share(x_block=0, y_block=0, share=np.ones((9, 7))), blurred(np.ones((9, 7))))
    np.testing.assert_allclose(ease.factor, 1.0, rtol=1e-6)


def test_the_blur_is_a_gaussian_of_50_px() -> None:
    """A jump becomes the error function of that width, to the fineness of its blocks."""
    step = np.zeros((1, 40))
    step[0, 20:] = 1.0
    column = np.ones((41, 1))
    found = blurred(column * step)[20] / blurred(column * np.ones((1, 40)))[20]
    x = (np.arange(40) - 19.5) * BLOCK_PX
    normal = np.random.default_rng(1).normal(0.0, SIGMA_PX, 200_000)
    expected = [(normal < at).mean() for at in x]
    np.testing.assert_allclose(found[8:32], expected[8:32], atol=0.02)


@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 70))
def test_M5_a_factor_is_a_function_of_the_pixel_alone(x0: int, length: int, y: int) -> None:
    """It does not matter where the run of pixels began that it was asked for with."""
    factor = np.random.default_rng(4).uniform(0.5, 2.0, (4, 5)).astype(np.float32)
    row, part = np.empty(100), np.empty(length)
    ease_of(factor, 1, 0, 0, y, row)
    ease_of(factor, 1, 0, x0, y, part)
    np.testing.assert_array_equal(part, row[x0 : x0 + length])


# --- mosaics -------------------------------------------------------------------------------------------------------


def test_shares_change_less_steeply_where_tiles_meet(tmp_path: Path) -> None:
    """What it is for: the steeper changes of a tile's share are a tenth smaller or more, in an overlap of 70 px."""
    plan, tiles = two_tiles(tmp_path)
    _, made = mosaic(tmp_path, plan, tiles, two_pass=True)
    even = made.figures["second_pass"]
    assert even["tiles"] == 2
    assert even["steepness_after"] < 0.9 * even["steepness_before"]


def test_photometry_before_and_after_agrees_to_two_thousandths(tmp_path: Path) -> None:
    """Each bright star has the same flux in both, whichever tiles it lies in (the issue's promise)."""
    plan, tiles = two_tiles(tmp_path, (6, 6))
    once, twice = (mosaic(tmp_path, plan, tiles, two_pass=on)[0][""] for on in (False, True))
    grid = whole(plan)
    bright = [s for s in STARS if s[2] > 1e4 and 16 < s[1] < H - 16 and 16 < s[0] < W + STEP - 16]
    assert len([s for s in bright if STEP < s[0] < W]) >= 4
    ratios = [scenes.flux(twice, *place_of(grid, s)) / scenes.flux(once, *place_of(grid, s)) for s in bright]
    assert np.median(ratios) == pytest.approx(1.0, abs=0.0005)
    assert np.max(np.abs(np.array(ratios) - 1.0)) < 0.002


def test_no_flux_is_multiplied_where_one_tile_is_alone(tmp_path: Path) -> None:
    """There, whatever a tile weighs, the pixel is the tile's: to the last bit but rounding."""
    plan, tiles = two_tiles(tmp_path)
    (once, _), (twice, _) = (mosaic(tmp_path, plan, tiles, two_pass=on) for on in (False, True))
    alone = once["COVERAGE"] <= 2
    assert alone[20:-20].mean() > 0.1
    for name in ("", "WEIGHT"):
        np.testing.assert_allclose(twice[name][alone], once[name][alone], rtol=1e-5, err_msg=name)


def test_what_was_seen_is_the_same_in_both(tmp_path: Path) -> None:
    """COVERAGE, REJECTED and ALPHA, and where there is a picture at all, do not depend on it."""
    plan, tiles = two_tiles(tmp_path)
    (once, _), (twice, _) = (mosaic(tmp_path, plan, tiles, two_pass=on) for on in (False, True))
    for name in ("COVERAGE", "REJECTED", "ALPHA"):
        np.testing.assert_array_equal(twice[name], once[name])
    np.testing.assert_array_equal(np.isnan(twice[""]), np.isnan(once[""]))


def test_weight_still_tells_the_noise(tmp_path: Path) -> None:
    """WEIGHT is the inverse variance of the mean with the weights that it was made with: never more than the best."""
    plan, tiles = two_tiles(tmp_path)
    (once, _), (twice, _) = (mosaic(tmp_path, plan, tiles, two_pass=on) for on in (False, True))
    seen = once["WEIGHT"] > 0
    both = once["COVERAGE"] == 8
    assert np.abs(twice["WEIGHT"][seen] / once["WEIGHT"][seen] - 1.0).max() < 0.6
    assert (twice["WEIGHT"][both] <= once["WEIGHT"][both].max() * (1 + 1e-6)).all()


@pytest.mark.parametrize(("budget", "threads"), [(1, 1), (30_000, 1), (64 << 20, 4)])
def test_M5_bands_and_threads_leave_no_trace(tmp_path: Path, budget: int, threads: int) -> None:
    """The same bits for any height of the bands and any number of threads."""
    plan, tiles = two_tiles(tmp_path)
    once, _ = mosaic(tmp_path, plan, tiles, two_pass=True)
    again, _ = mosaic(tmp_path, plan, tiles, two_pass=True, band_budget_bytes=budget, threads=threads)
    for name, plane in once.items():
        np.testing.assert_array_equal(again[name], plane, err_msg=name)


def test_steepness_does_not_count_the_smooth_middle() -> None:
    """A tile that has all of the weight, and one that has none, change nothing."""
    flat = Share(x_block=0, y_block=0, share=np.ones((4, 4)))
    ramp = Share(x_block=0, y_block=0, share=np.linspace(0.0, 1.0, 5)[np.newaxis, :] * np.ones((4, 1)))
    assert steepness([flat]) == 0.0
    assert steepness([ramp]) == pytest.approx(0.25)


# --- a night -------------------------------------------------------------------------------------------------------


def test_C6_report_and_log_say_what_the_second_pass_did(tmp_path: Path) -> None:
    """Asked for, it is in both with its figures; else in neither."""
    wide = Night(cols=2, frames=2, width=240, height=320, scale_arcsec=8.0, dither_px=5.0)
    place = Place(tmp_path)
    drop(night(wide), place.incoming)
    assert place.process() == 0
    assert place.report()["second_pass"] is None
    assert not place.events("second_pass_done")
    assert place.process("mosaic.two_pass_enabled=true") == 0
    told = place.report()["second_pass"]
    (line,) = place.events("second_pass_done")
    assert told["tiles"] == line["tiles"] == 2
    assert told["steepness_after"] < told["steepness_before"]


def test_F26_a_mosaic_with_a_second_pass_is_another_mosaic() -> None:
    """The key of what pixels depend on holds the setting."""
    mode = MODES["classic"]
    on = Config(mosaic=MosaicTable(two_pass_enabled=True))
    assert SessionConfigs.content(on, mode) != SessionConfigs.content(Config(), mode)


def test_P6_cleanup_does_not_depend_on_it(tmp_path: Path) -> None:
    """With a second pass the tiles go as without."""
    place = Place(tmp_path)
    drop(night(TINY), place.incoming)
    assert place.process("mosaic.two_pass_enabled=true") == 0
    assert place.leftovers() == []
    assert place.events("run_info_temp_master_tiles_fits_cleaned")
