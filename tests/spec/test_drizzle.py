"""Drizzle: photosites dropped about what the ordinary stack found, where there are frames enough for it (M5, M6)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import scenes, values
from tests.scenes import Array
from zemosaicd import sphere
from zemosaicd.core.plan import window_bytes
from zemosaicd.model import FramePlan, Grid, Plan
from zemosaicd.science.drizzle import LEAST_FRAMES, View, evenness
from zemosaicd.science.resample import RED_SITE
from zemosaicd.work.jobs import StackSettings
from zemosaicd.work.members import Stack, drizzled, stack_of

W, H = values.WIDTH, values.HEIGHT
BASE = values.wcs_at(83.8, -5.4)
NOISE = 10.0
COUNT = 24
DITHER_PX = 3.0
STARS = [(x + 0.37 * x % 1.9, y + 0.53 * y % 1.7, 6000.0) for x in range(14, W - 14, 13) for y in range(14, H - 14, 12)]
SHARP_PX = 0.75
"""Sigma of an undersampled star."""


def dithered(count: int, bayer: str = "GRBG", turn_deg: float = 0.0) -> list[FramePlan]:
    """Frames about BASE at random places, each turned a little more than the one before."""
    rng, frames = np.random.default_rng(11), []
    for i in range(count):
        dx, dy = DITHER_PX * rng.normal(size=2)
        wcs = values.shifted(BASE, float(dx), float(dy))
        c, s = np.cos(np.radians(turn_deg * i)), np.sin(np.radians(turn_deg * i))
        turned = np.array(wcs.cd).reshape(2, 2) @ np.array([[c, -s], [s, c]])
        frames.append(values.frame_plan(i, replace(wcs, cd=tuple(turned.reshape(-1).tolist())), bayer=bayer))
    return frames


def night(
    folder: Path, frames: list[FramePlan], *, noise: float = NOISE, also: Callable[[int, Array], None] = lambda *_: None
) -> Plan:
    """The frames with caches of STARS, on BASE's own grid; `also` (frame's index, pixels) adds to them."""
    rng = np.random.default_rng(5)

    def pixels(i: int, frame: FramePlan) -> Array:
        seen = scenes.render(frame.wcs, W, H, BASE, STARS, frame.facts.bayer)
        seen += rng.normal(0.0, noise, seen.shape)
        also(i, seen)
        return seen

    plan = values.plan_of(scenes.caches(folder, frames, pixels), group_radius_fraction=9.0)
    return scenes.on_grid(plan, Grid(wcs=BASE, width=W, height=H))


def picture(folder: Path, plan: Plan, kernel: str = "drizzle", **settings: Any) -> dict[str, Array]:
    """The planes of the tile that a kernel makes, the picture without its sky."""
    made = scenes.planes(scenes.stack(folder, plan, name=f"_{kernel}", kernel=kernel, **settings)[0])
    return made | {"": made[""] - scenes.SKY}


def stack(plan: Plan, **settings: Any) -> tuple[Stack, list[Any]]:
    """The tile's stack as Phase 3 has it, and what it says."""
    chosen = StackSettings(kernel="drizzle", **settings)
    return drizzled(stack_of(plan, plan.tiles[0], list(plan.frames.values()), chosen), chosen)


def truth(bayer: str) -> Array:
    """What a perfect picture shows: every channel sampled at every pixel."""
    light = scenes.render(BASE, W, H, BASE, STARS) - scenes.SKY
    return np.array([c * light for c in scenes.COLOURS]) if bayer else light


