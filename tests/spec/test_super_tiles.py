"""Phase 4.5: tiles of almost the same sky become super tiles; off unless it is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from tests import scenes, strangers, values
from tests.nights import INLINE, Place, drop, night, pixels, tree
from tests.spec.test_assembly import NOISE, STARS, H, W, place_of, strip
from zemosaicd.core.modes import MODES
from zemosaicd.core.supertiles import MOST_MEMBERS, Point, groups, shared, super_spec, with_supers
from zemosaicd.model import Plan
from zemosaicd.science.outliers import Judgement
from zemosaicd.science.supers import HALO, SuperBand, halo_of, merge
from zemosaicd.settings import Config, MosaicTable
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.simulate import Night
from zemosaicd.work.jobs import MergeTiles, MosaicSettings

# --- which tiles (pure) --------------------------------------------------------------------------------------------

SIDES = st.floats(1.0, 50.0)
PLACES = st.floats(-60.0, 60.0)


def rectangle(x: float, y: float, width: float, height: float) -> list[Point]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


@given(PLACES, PLACES, SIDES, SIDES, SIDES, SIDES)
def test_two_footprints_share_what_of_the_smaller_lies_in_the_other(
    x: float, y: float, wide: float, high: float, wide2: float, high2: float
) -> None:
    """For rectangles it is what anybody can work out; it does not matter which of two comes first."""
    a, b = rectangle(0.0, 0.0, wide, high), rectangle(x, y, wide2, high2)
    across = max(0.0, min(wide, x + wide2) - max(0.0, x))
    down = max(0.0, min(high, y + high2) - max(0.0, y))
    expected = across * down / min(wide * high, wide2 * high2)
    assert shared(a, b) == pytest.approx(expected, abs=1e-9)
    assert shared(b, a) == pytest.approx(shared(a, b), abs=1e-9)


@given(
    st.lists(st.tuples(st.floats(0.0, 40.0), st.floats(0.0, 40.0)), min_size=0, max_size=12),
    st.floats(0.05, 0.95),
    st.randoms(use_true_random=False),
)
def test_groups_are_the_connected_components_of_two_or_more(
    places: list[tuple[float, float]], least: float, random: Any
) -> None:
    """Whoever hangs together by enough overlap, directly or through others, is in one group; nobody else is in any."""
    hulls = {n: rectangle(x, y, 10.0, 10.0) for n, (x, y) in enumerate(places, 1)}
    near = {n: {m for m in hulls if shared(hulls[n], hulls[m]) >= least} for n in hulls}
    parts: set[tuple[int, ...]] = set()
    for n in hulls:
        found = {n}
        while more := {m for f in found for m in near[f]} - found:
            found |= more
        parts.add(tuple(sorted(found)))
    mixed = list(hulls)
    random.shuffle(mixed)
    made = groups({n: hulls[n] for n in mixed}, least)
    assert made == sorted(part for part in parts if len(part) > 1)


@pytest.mark.parametrize("count", [2, MOST_MEMBERS, MOST_MEMBERS + 1, 3 * MOST_MEMBERS - 1])
def test_a_large_group_is_cut_into_even_parts(count: int) -> None:
    """No super tile has more than 64 members, and none is left with one; every tile is in one of them."""
    made = groups({n: rectangle(0.1 * n, 0.0, 10.0, 10.0) for n in range(count)}, 0.6)
    assert [t for part in made for t in part] == list(range(count))
    assert max(map(len, made)) <= MOST_MEMBERS
    assert max(map(len, made)) - min(map(len, made)) <= 1


def test_tiles_of_two_mosaics_are_never_merged() -> None:
    """Filters make mosaics of their own: the same sky through another filter is another picture."""
    places = [values.wcs_at(83.8, -5.4)] * 4
    frames = [values.frame_plan(i, w, filter_name="Ha" if i % 2 else "OIII") for i, w in enumerate(places)]
    plan = with_supers(values.plan_of(frames, batch_cap=1), 0.6)
    assert len(plan.mosaics) == len(plan.supers) == 2
    for members in plan.supers.values():
        assert len({t.mosaic for t in plan.tiles if t.tile in members}) == 1


def test_it_is_off_by_default_and_costs_nothing() -> None:
    """No key set: no super tile, and the plan is the plan; asked for, 60 % of the smaller footprint is the limit."""
    assert (MosaicTable().merge_tiles, MosaicTable().merge_overlap) == (False, 0.6)
    assert SessionConfigs.plan_settings(Config(), MODES["classic"]).merge_overlap == 0.0
    plan = values.plan_of(values.field(1, 3, step=0.2), group_radius_fraction=0.01)
    assert with_supers(plan, 0.0) is plan
    assert with_supers(plan, 0.6).supers == {4: (1, 2, 3)}
    assert with_supers(plan, 0.6).disk_bytes > plan.disk_bytes


@pytest.mark.parametrize("mode", list(MODES))
def test_D5_modes_say_whether_their_tiles_are_merged(mode: str) -> None:
    """Cells of mode grid are butted and share no sky; the tiles of every other mode may be merged."""
    asked = Config(mosaic=MosaicTable(merge_tiles=True, merge_overlap=0.7))
    assert SessionConfigs.plan_settings(asked, MODES[mode]).merge_overlap == (0.0 if mode == "grid" else 0.7)


# --- many samples, one pixel ---------------------------------------------------------------------------------------

ROWS, COLUMNS = 48, 64


def sky(n: int, seed: int = 1, sigma: float = 1.0) -> Any:
    """(n, 1, ROWS, COLUMNS) float32 of pure noise."""
    return np.random.default_rng(seed).normal(100.0, sigma, (n, 1, ROWS, COLUMNS)).astype(np.float32)


def whole(samples: Any, ivar: Any = None, alpha: Any = None) -> SuperBand:
    ivar = np.ones_like(samples) if ivar is None else ivar
    alpha = np.ones(samples[:, 0].shape, np.float32) if alpha is None else alpha
    return merge(samples, ivar, alpha, (0, 0))


def test_what_one_of_three_tiles_has_alone_is_left_out() -> None:
    """A satellite that survived in one tile is outvoted; its light is gone, and the pixel says who was left out."""
    samples = sky(3)
    samples[1, 0, 20:24] += 40.0
    made = whole(samples)
    assert abs(float(made.picture[0, 20:24].mean()) - 100.0) < 0.2
    assert made.rejected[1, 20:24].all()
    assert not made.kept[1, 20:24].any()
    assert made.rejected.mean() < 0.08


def test_a_trail_below_the_noise_of_a_pixel_is_left_out() -> None:
    """Four pixels wide and 4 sigma high it is below the limit of a single pixel (5.1 of three tiles), not of a box."""
    samples = sky(3)
    samples[2, 0, 30:34] += 4.0
    made = whole(samples)
    assert made.rejected[2, 30:34].mean() > 0.9
    assert abs(float(made.picture[0, 30:34].mean()) - 100.0) < 0.3


def test_two_tiles_cannot_outvote_each_other() -> None:
    """Below three samples a pixel is the weighted mean, whatever they are."""
    samples = sky(2)
    samples[1] += 40.0
    ivar = np.ones_like(samples)
    ivar[0] = 3.0
    made = whole(samples, ivar)
    assert not made.rejected.any()
    np.testing.assert_allclose(made.picture, 0.75 * samples[0] + 0.25 * samples[1], rtol=1e-6)


def test_tiles_of_the_same_sky_are_left_alone() -> None:
    """Of pure noise next to nothing is rejected, whether the tiles are equally deep or not."""
    ivar = np.ones((5, 1, ROWS, COLUMNS), np.float32)
    samples = sky(5)
    assert whole(samples, ivar).rejected.mean() < 2e-3
    samples[0] = 100.0 + (samples[0] - 100.0) / 5.0
    ivar[0] = 25.0
    assert whole(samples, ivar).rejected.mean() < 4e-3


def test_the_noise_of_bright_nebulae_is_no_reason() -> None:
    """Light adds noise that WEIGHT does not know: ten times the sky's variance, and as little is rejected as of sky."""
    samples, ivar = sky(5, sigma=10.0**0.5) + np.float32(900.0), np.ones((5, 1, ROWS, COLUMNS), np.float32)
    alpha = np.ones((5, ROWS, COLUMNS), np.float32)
    light = Judgement(photon=np.array([0.01]), pedestal=np.array([100.0]))
    assert merge(samples, ivar, alpha, (0, 0), light).rejected.mean() < 2e-3
    assert merge(samples, ivar, alpha, (0, 0)).rejected.mean() > 0.1


