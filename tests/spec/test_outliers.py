"""Mega tiles are judged against each other before they are added (D2): what one of three has alone is no sky."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import scenes
from tests.spec.test_assembly import NOISE, strip
from tests.spec.test_super_tiles import satellite
from zemosaicd.core.modes import MODES
from zemosaicd.model import Plan
from zemosaicd.science.coadd import Slab, linear
from zemosaicd.science.combine import HALO
from zemosaicd.science.outliers import COLUMNS, Judgement, Layer, outlying
from zemosaicd.science.tilesolve import TileCorrection
from zemosaicd.work.judging import judged

Pixels = NDArray[np.float32]

ROWS, WIDE = 48, 60
SKY, SIGMA = 1000.0, 5.0
NOISE_ONLY = Judgement(photon=np.zeros(3), pedestal=np.full(3, SKY))


def sky(n: int, width: int = WIDE, seed: int = 1, channels: int = 1) -> Pixels:
    """(n, C, ROWS, width) of pure noise."""
    drawn = np.random.default_rng(seed).normal(SKY, SIGMA, (n, channels, ROWS, width))
    return np.asarray(drawn, np.float32)


def same(channels: int = 1, gain: float = 1.0, offset: float = 0.0) -> TileCorrection:
    """The same change in all channels."""
    zero, true = (0.0,) * channels, (True,) * channels
    return TileCorrection(
        gain=(gain,) * channels, pivot=zero, offset=(offset,) * channels, slope_x=zero, slope_y=zero, x=0.0, y=0.0,
        gain_measured=true, component=0,
    )  # fmt: skip


def layers(samples: Pixels, places: Sequence[tuple[int, int]] = (), variance: float = SIGMA**2) -> list[Layer]:
    """Whole tiles, each with its first pixel at a row and column of the grid."""
    channels = samples.shape[1]
    return [
        Layer(
            pixels=one, weight=np.full_like(one, 1.0 / variance), row=row, column=column, change=linear(same(channels))
        )
        for one, (row, column) in zip(samples, places or [(0, 0)] * len(samples), strict=True)
    ]


def flags(samples: Pixels, judgement: Judgement = NOISE_ONLY) -> NDArray[np.bool_]:
    """(n, ROWS, W): what is left out of a grid that all tiles cover."""
    return np.array(outlying(layers(samples), (0, ROWS), samples.shape[-1], judgement))


def test_D2_only_sds_judges_its_tiles() -> None:
    """Tiles of the other modes have seen their pixels often enough to judge them themselves, or are anybody's."""
    assert [name for name, mode in MODES.items() if mode.judges_tiles] == ["sds"]


@pytest.mark.parametrize("channels", [1, 3])
def test_D2_a_trail_in_one_of_three_mega_tiles_is_left_out(channels: int) -> None:
    """All of it, wings as far as they are seen, in that tile alone; and next to nothing else."""
    samples = sky(3, channels=channels)
    samples[1, :, 20:24] += 12 * SIGMA
    out = flags(samples)
    assert out[1, 20:24].all()
    assert out[[0, 2], 20:24].mean() < 0.01
    far = np.delete(out, np.s_[20 - HALO : 24 + HALO], axis=1)
    assert far.mean() < 0.01


def test_D2_a_trail_in_one_channel_is_left_out_of_all() -> None:
    """The flags are of pixels: a picture has no holes in one colour."""
    samples = sky(3, channels=3)
    samples[2, 1, 30:34] += 15 * SIGMA
    assert flags(samples)[2, 30:34].all()


def test_D2_two_mega_tiles_cannot_outvote_each_other() -> None:
    """Of two nothing is left out, whatever they hold; nor where of three only two see the sky."""
    samples = sky(2)
    samples[1, :, 20:24] += 100 * SIGMA
    assert not flags(samples).any()
    third = np.concatenate([samples, sky(1, seed=2)])
    third[2, :, 10:34] = np.nan
    assert not flags(third)[:, 14:30].any()


