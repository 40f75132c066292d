"""Phase 3: what a master tile is, on frames small enough to be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tests import scenes, values
from zemosaicd import sphere
from zemosaicd.model import FramePlan, Grid, Plan, TileFailed, Wcs
from zemosaicd.science.normalise import Normalise, Weights, levels_of, weights_of
from zemosaicd.work.jobs import StackSettings
from zemosaicd.work.members import stack_of

W, H = values.WIDTH, values.HEIGHT
BASE = values.wcs_at(83.8, -5.4)
STARS = [(30.2, 20.7, 4000.0), (60.4, 40.1, 9000.0), (80.0, 15.5, 2500.0)]
NOISE = 10.0


def dithered(count: int, *, bayer: str = "", turn_deg: float = 0.0, **changes: Any) -> list[FramePlan]:
    """Frames round BASE, off by some pixels and fractions, each turned a little more."""
    frames = []
    for i in range(count):
        wcs = values.shifted(BASE, 2.3 * math.sin(2.0 * i), 1.7 * math.cos(3.0 * i))
        c, s = math.cos(math.radians(turn_deg * i)), math.sin(math.radians(turn_deg * i))
        c11, c12, c21, c22 = wcs.cd
        turned = replace(wcs, cd=(c11 * c + c12 * s, c12 * c - c11 * s, c21 * c + c22 * s, c22 * c - c21 * s))
        frames.append(values.frame_plan(i, turned, bayer=bayer, **changes))
    return frames


def night(folder: Path, count: int, *, noise: float = NOISE, bayer: str = "", turn_deg: float = 0.0) -> Plan:
    """A plan of dithered frames of the same stars, with caches."""
    rng = np.random.default_rng(7)

    def pixels(_: int, frame: FramePlan) -> scenes.Array:
        seen = scenes.render(frame.wcs, W, H, BASE, STARS, bayer)
        return seen + rng.normal(0.0, noise, seen.shape)

    return values.plan_of(scenes.caches(folder, dithered(count, bayer=bayer, turn_deg=turn_deg), pixels))


def whole_pixels(folder: Path, shifts: Sequence[tuple[int, int]], pixels: Any, **changes: Any) -> Plan:
    """Frames off by whole pixels, stacked on the first one's own pixels: values pass the resampler unchanged."""
    frames = [values.frame_plan(i, values.shifted(BASE, *s), **changes) for i, s in enumerate(shifts)]
    plan = values.plan_of(scenes.caches(folder, frames, pixels), group_radius_fraction=9.0)
    return scenes.on_grid(plan, Grid(wcs=BASE, width=W, height=H))


@pytest.mark.parametrize("bayer", ["", "GRBG"])
@pytest.mark.parametrize("rejection", ["auto", "kappa_sigma", "winsorized_sigma"])
def test_M5_windows_and_threads_leave_no_trace_in_the_pixels(tmp_path: Path, bayer: str, rejection: str) -> None:
    """Small squares, three at a time, or the whole tile at once: the same bits in every picture of the file."""
    plan = night(tmp_path / "caches", 5, bayer=bayer, turn_deg=1.5)
    cache = Path(next(iter(plan.frames.values())).cache)
    trail = np.load(cache)
    trail[np.arange(H), np.arange(H)] += 500.0
    np.save(cache, trail)
    small, report = scenes.stack(tmp_path, plan, name="_s", band_budget_bytes=1, threads=3, rejection=rejection)
    large, _ = scenes.stack(tmp_path, plan, name="_l", band_budget_bytes=1 << 30, rejection=rejection)
    assert small.read_bytes() == large.read_bytes()
    assert report.figures["frames"] == 5


def test_V1_coverage_counts_the_frames_of_each_pixel(tmp_path: Path) -> None:
    """Four frames off by whole pixels: each counts where it has a pixel, and nowhere else."""
    shifts = [(0, 0), (10, 0), (0, -7), (-20, 15)]
    plan = whole_pixels(tmp_path / "c", shifts, lambda *_: np.full((H, W), scenes.SKY))
    expected = np.zeros((H, W), int)
    for dx, dy in shifts:
        expected[max(0, dy) : H + min(0, dy), max(0, dx) : W + min(0, dx)] += 1
    output, made = scenes.stack(tmp_path, plan, rejection="none")
    made_planes = scenes.planes(output)
    np.testing.assert_array_equal(made_planes["COVERAGE"], expected)
    assert made_planes["COVERAGE"].dtype == np.uint16
    assert made.figures["coverage_max"] == 4
    np.testing.assert_array_equal(made_planes[""], np.float32(scenes.SKY))