def test_alpha_does_not_switch_the_rejection_off() -> None:
    """Tiles with an alpha are judged as tiles without; alpha only weighs what is kept."""
    samples = sky(3)
    samples[0, 0, 20:24] += 40.0
    alpha = np.full((3, ROWS, COLUMNS), 0.3, np.float32)
    made = whole(samples, alpha=alpha)
    np.testing.assert_array_equal(made.rejected, whole(samples).rejected)
    np.testing.assert_allclose(made.picture, whole(samples).picture, rtol=1e-6)


def test_a_star_that_seeing_made_wider_in_one_tile_stays() -> None:
    """The gradient protects cores: no tile of three is rejected at a star of 3.0, 3.3 and 3.6 px."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    r2 = (x - 30.2) ** 2 + (y - 24.4) ** 2
    samples = sky(3)
    for i, fwhm in enumerate((3.0, 3.3, 3.6)):
        s = fwhm / 2.3548
        samples[i, 0] += (5e4 * np.exp(-0.5 * r2 / s**2) / (2 * np.pi * s**2)).astype(np.float32)
    assert not whole(samples).rejected[:, r2 < 8**2].any()


def test_weight_is_the_inverse_variance_of_what_is_written() -> None:
    """Over many drawings a pixel scatters as WEIGHT says, with tiles of other depth and another alpha."""
    ivar = np.empty((3, 1, ROWS, COLUMNS), np.float32)
    alpha = np.ones((3, ROWS, COLUMNS), np.float32)
    ivar[0], ivar[1], ivar[2] = 1.0, 4.0, 0.25
    alpha[1] = 0.4
    samples = sky(3, seed=5)
    samples = 100.0 + (samples - 100.0) / np.sqrt(ivar)
    made = whole(samples.astype(np.float32), ivar, alpha)
    clean = ~made.rejected.any(axis=0)
    spread = float(np.std(made.picture[0][clean]))
    assert spread == pytest.approx(1.0 / np.sqrt(float(np.median(made.weight))), rel=0.05)


@given(
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([0.0, 50.0]),
)
def test_no_pixel_is_ever_emptied(n: int, seed: int, gaps: float, camps: float) -> None:
    """Where any tile has data there is a picture, with a weight; where none has there is neither."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0.0, 1.0, (n, 3, 9, 11)).astype(np.float32)
    samples += np.float32(camps) * (np.arange(n) % 2).astype(np.float32)[:, None, None, None]
    samples[np.broadcast_to(rng.random((n, 1, 9, 11)) < gaps, samples.shape)] = np.nan
    seen = np.isfinite(samples).all(axis=1).any(axis=0)
    made = whole(samples)
    np.testing.assert_array_equal(np.isfinite(made.picture).all(axis=0), seen)
    np.testing.assert_array_equal((made.weight > 0).all(axis=0), seen)
    np.testing.assert_array_equal(made.alpha > 0, seen)