@pytest.mark.parametrize("flux", [2e3, 5e4, 5e5])
def test_D2_a_star_that_seeing_made_wider_in_one_tile_stays(flux: float) -> None:
    """Photons and the gradient protect it: of three tiles of 3.0, 3.2 and 3.4 px none is left out within 8 px."""
    y, x = np.mgrid[:ROWS, :WIDE]
    r2 = (x - 30.2) ** 2 + (y - 24.4) ** 2
    rng, samples = np.random.default_rng(3), sky(3)
    for i, fwhm in enumerate((3.0, 3.2, 3.4)):
        s = fwhm / 2.3548
        light = flux * np.exp(-0.5 * r2 / s**2) / (2 * np.pi * s**2)
        samples[i, 0] += light + np.sqrt(light) * rng.normal(size=light.shape)
    out = flags(samples, Judgement(photon=np.array([1 / SIGMA**2]), pedestal=np.array([SKY])))
    assert out[:, r2 < 8**2].mean() < 0.01
    assert not out[:, r2 < 2**2].any()


def test_D2_a_deep_tile_is_held_to_its_own_noise() -> None:
    """What is noise in a tile of one frame is a trail in a tile of twenty-five: WEIGHT says which."""
    samples = sky(3)
    samples[0] = SKY + (samples[0] - SKY) / 5
    samples[:2, :, 20:24] += 2.5 * SIGMA * np.array([1.0, 0.0], np.float32)[:, None, None, None]
    deep = layers(samples)
    deep[0] = replace(deep[0], weight=deep[0].weight * np.float32(25.0))
    out = np.array(outlying(deep, (0, ROWS), WIDE, NOISE_ONLY))
    assert out[0, 20:24].mean() > 0.5
    samples = sky(3)
    samples[0, :, 20:24] += 2.5 * SIGMA
    assert flags(samples)[0, 20:24].mean() < 0.5