@pytest.mark.parametrize("bayer", ["", "RGGB"])
def test_V3_what_nobody_saw_is_nan_with_no_weight_and_no_alpha(tmp_path: Path, bayer: str) -> None:
    """The corners of turned frames; all colours share one footprint (V8), and alpha rises from its edge."""
    plan = night(tmp_path / "c", 3, bayer=bayer, turn_deg=4.0)
    output, made = scenes.stack(tmp_path, plan)
    made_planes = scenes.planes(output)
    unseen = made_planes["COVERAGE"] == 0
    assert 0.01 < unseen.mean() < 0.5
    assert made.figures["seen_fraction"] == pytest.approx(1.0 - unseen.mean())
    picture, weight = (np.atleast_3d(made_planes[n].T).T.reshape(-1, *unseen.shape) for n in ("", "WEIGHT"))
    assert len(picture) == (3 if bayer else 1)
    for plane in picture:
        np.testing.assert_array_equal(np.isnan(plane), unseen)
    assert (weight[:, unseen] == 0).all()
    assert (weight[:, ~unseen] > 0).all()
    assert (made_planes["ALPHA"][unseen] == 0).all()
    assert (made_planes["ALPHA"][~unseen] > 0).all()
    assert made_planes["ALPHA"].max() == 1.0


def test_V2_an_invalid_pixel_takes_itself_out_and_no_more(tmp_path: Path) -> None:
    """A NaN in one frame's cache lowers the count there by one; the others go on."""

    def pixels(i: int, _: FramePlan) -> scenes.Array:
        plane = np.full((H, W), scenes.SKY)
        plane[30, 40] = math.nan if i == 1 else scenes.SKY
        return plane

    output, _ = scenes.stack(tmp_path, whole_pixels(tmp_path / "c", [(0, 0)] * 3, pixels))
    made = scenes.planes(output)
    assert made["COVERAGE"][30, 40] == 2
    assert (made["COVERAGE"] == 3).sum() == H * W - 1
    assert np.isfinite(made[""]).all()


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_M6_hot_pixels_of_the_sensor_are_repaired_before_the_warp(tmp_path: Path, bayer: str) -> None:
    """Named by the plan, they leave nothing, though no rejection is at work and they shine in every frame."""
    plan = night(tmp_path / "clean", 6, bayer=bayer)
    clean, _ = scenes.stack(tmp_path, plan, name="_clean", rejection="none")
    hot = np.random.default_rng(3).choice(W * H, 40, replace=False)
    for frame in plan.frames.values():
        pixels = np.load(frame.cache)
        pixels.reshape(-1)[hot] += 5000.0
        np.save(frame.cache, pixels)
    sensor = next(iter(plan.frames.values())).facts.sensor
    named = replace(plan, fixed_pixels={sensor: tuple(sorted(int(p) for p in hot))})
    repaired, ignored = (
        scenes.stack(tmp_path, p, name=n, rejection="none")[0] for p, n in ((named, "_r"), (plan, "_i"))
    )
    left, all_of_it = (np.abs(scenes.planes(f)[""] - scenes.planes(clean)[""]) for f in (repaired, ignored))
    stars = scenes.planes(clean)[""] > scenes.SKY + 20 * NOISE
    assert np.nanmax(all_of_it) > 300.0
    assert np.nanmax(np.where(stars, 0.0, left)) < 3 * NOISE