@pytest.mark.parametrize("rows", [1, 5, 17])
def test_M5_windows_leave_no_trace_in_a_super_tile(rows: int) -> None:
    """Made whole or by bands of any height, every bit is the same."""
    samples = sky(4, seed=9)
    samples[1, 0, :, 20:23] += 9.0
    samples[2, 0, 10, 10] += 500.0
    ivar, alpha = np.ones_like(samples), np.ones((4, ROWS, COLUMNS), np.float32)
    once = merge(samples, ivar, alpha, (0, 0))
    assert once.rejected.any()
    assert HALO == 4
    for row0 in range(0, ROWS, rows):
        end = min(row0 + rows, ROWS)
        halo = halo_of(row0, end - row0, ROWS)
        part = slice(row0 - halo[0], end + halo[1])
        band = merge(samples[:, :, part], ivar[:, :, part], alpha[:, part], halo)
        np.testing.assert_array_equal(band.picture, once.picture[:, row0:end])
        np.testing.assert_array_equal(band.weight, once.weight[:, row0:end])
        np.testing.assert_array_equal(band.rejected, once.rejected[:, row0:end])


# --- files ---------------------------------------------------------------------------------------------------------


def satellite(first: int, last: int) -> Any:
    """Frames first to last of the only pointing have a bright band across them."""
    frame = itertools.count()

    def changed(_: int, seen: scenes.Array) -> scenes.Array:
        if first <= next(frame) < last:
            seen[40:46] += 60.0
        return seen

    return changed