def core(plane: Array, margin: int = 12) -> Array:
    """The middle of a picture, which every frame sees."""
    return plane[..., margin:-margin, margin:-margin]


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_M5_windows_and_threads_leave_no_trace_in_a_drizzled_tile(tmp_path: Path, bayer: str) -> None:
    """Small squares, three at a time, or the whole tile at once: the same bits in every picture of the file."""

    def trail(i: int, pixels: Array) -> None:
        if i == 3:
            pixels[np.arange(H), np.arange(H)] += 500.0

    plan = night(tmp_path / "c", dithered(COUNT, bayer, turn_deg=0.7), also=trail)
    small, report = scenes.stack(tmp_path, plan, name="_s", band_budget_bytes=1, threads=3, kernel="drizzle")
    large, _ = scenes.stack(tmp_path, plan, name="_l", band_budget_bytes=1 << 30, kernel="drizzle")
    plain, _ = scenes.stack(tmp_path, plan, name="_p", kernel="kriging")
    assert small.read_bytes() == large.read_bytes() != plain.read_bytes()
    assert not [n for n in report.notes if n.level == "warning"]


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_drizzle_keeps_the_light_of_stars(tmp_path: Path, bayer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stars together, undersampled ones: their light is what it is to half a percent, in every colour."""
    monkeypatch.setattr(scenes, "SIGMA_PX", 0.95)
    plan = night(tmp_path / "c", dithered(60, bayer), noise=2.0)
    made, wanted = core(picture(tmp_path, plan)[""]), core(truth(bayer))
    ratio = made.sum(axis=(-2, -1)) / wanted.sum(axis=(-2, -1))
    np.testing.assert_allclose(ratio, 1.0, atol=0.005)


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_drizzle_is_sharper_than_interpolation_where_stars_are_undersampled(
    tmp_path: Path, bayer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a perfect picture, the error is less than half of the best kernel's in every colour of a CFA, and a
    quarter less where no colours are."""
    monkeypatch.setattr(scenes, "SIGMA_PX", SHARP_PX)
    plan = night(tmp_path / "c", dithered(40, bayer), noise=1.0)
    wanted = core(truth(bayer))
    error = {
        k: np.std(core(picture(tmp_path, plan, k, rejection="none")[""]) - wanted, axis=(-2, -1))
        for k in ("kriging", "drizzle")
    }
    assert (error["drizzle"] < (0.5 if bayer else 0.75) * error["kriging"]).all()


def test_drizzle_takes_turned_and_bent_frames(tmp_path: Path) -> None:
    """Frames that turn by 45 degrees, seen through a distorting lens: stars come out where they are, and as bright."""
    lens = values.radial(1.0)
    frames = [replace(f, distortion=lens) for f in dithered(40, "RGGB", turn_deg=45.0 / 39)]
    rng = np.random.default_rng(2)
    few = [s for s in STARS if 30 < s[0] < W - 30 and 20 < s[1] < H - 20]

    def pixels(_: int, frame: FramePlan) -> Array:
        return scenes.render(frame.wcs, W, H, BASE, few, "RGGB", lens) + rng.normal(0.0, 1.0, (H, W))

    plan = values.plan_of(scenes.caches(tmp_path / "c", frames, pixels), group_radius_fraction=9.0)
    made = picture(tmp_path, scenes.on_grid(plan, Grid(wcs=BASE, width=W, height=H)))[""]
    light = scenes.render(BASE, W, H, BASE, few) - scenes.SKY
    wanted = np.array([c * light for c in scenes.COLOURS])
    assert np.abs(core(made, 20) - core(wanted, 20)).max() < 0.02 * wanted.max()


@pytest.mark.parametrize("rejection", ["auto", "kappa_sigma", "winsorized_sigma"])
@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_M6_what_the_rule_rejects_does_not_drop(tmp_path: Path, bayer: str, rejection: str) -> None:
    """Cosmic rays and a trail, in one frame each: by any rule nothing of them is left beyond a pixel's own noise."""
    rng = np.random.default_rng(8)

    def dirt(i: int, pixels: Array) -> None:
        pixels.reshape(-1)[rng.choice(W * H, 6, replace=False)] += 3000.0
        if i == 7:
            pixels[25:27] += 400.0

    clean = picture(tmp_path, night(tmp_path / "clean", dithered(COUNT, bayer)), rejection=rejection)
    dirty = picture(tmp_path, night(tmp_path / "dirty", dithered(COUNT, bayer), also=dirt), rejection=rejection)
    left = np.abs(core(dirty[""]) - core(clean[""]))
    assert left.max() < 8.0 * NOISE
    assert left.mean() < 0.1 * NOISE
    assert core(dirty["REJECTED"]).sum() > core(clean["REJECTED"]).sum() + 100


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_M6_hot_pixels_of_the_sensor_do_not_drop(tmp_path: Path, bayer: str) -> None:
    """Named by the plan, they leave nothing, though no rejection is at work and they shine in every frame."""
    hot = np.random.default_rng(3).choice(W * H, 40, replace=False)

    def shine(_: int, pixels: Array) -> None:
        pixels.reshape(-1)[hot] += 5000.0

    plan = night(tmp_path / "c", dithered(COUNT, bayer), also=shine)
    sensor = next(iter(plan.frames.values())).facts.sensor
    named = replace(plan, fixed_pixels={sensor: tuple(sorted(int(p) for p in hot))})
    clean = picture(tmp_path, night(tmp_path / "clean", dithered(COUNT, bayer)), rejection="none")[""]
    made = picture(tmp_path, named, rejection="none")[""]
    assert np.abs(core(made) - core(clean)).mean() < 0.3 * NOISE
    assert np.abs(core(made) - core(clean)).max() < 6.0 * NOISE


def test_coverage_and_rejected_count_the_same_frames_as_without(tmp_path: Path) -> None:
    """Only the picture and its weight are drizzle's: what saw a pixel is a matter of the frames, not of the drops."""
    plan = night(tmp_path / "c", dithered(COUNT), noise=NOISE)
    made, plain = (picture(tmp_path, plan, kernel, rejection="kappa_sigma") for kernel in ("drizzle", "kriging"))
    for name in ("COVERAGE", "REJECTED", "ALPHA"):
        np.testing.assert_array_equal(made[name], plain[name])
    np.testing.assert_array_equal(np.isnan(made[""]), np.isnan(plain[""]))
    np.testing.assert_array_equal(made["WEIGHT"] > 0, plain["WEIGHT"] > 0)


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_weight_is_the_inverse_variance_of_a_drizzled_pixel(
    tmp_path: Path, bayer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise alone, divided by what WEIGHT promises: its spread is 1, to what the picture under the drops adds."""
    monkeypatch.setattr(f"{__name__}.STARS", [])
    made = picture(tmp_path, night(tmp_path / "c", dithered(60, bayer)), drizzle_pixfrac=0.5)
    spread = np.std(core(made[""]) * np.sqrt(core(made["WEIGHT"])), axis=(-2, -1))
    assert ((spread > 0.9) & (spread < 1.3)).all()


def test_M6_too_few_frames_are_not_drizzled(tmp_path: Path) -> None:
    """One frame less than 20: the tile is the default kernel's to the last bit, and the log says how many there are."""
    plan = night(tmp_path / "c", dithered(LEAST_FRAMES - 1))
    made, report = scenes.stack(tmp_path, plan, kernel="drizzle")
    plain, _ = scenes.stack(tmp_path, plan, name="_plain", kernel="kriging")
    assert made.read_bytes() == plain.read_bytes()
    (note,) = [n for n in report.notes if n.level == "warning"]
    assert note.event == "drizzle_few_frames"
    assert (note.fields["value"], note.fields["threshold"]) == (LEAST_FRAMES - 1, LEAST_FRAMES)


@pytest.mark.parametrize("step", [0.0, 2.0])
def test_frames_that_lie_on_one_another_are_not_drizzled(tmp_path: Path, step: float) -> None:
    """Undithered, or by whole cells of the CFA: most pixels would never see red, so it is the default kernel's tile."""
    frames = [replace(f, wcs=values.shifted(BASE, step * (i % 5), -step * (i % 3))) for i, f in enumerate(dithered(30))]
    plan = night(tmp_path / "c", frames)
    made, report = scenes.stack(tmp_path, plan, kernel="drizzle")
    plain, _ = scenes.stack(tmp_path, plan, name="_plain", kernel="kriging")
    assert made.read_bytes() == plain.read_bytes()
    (note,) = [n for n in report.notes if n.level == "warning"]
    assert note.event == "drizzle_uneven"
    assert note.fields["value"] < note.fields["threshold"]


def test_pixels_that_few_frames_look_at_stay_as_they_were(tmp_path: Path) -> None:
    """At the edges of a dithered field: no holes, and the ordinary stack's value to the last bit."""
    plan = night(tmp_path / "c", dithered(COUNT))
    made, plain = (picture(tmp_path, plan, kernel, rejection="none") for kernel in ("drizzle", "kriging"))
    few = (plain["COVERAGE"] > 0) & (plain["COVERAGE"] < LEAST_FRAMES)
    assert few.sum() > 100
    np.testing.assert_array_equal(made[""][:, few], plain[""][:, few])
    np.testing.assert_array_equal(made["WEIGHT"][:, few], plain["WEIGHT"][:, few])
    assert np.isfinite(made[""][:, plain["COVERAGE"] > 0]).all()
    assert (made[""] != plain[""])[:, plain["COVERAGE"] == COUNT].mean() > 0.95


@pytest.mark.parametrize("bayer", ["", *RED_SITE])
def test_the_spread_of_the_dithers_is_measured(bayer: str) -> None:
    """Share of the pixels with light enough of every colour: all for random places; for frames in one place none, but
    where there are no colours."""
    shifts = np.random.default_rng(4).normal(0.0, 5.0, (40, 2))

    def seen(scale: float) -> tuple[int, float]:
        frames = [values.shifted(BASE, *(scale * s).tolist()) for s in shifts]
        views = [
            View(matrix=sphere.homography(BASE, w), width=W, height=H, bayer=bayer, distortion=None) for w in frames
        ]
        return evenness(views, W, H, 0.7)

    assert seen(1.0) == (40, 1.0)
    frames, share = seen(0.0)
    assert frames == 40
    assert share == 0.0 if bayer else share == 1.0


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_M5_the_second_pass_fits_into_the_memory_of_the_first(tmp_path: Path, bayer: str) -> None:
    """A drizzled window stays within the memory that is predicted for any window of the tile."""
    plan = night(tmp_path / "c", dithered(LEAST_FRAMES, bayer))
    made, notes = stack(plan)
    assert not notes
    made.window((0, H), (0, W))
    tracemalloc.start()
    made.window((0, H), (0, W))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * window_bytes(plan.tiles[0], (H, W))