def test_weights_are_inverse_variances(tmp_path: Path) -> None:
    """n frames of noise s: the picture is their weighted mean, WEIGHT the sum of 1/s^2 (depth is n/variance)."""
    rng = np.random.default_rng(1)
    cubes = rng.normal(scenes.SKY, 30.0, (3, H, W)).astype(np.float32)
    plan = whole_pixels(tmp_path / "c", [(0, 0)] * 3, lambda i, _: cubes[i])
    sigma = (10.0, 20.0, 5.0)
    frames = {f: replace(p, noise_adu=(s,)) for (f, p), s in zip(plan.frames.items(), sigma, strict=True)}
    output, _ = scenes.stack(tmp_path, replace(plan, frames=frames), rejection="none")
    weights = 1.0 / np.array(sigma) ** 2
    made = scenes.planes(output)
    np.testing.assert_allclose(made["WEIGHT"], weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(made[""], np.average(cubes, axis=0, weights=weights), rtol=1e-6)
    plain, _ = scenes.stack(tmp_path, replace(plan, frames=frames), name="_plain", rejection="none", weights="none")
    np.testing.assert_allclose(scenes.planes(plain)["WEIGHT"], 9.0 / (np.array(sigma) ** 2).sum(), rtol=1e-6)
    np.testing.assert_allclose(scenes.planes(plain)[""], cubes.mean(axis=0), rtol=1e-6)


def test_weights_by_name_are_what_they_say() -> None:
    """Inverse variance, sharpness, both or neither; a frame of unknown FWHM is as sharp as the middle one."""
    variance, fwhm = np.array([[4.0], [1.0], [1.0], [2.0]]), np.array([3.0, 2.0, 4.0, np.nan])
    sharp = np.array([[1.0], [1.5], [0.75], [1.0]])
    expected = {"none": np.ones((4, 1)), "noise_variance": 1 / variance, "noise_fwhm": sharp, "auto": sharp / variance}
    for rule in Weights:
        np.testing.assert_allclose(weights_of(rule, variance, fwhm), expected[rule.value])


@pytest.mark.parametrize("rule", list(Normalise))
def test_M6_normalisation_by_name_is_effective_in_the_stack(tmp_path: Path, rule: Normalise) -> None:
    """A frame of half the light on another sky: scaled and levelled by stars, or by two percentiles; levelled by one;
    or left as it is.
    """
    scene = scenes.render(BASE, W, H, BASE, STARS) - scenes.SKY + np.linspace(0.0, 400.0, W)
    plan = whole_pixels(tmp_path / "c", [(0, 0)] * 2, lambda i, _: scene * (1.0, 0.5)[i] + (1000.0, 2000.0)[i])
    low, high = np.percentile(scene, (25.0, 90.0))
    first, second = plan.frames.values()
    frames = {
        first.frame: replace(first, low_adu=(1000.0 + low,), high_adu=(1000.0 + high,)),
        second.frame: replace(
            second, sky_adu=(2000.0,), transparency=(0.5,), low_adu=(2000.0 + low / 2,), high_adu=(2000.0 + high / 2,)
        ),
    }
    output, _ = scenes.stack(
        tmp_path, replace(plan, frames=frames), rejection="none", weights="none", normalise=rule.value
    )
    levelled = {
        Normalise.STARS: scene + 1000.0,
        Normalise.LINEAR_FIT: scene + 1000.0,
        Normalise.SKY_MEAN: (scene + 1000.0 + scene / 2 + 1000.0 + low / 2) / 2,
        Normalise.NONE: (scene + 1000.0 + scene / 2 + 2000.0) / 2,
    }
    np.testing.assert_allclose(scenes.planes(output)[""], levelled[rule], rtol=1e-5)


def test_a_linear_fit_that_cannot_be_is_an_offset() -> None:
    """Flat frames, and fits steeper than 20, are levelled without being scaled."""
    wcs = values.wcs_at(10.0, 20.0)
    reference = values.frame_plan(1, wcs, low_adu=(100.0,), high_adu=(400.0,))
    for high in (100.0, 101.0):
        levels = levels_of(
            values.frame_plan(2, wcs, low_adu=(100.0,), high_adu=(high,)), reference, Normalise.LINEAR_FIT
        )
        assert levels.gain.tolist() == [1.0]


def test_transparency_and_sky_are_brought_to_the_reference(tmp_path: Path) -> None:
    """Half the light on twice the sky is scaled up, levelled, and weighs a quarter."""
    scene = scenes.render(BASE, W, H, BASE, STARS) - scenes.SKY
    plan = whole_pixels(tmp_path / "c", [(0, 0)] * 2, lambda i, _: scene * (1.0, 0.5)[i] + (1000.0, 2000.0)[i])
    first, second = plan.frames.values()
    frames = {first.frame: first, second.frame: replace(second, sky_adu=(2000.0,), transparency=(0.5,))}
    plan = replace(plan, frames=frames)
    output, _ = scenes.stack(tmp_path, plan, rejection="none")
    made = scenes.planes(output)
    np.testing.assert_allclose(made[""], scene + 1000.0, rtol=1e-5)
    np.testing.assert_allclose(made["WEIGHT"], (1.0 + 0.25) / NOISE**2, rtol=1e-6)


def test_levels_bring_each_channel_to_the_reference() -> None:
    """The frame's sky becomes the reference's, its light is scaled by its transparency in that channel."""
    wcs = values.wcs_at(10.0, 20.0)
    reference = values.frame_plan(1, wcs, bayer="RGGB", sky_adu=(100.0, 200.0, 300.0))
    other = values.frame_plan(2, wcs, bayer="RGGB", sky_adu=(50.0, 80.0, 90.0), transparency=(0.8, 0.5, 0.4))
    levels = levels_of(other, reference)
    np.testing.assert_allclose((np.array(other.sky_adu) - levels.sky) * levels.gain + levels.zero, reference.sky_adu)
    np.testing.assert_allclose(levels.gain, [1.25, 2.0, 2.5])
    odd = levels_of(replace(other, transparency=(1e-9,) * 3), reference)
    assert odd.gain.max() <= 20.0  # a frame through a cloud is not blown up without limit


def test_noise_and_photon_term_are_scaled_with_the_light(tmp_path: Path) -> None:
    """A frame seen through haze weighs by the square of its transparency; its photon term grows by the gain alone."""
    wcs = values.wcs_at(10.0, 20.0)
    frames = [values.frame_plan(i, wcs, bayer="RGGB", transparency=(t,) * 3) for i, t in enumerate((1.0, 0.8))]
    plan = values.plan_of(scenes.caches(tmp_path / "c", frames, lambda *_: np.full((H, W), scenes.SKY)))
    stack = stack_of(plan, plan.tiles[0], list(plan.frames.values()), StackSettings())
    np.testing.assert_allclose(1.0 / stack.weights[1], (10.0 * 1.25) ** 2)
    np.testing.assert_allclose(stack.noise.photon[1], 0.5 * 1.25)


def test_P10_frames_that_are_gone_for_good_are_left_out(tmp_path: Path) -> None:
    """`without` names them: the tile is that of the others, though their caches are not there."""
    plan = night(tmp_path / "c", 4)
    gone = plan.tiles[0].frames[2]
    Path(plan.frames[gone].cache).unlink()
    output, made = scenes.stack(tmp_path, plan, without=[gone])
    assert (made.figures["frames"], made.figures["coverage_max"]) == (3, 3)
    kept = replace(plan.tiles[0], frames=tuple(f for f in plan.tiles[0].frames if f != gone))
    other, _ = scenes.stack(tmp_path, replace(plan, tiles=(kept,)), name="_other")
    assert output.read_bytes() == other.read_bytes()


def test_R10_a_tile_without_any_frame_fails_with_its_key(tmp_path: Path) -> None:
    """Never a black tile."""
    plan = night(tmp_path / "c", 2)
    with pytest.raises(TileFailed) as error:
        scenes.stack(tmp_path, plan, without=plan.tiles[0].frames)
    assert error.value.reason.rule == "mastertile_error_no_valid_images_from_cache"


def test_F31_a_tile_that_nobody_saw_fails_and_leaves_no_file(tmp_path: Path) -> None:
    """A grid beside all frames: a reason, not a black tile; nothing partial stays."""
    plan = night(tmp_path / "c", 2)
    aside = scenes.on_grid(plan, Grid(wcs=values.shifted(BASE, 500.0, 0.0), width=W, height=H))
    with pytest.raises(TileFailed) as error:
        scenes.stack(tmp_path, aside)
    assert (error.value.reason.rule, error.value.reason.value) == ("empty_tile", 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "plan.json"]


def test_a_cache_that_vanished_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    """Phase 3 never makes a hole of it in silence: the shell has the cache made again (P10)."""
    plan = night(tmp_path / "c", 3)
    Path(plan.frames[plan.tiles[0].frames[1]].cache).unlink()
    with pytest.raises(FileNotFoundError):
        scenes.stack(tmp_path, plan)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "plan.json"]


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_a_stars_flux_is_conserved(tmp_path: Path, bayer: str) -> None:
    """From frames off by fractions of a pixel and turned into the tile: within 1 %, in every colour."""
    plan = night(tmp_path / "c", 8, noise=0.5, bayer=bayer, turn_deg=0.7)
    output, _ = scenes.stack(tmp_path, plan, rejection="none")
    picture = scenes.planes(output)[""].reshape(-1, plan.tiles[0].grid.height, plan.tiles[0].grid.width)
    place = sphere.sky_to_pixel(plan.tiles[0].grid.wcs, sphere.pixel_to_sky(BASE, *STARS[1][:2]))
    assert place is not None
    for plane, share in zip(picture, scenes.COLOURS if bayer else (1.0,), strict=True):
        assert scenes.flux(plane, *place) == pytest.approx(STARS[1][2] * share, rel=0.01)