def merged(
    folder: Path, plan: Plan, tiles: Sequence[tuple[int, str]], name: str = "super_tile.fits", **settings: Any
) -> tuple[Path, Any]:
    """Phase 4.5 for the one super tile of a plan."""
    ((number, members),) = plan.supers.items()
    job = MergeTiles(
        plan_path=str(scenes.write_plan(folder, plan)),
        tile=number,
        members=tuple(t for t in tiles if t[0] in members),
        without=(),
        output=str(folder / name),
        settings=MosaicSettings(**settings),
    )
    return folder / name, job.run()


def batches(folder: Path, changed: Any = None, **settings: Any) -> tuple[Plan, tuple[tuple[int, str], ...]]:
    """Nine frames of one pointing as three tiles of three, which are to be merged."""
    plan = with_supers(strip(folder / "c", [9], changed, **{"batch_cap": 3, **settings}), 0.6)
    return plan, scenes.stack_all(folder, plan, rejection="none")


def test_a_satellite_of_one_tile_is_gone_from_the_super_tile(tmp_path: Path) -> None:
    """It fills a whole tile, so that no rejection in it could know; the other two do."""
    plan, tiles = batches(tmp_path, satellite(0, 3))
    path, made = merged(tmp_path, plan, tiles)
    found = scenes.planes(path)
    band, above = (np.nanmedian(found[""][rows, 20:-20]) for rows in (slice(41, 45), slice(54, 60)))
    assert abs(band - above) < 0.5 * NOISE
    assert made.figures["rejected_pct"] > 0.5
    assert made.figures["tiles"] == [1, 2, 3]


def test_a_stars_flux_is_conserved_from_tile_to_super_tile(tmp_path: Path) -> None:
    """Bright stars have their flux to 1 % and do not scatter more than 2 %."""
    plan, tiles = batches(tmp_path)
    path, _ = merged(tmp_path, plan, tiles)
    picture, grid = scenes.planes(path)[""], super_spec(0, plan.tiles, plan.mosaics[0]).grid
    bright = [s for s in STARS if s[2] > 1.2e4 and 24 < s[1] < H - 24 and 24 < s[0] < W - 24]
    ratios = [scenes.flux(picture, *place_of(grid, s), radius=8.0) / s[2] for s in bright]
    assert len(ratios) >= 4
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)
    assert np.std(ratios) < 0.02


def test_V1_coverage_of_a_super_tile_counts_the_frames_that_are_in_it(tmp_path: Path) -> None:
    """Nine where all agree; six, and three rejected, where one tile was left out."""
    plan, tiles = batches(tmp_path, satellite(0, 3))
    found = scenes.planes(merged(tmp_path, plan, tiles)[0])
    inner = found["COVERAGE"][54:-14, 14:-14].astype(int)
    assert np.median(inner) == 9
    assert set(np.unique(inner)) <= {3, 6, 9}
    crossed = found["COVERAGE"][42:45, 14:-14], found["REJECTED"][42:45, 14:-14]
    assert [np.median(plane) for plane in crossed] == [6, 3]
    np.testing.assert_array_equal((found["COVERAGE"].astype(int) + found["REJECTED"])[14:-14, 14:-14], 9)