@given(
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([0.0, 20.0, 500.0]),
)
def test_D2_no_pixel_is_ever_emptied(n: int, seed: int, gaps: float, camps: float) -> None:
    """Where any tile has data one stays; and what is not there is not left out."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(SKY, SIGMA, (n, 3, 9, 11)).astype(np.float32)
    samples += (np.float32(camps) * (np.arange(n) % 2) * rng.choice([-1, 1])).astype(np.float32)[:, None, None, None]
    samples[np.broadcast_to(rng.random((n, 1, 9, 11)) < gaps, samples.shape)] = np.nan
    seen = np.isfinite(samples).all(axis=1)
    out = np.array(outlying(layers(samples), (0, 9), 11, NOISE_ONLY))
    assert not (out & ~seen).any()
    np.testing.assert_array_equal((seen & ~out).any(axis=0), seen.any(axis=0))


def crowded(width: int) -> list[Layer]:
    """Four tiles of other sizes and places, with trails along rows, columns and across, and an impulse."""
    samples = sky(4, width, seed=9)
    samples[1, 0, :, COLUMNS - 2 : COLUMNS + 1] += 9 * SIGMA
    samples[2, 0, 10, ::7] += 500.0
    for r in range(ROWS):
        samples[3, 0, r, COLUMNS - 30 + r : COLUMNS - 26 + r] += 7 * SIGMA
    samples[0, 0, 20:26] += 9 * SIGMA
    made = layers(samples)
    made[1] = replace(made[1], pixels=made[1].pixels[:, 7:], weight=made[1].weight[:, 7:], row=7)
    made[2] = replace(made[2], pixels=made[2].pixels[:, :, 300:], weight=made[2].weight[:, :, 300:], column=300)
    return made


@pytest.mark.parametrize("rows", [1, 5, 17])
def test_M5_bands_leave_no_trace_in_what_is_left_out(rows: int) -> None:
    """Judged whole or by bands of any height, of which each tile gives HALO rows more: the same flags."""
    width = COLUMNS + 60
    tiles = crowded(width)
    once = np.array(outlying(tiles, (0, ROWS), width, NOISE_ONLY))
    assert once.any(axis=(1, 2)).all()
    for row0 in range(0, ROWS, rows):
        end = min(row0 + rows, ROWS)
        cut = []
        for t in tiles:
            top, bottom = max(0, row0 - HALO - t.row), max(0, end + HALO - t.row)
            cut.append(replace(t, pixels=t.pixels[:, top:bottom], weight=t.weight[:, top:bottom], row=t.row + top))
        np.testing.assert_array_equal(np.array(outlying(cut, (row0, end), width, NOISE_ONLY)), once[:, row0:end])


@pytest.mark.parametrize("moved", [-40, -3, 1, 25])
def test_M5_where_columns_are_cut_leaves_no_trace(moved: int) -> None:
    """Tiles that lie elsewhere on the grid are cut elsewhere: the same flags, moved along."""
    width = COLUMNS + 60
    tiles = crowded(width)
    wide = width + 100
    here, there = (
        np.array(outlying([replace(t, column=t.column + at) for t in tiles], (0, ROWS), wide, NOISE_ONLY))
        for at in (50, 50 + moved)
    )
    assert here.any()
    np.testing.assert_array_equal(there[:, :, 50 + moved : 50 + moved + width], here[:, :, 50 : 50 + width])


def test_D2_tiles_are_judged_as_they_are_added() -> None:
    """Tiles of another level and scale are brought to the grid's first; what is left of a slab is its own rows, in its
    own ADU."""
    samples = sky(3)
    samples[1, :, 20:24] += 12 * SIGMA
    expected = flags(samples)
    gain, offset = 2.0, -300.0
    raw = samples.copy()
    raw[2] = (raw[2] - offset) / gain
    weights = [np.full_like(one, 1 / SIGMA**2) for one in raw]
    weights[2] = weights[2] * np.float32(gain**2)
    slabs = [Slab(pixels=p, row0=0, weight=w) for p, w in zip(raw, weights, strict=True)]
    changes = [same(), same(), same(gain=gain, offset=offset)]
    cut = judged(slabs, [(0, 0)] * 3, changes, (10, 30), WIDE, NOISE_ONLY)
    for i, slab in enumerate(cut):
        assert (slab.row0, slab.pixels.shape[1], slab.weight.shape[1]) == (10, 20, 20)
        np.testing.assert_array_equal(np.isnan(slab.pixels[0]), expected[i, 10:30])
        kept = ~expected[i, 10:30]
        np.testing.assert_array_equal(slab.pixels[0][kept], raw[i, 0, 10:30][kept])


# --- files ---------------------------------------------------------------------------------------------------------


def swept(folder: Path, changed: Any = None) -> tuple[Plan, tuple[tuple[int, str], ...]]:
    """Nine frames as three mega tiles of three, of which nothing is rejected within."""
    plan = replace(strip(folder / "c", [9], changed, batch_cap=3), mode="sds")
    return plan, scenes.stack_all(folder, plan, rejection="none")


def test_D2_V1_a_satellite_that_fills_a_mega_tile_is_gone_and_its_frames_are_counted_as_rejected(
    tmp_path: Path,
) -> None:
    """The mosaic shows the sky there; COVERAGE is of the six frames that are in it, REJECTED of the three others."""
    plan, tiles = swept(tmp_path, satellite(0, 3))
    found = scenes.planes(scenes.mosaic(tmp_path, plan, tiles)[0])
    band, above = (np.nanmedian(found[""][rows, 20:-20]) for rows in (slice(41, 45), slice(54, 60)))
    assert abs(band - above) < 0.5 * NOISE
    crossed = found["COVERAGE"][42:45, 14:-14], found["REJECTED"][42:45, 14:-14]
    assert [np.median(plane) for plane in crossed] == [6, 3]
    inner = np.s_[14:-14, 14:-14]
    np.testing.assert_array_equal((found["COVERAGE"].astype(int) + found["REJECTED"])[inner], 9)
    assert np.median(found["COVERAGE"][54:-14, 14:-14]) == 9


@pytest.mark.parametrize(("budget", "threads"), [(1, 1), (200_000, 1), (64 << 20, 3)])
def test_M5_a_mosaic_of_mega_tiles_is_the_same_for_every_budget_and_thread_count(
    tmp_path: Path, budget: int, threads: int
) -> None:
    """Bands as low as they may be, or all in one, made by one thread or three: the same pictures."""
    plan, tiles = swept(tmp_path, satellite(3, 6))
    once = scenes.planes(scenes.mosaic(tmp_path, plan, tiles)[0])
    again = scenes.planes(scenes.mosaic(tmp_path, plan, tiles, band_budget_bytes=budget, threads=threads)[0])
    assert once["REJECTED"].any()
    for name, plane in once.items():
        assert plane.tobytes() == again[name].tobytes(), name