def test_a_frame_of_larger_pixels_brings_the_same_flux(tmp_path: Path) -> None:
    """Interpolation keeps the value of a pixel; that a pixel holds more of the sky is the levels' affair."""

    def pixels(_: int, frame: FramePlan) -> scenes.Array:
        return scenes.render(frame.wcs, W, H, BASE, STARS, "")

    wide = replace(BASE, cd=(1.04 * BASE.cd[0], 1.04 * BASE.cd[1], 1.04 * BASE.cd[2], 1.04 * BASE.cd[3]))
    frames = [values.frame_plan(i, values.shifted(BASE if i % 2 else wide, 0.3 * i, 0.2 * i)) for i in range(6)]
    plan = values.plan_of(scenes.caches(tmp_path / "c", frames, pixels))
    output, _ = scenes.stack(tmp_path, plan, rejection="none")
    spec = plan.tiles[0]
    place = sphere.sky_to_pixel(spec.grid.wcs, sphere.pixel_to_sky(BASE, *STARS[1][:2]))
    assert place is not None
    area = (sphere.scale_arcsec(plan.frames[spec.reference].wcs) / sphere.scale_arcsec(spec.grid.wcs)) ** 2
    assert scenes.flux(scenes.planes(output)[""], *place) == pytest.approx(STARS[1][2] * area, rel=0.01)


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_a_bent_cameras_stars_stack_where_they_belong(tmp_path: Path, bayer: str) -> None:
    """Frames half of which stand on their heads, 2 px of distortion: stars are in place, and as narrow as without."""
    width, height, lens = 160, 120, values.radial(2.0, 160, 120)
    base = values.wcs_at(83.8, -5.4, width=width, height=height)
    stars = [(14.3, 15.6, 9000.0), (140.2, 100.7, 9000.0), (80.4, 60.3, 9000.0), (17.1, 104.2, 9000.0)]
    flipped = replace(base, cd=(-base.cd[0], -base.cd[1], -base.cd[2], -base.cd[3]))
    frames = [
        values.frame_plan(i, values.shifted(w, 0.37 * i, -0.23 * i), width=width, height=height, bayer=bayer)
        for i, w in enumerate([base, flipped] * 4)
    ]
    shapes = {}
    for name, bends, knows in (("plain", None, None), ("bent", lens, lens), ("ignored", lens, None)):
        seen = scenes.caches(
            tmp_path / name,
            [replace(f, distortion=knows) for f in frames],
            lambda _, f, b=bends: scenes.render(f.wcs, width, height, base, stars, bayer, b),  # type: ignore[misc]
        )
        plan = values.plan_of(seen)
        output, _ = scenes.stack(tmp_path, plan, name=name, rejection="none")
        green = scenes.planes(output)[""].reshape(-1, plan.tiles[0].grid.height, plan.tiles[0].grid.width)
        shapes[name] = [star_shape(green[len(green) // 2], plan.tiles[0].grid, base, s) for s in stars]
    for (away, width_px), (_, plain_px) in zip(shapes["bent"], shapes["plain"], strict=True):
        assert away < 0.05
        assert width_px == pytest.approx(plain_px, rel=0.06)  # unbending so strong a lens scales stars by 0.06 too
    corners = [s for s, at in zip(shapes["ignored"], stars, strict=True) if at[0] != 80.4]
    assert min(away for away, _ in corners) > 0.5


def star_shape(picture: scenes.Array, grid: Grid, base: Wcs, star: scenes.Star) -> tuple[float, float]:
    """How far from its place a star stands, and its sigma, px."""
    place = sphere.sky_to_pixel(grid.wcs, sphere.pixel_to_sky(base, star[0], star[1]))
    assert place is not None
    y, x = np.indices(picture.shape)
    near = (np.hypot(x - place[0], y - place[1]) < 7) & np.isfinite(picture)
    light = np.where(near, picture - scenes.SKY, 0.0)
    cx, cy = (float((light * axis).sum() / light.sum()) for axis in (x, y))
    spread = float((light * ((x - cx) ** 2 + (y - cy) ** 2)).sum() / light.sum())
    return math.hypot(cx - place[0], cy - place[1]), math.sqrt(spread / 2)


def test_M6_auto_rejects_a_trail_and_keeps_the_stars(tmp_path: Path) -> None:
    """A satellite in one of eight frames leaves no trace; the brightest star loses nothing."""
    plan = night(tmp_path / "c", 8)
    clean, _ = scenes.stack(tmp_path, plan, name="_clean")
    cache = Path(plan.frames[plan.tiles[0].frames[3]].cache)
    trailed = np.load(cache)
    trailed[25:28, :] += 400.0
    np.save(cache, trailed)
    output, made = scenes.stack(tmp_path, plan)
    difference = scenes.planes(output)[""] - scenes.planes(clean)[""]
    assert np.nanmax(np.abs(difference)) < 5 * NOISE
    assert abs(np.nanmedian(difference)) < 0.1
    assert made.figures["rejected_pct"] > 0.3  # type: ignore[operator]
    lost, coverage = scenes.planes(output)["REJECTED"], scenes.planes(output)["COVERAGE"]
    there = scenes.planes(clean)["COVERAGE"] + scenes.planes(clean)["REJECTED"]
    np.testing.assert_array_equal(lost + coverage, there)
    assert (lost > 0).mean(axis=1).max() > 0.2  # along the trail
    assert np.median((lost > 0).mean(axis=1)) < 0.05


@pytest.mark.parametrize("bayer", ["", "RGGB"])
def test_a_master_tile_opens_elsewhere_with_its_wcs(tmp_path: Path, bayer: str) -> None:
    """astropy reads every extension, and finds the grid that was planned, 1e-6 px (V6: shapes are the grid's)."""
    plan = night(tmp_path / "c", 2, bayer=bayer)
    output, _ = scenes.stack(tmp_path, plan)
    grid = plan.tiles[0].grid
    with fits.open(output, memmap=False) as file:
        file.verify("exception")
        assert [h.header.get("EXTNAME", "") for h in file] == ["", "WEIGHT", "COVERAGE", "REJECTED", "ALPHA"]
        assert file[0].header["NCOMBINE"] == 2
        shape = (grid.height, grid.width)
        assert [h.data.shape for h in file] == [(3, *shape) if bayer else shape] * 2 + [shape] * 3
        for hdu in file:
            theirs = WCS(hdu.header).celestial
            ra, dec = (float(v) for v in theirs.pixel_to_world_values(7.0, 11.0))
            ours = sphere.pixel_to_sky(grid.wcs, 7.0, 11.0)
            assert sphere.separation_deg(ours, sphere.direction(ra, dec)) < 1e-6 * values.SCALE_ARCSEC / 3600.0


def test_M5_the_prediction_stands_in_the_figures(tmp_path: Path) -> None:
    """Megabytes of the worker, lower for a smaller budget."""
    plan = night(tmp_path / "c", 4)
    least, most = (scenes.stack(tmp_path, plan, band_budget_bytes=b)[1].figures["predicted_mb"] for b in (1, 1 << 30))
    assert isinstance(least, float)
    assert isinstance(most, float)
    assert 0.0 < least < most