def test_R8_a_frame_of_two_tiles_counts_once_in_their_super_tile(tmp_path: Path) -> None:
    """Overlapping batches share frames: nine frames are nine."""
    plan, tiles = batches(tmp_path, batch_cap=4, batch_overlap=1)
    assert sum(len(t.frames) for t in plan.tiles) > 9
    found = scenes.planes(merged(tmp_path, plan, tiles)[0])["COVERAGE"]
    assert np.median(found[14:-14, 14:-14]) == found.max() == 9


@pytest.mark.parametrize(("budget", "threads"), [(1, 1), (200_000, 1), (64 << 20, 3)])
def test_M5_a_super_tile_is_the_same_for_every_budget_and_thread_count(
    tmp_path: Path, budget: int, threads: int
) -> None:
    """Bands as low as they may be, or all in one, made by one thread or three: the same file."""
    plan, tiles = batches(tmp_path, satellite(3, 6))
    once, _ = merged(tmp_path, plan, tiles)
    again, _ = merged(tmp_path, plan, tiles, "again.fits", band_budget_bytes=budget, threads=threads)
    assert once.read_bytes() == again.read_bytes()


def test_the_tiles_of_a_super_tile_are_only_read(tmp_path: Path) -> None:
    """Not a byte of them changes."""
    plan, tiles = batches(tmp_path)
    before = {path: Path(path).read_bytes() for _, path in tiles}
    merged(tmp_path, plan, tiles)
    assert {path: Path(path).read_bytes() for _, path in tiles} == before


def test_a_mosaic_of_a_super_tile_has_its_pixels_and_its_certificate(tmp_path: Path) -> None:
    """Phase 5 takes it as it is; what injected stars and the seams inside it say stands in the mosaic's header."""
    plan, tiles = batches(tmp_path)
    path, _ = merged(tmp_path, plan, tiles)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["INJFLUX"] = 0.991
    ((number, members),) = plan.supers.items()
    mosaic, made = scenes.mosaic(tmp_path, plan, [(number, str(path))], supers=((number, members),))
    mine, theirs = scenes.planes(mosaic), scenes.planes(path)
    for name in ("", "WEIGHT", "COVERAGE", "REJECTED", "ALPHA"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-6, err_msg=name)
    header = fits.getheader(mosaic)
    assert (header["NTILES"], header["NSUPER"], header["INJFLUX"]) == (3, 1, 0.991)
    assert header["SEAMSIG"] == pytest.approx(fits.getheader(path)["SEAMSIG"])
    assert made.figures["seams"]["worst_sigma"] == pytest.approx(header["SEAMSIG"])  # type: ignore[index]


# --- a night -------------------------------------------------------------------------------------------------------

BATCHED = Night(cols=1, frames=6, width=240, height=320, scale_arcsec=8.0, dither_px=5.0, seed=7)
MERGING = ("plan.batch_cap=2", "mosaic.merge_tiles=true")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Six frames of one pointing, as three tiles of two."""
    made = Place(tmp_path, MERGING)
    drop(night(BATCHED), made.incoming)
    return made


def test_C6_report_and_log_tell_of_super_tiles(place: Place) -> None:
    """How many, of what, and what was rejected; the phase has its line and its cost."""
    assert place.process() == 0
    report = place.report()
    assert (report["num_super_tiles"], report["num_master_tiles"], report["frames"]["used"]) == (1, 3, 6)
    (told,) = report["super_tiles"]
    assert (told["tiles"], told["frames"]) == ([1, 2, 3], 6)
    assert report["phases"]["4.5"]["seconds"] > 0
    assert [x["phase"] for x in place.events("PHASE_UPDATE")][-5:] == ["4", "4.5", "5", "6", "7"]
    (planned,), (made,) = place.events("super_tiles_planned"), place.events("super_tile_made")
    assert (planned["super_tiles"], planned["tiles"], planned["alone"]) == (1, 3, 0)
    assert (made["tile"], made["tiles"], made["frames"]) == (4, 3, 6)


@pytest.mark.parametrize("two_pass", ["true", "false"])
def test_P6_super_tiles_follow_the_switch_and_nothing_else(place: Place, two_pass: str) -> None:
    """Off: they stay beside their tiles; on: they go with them, two passes or not."""
    two = f"mosaic.two_pass_enabled={two_pass}"
    assert place.process(two, "cleanup.cleanup_temp_artifacts=false") == 0
    names = ["master_tile_1.fits", "master_tile_2.fits", "master_tile_3.fits", "super_tile_4.fits"]
    assert sorted(path.name for path in place.state.glob("sessions/*/master_tiles/*")) == names
    assert place.process(two, "tiles.kappa_low=2.9") == 0  # another revision, cleaned
    assert place.leftovers() == []
    assert place.events("run_info_temp_master_tiles_fits_cleaned")


def test_D5_a_merged_mosaic_has_the_light_of_the_unmerged_one(place: Place, tmp_path: Path) -> None:
    """The same frames, merged or not: level and noise agree."""
    assert place.process() == 0
    alone = Place(tmp_path / "alone", MERGING[:1])
    drop(night(BATCHED), alone.incoming)
    assert alone.process() == 0
    one, other = (scenes.planes(p.mosaic())[""] for p in (place, alone))
    assert one.shape == other.shape
    assert "num_super_tiles" in alone.report()
    assert alone.report()["num_super_tiles"] == 0
    noise = alone.report()["certificate"]["noise"]["adu"][1]
    assert abs(float(np.nanmedian(one[1] - other[1]))) < 0.1 * noise


def test_F1_R9_killed_while_super_tiles_are_made(place: Place, tmp_path: Path) -> None:
    """Right before the file appears, before it is journalled, and after: the same pixels in the end, nothing left."""
    (place.incoming / ".done").touch()
    for words in ("os.rename super_tile_4.fits", "commit TilesMerged", "os.mkdir .staging-r1"):
        place.cut_off(words)
    with place.run(INLINE) as life:
        life.rest()
        assert life.stop() == 0
    assert place.leftovers() == []
    assert place.report()["num_super_tiles"] == 1
    undisturbed = Place(tmp_path / "undisturbed", MERGING)
    drop(night(BATCHED), undisturbed.incoming)
    assert undisturbed.process() == 0
    assert pixels(place.mosaic()) == pixels(undisturbed.mosaic())


def test_F21_a_super_tile_that_kills_the_daemon_again_and_again_gives_way_to_its_tiles(
    place: Place, tmp_path: Path
) -> None:
    """Five lives end in it; the sixth puts its tiles into the mosaic one by one, as if nothing had been asked for."""
    (place.incoming / ".done").touch()
    for _ in range(5):
        place.cut_off("os.rename super_tile_4.fits")
    with place.run(INLINE) as life:
        life.rest()
        assert life.stop() == 0
    (line,) = place.events("super_tile_failed")
    assert (line["tile"], line["tiles"], line["rule"]) == (4, 3, "interrupted")
    assert (place.report()["num_super_tiles"], place.report()["num_master_tiles"]) == (0, 3)
    alone = Place(tmp_path / "alone", MERGING[:1])
    drop(night(BATCHED), alone.incoming)
    assert alone.process() == 0
    assert pixels(place.mosaic())["PRIMARY"] == pixels(alone.mosaic())["PRIMARY"]


def test_P9_tiles_that_the_user_brought_are_merged_and_not_touched(tmp_path: Path) -> None:
    """Mode existing, tiles in a projection of their own: the super tile is ours and goes, the tiles are his."""
    place = Place(tmp_path, ("session.mode=existing", "mosaic.merge_tiles=true"))
    one = strangers.square("SIN")[0]
    strangers.write(place.incoming, [replace(one, turn_deg=turn) for turn in (0.0, 0.5, -0.5)])
    before = tree(place.incoming)
    assert place.process() == 0
    assert tree(place.incoming) == before
    assert (place.report()["num_super_tiles"], place.report()["num_master_tiles"]) == (1, 3)
    assert place.leftovers() == []
