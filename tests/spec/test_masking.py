"""The mask of alt-az tiles, from the frames to the mosaic (SPEC section 6, M3, V1 to V8)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tests import nights, scenes, values
from zemosaicd.config import load
from zemosaicd.core.modes import MODES
from zemosaicd.model import MountMode, Plan
from zemosaicd.science.coverage import MaskRule, edge_weight, mask_of
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.simulate import Night
from zemosaicd.work.fitswrite import ImageSpec, write_fits
from zemosaicd.work.jobs import MaskSettings, PhaseMade
from zemosaicd.work.masking import TileMask, gate

EQ, ALT_AZ, UNKNOWN = MountMode.EQ, MountMode.ALT_AZ, MountMode.UNKNOWN
BASE = values.wcs_at(83.8, -5.4)
STARS = [(30.2, 20.7, 4000.0), (60.4, 40.1, 90000.0), (80.0, 15.5, 2500.0)]
PATCH = 48
TILTED = Night(
    cols=2, overlap=0.3, frames=16, width=320, height=420, scale_arcsec=6.0, dither_px=5.0, rotation_deg_min=24.0,
    gradient=0.25, sky_drift=0.4, nebula_e=0.0, mag10_e=8000.0, faintest_mag=13.0,
)  # fmt: skip
"""Two pointings whose fields turn under a sky that tilts and drifts, and has no structure of its own."""
TURNING = Night(cols=1, frames=6, width=240, height=320, scale_arcsec=8.0, dither_px=5.0, rotation_deg_min=60.0)
"""A field that turns by 10 degrees from frame to frame: the corners are seen once or twice."""


def turning(folder: Path, mode: MountMode, *, count: int = 6, step_deg: float = 12.0, requested: bool = True) -> Plan:
    """A plan of one tile whose frames turn round its centre."""
    rng = np.random.default_rng(3)
    frames = [
        values.frame_plan(i, values.wcs_at(83.8, -5.4, turn_deg=step_deg * i), mount_mode=mode) for i in range(count)
    ]

    def pixels(_: int, frame: Any) -> scenes.Array:
        seen = scenes.render(frame.wcs, values.WIDTH, values.HEIGHT, BASE, STARS)
        return seen + rng.normal(0.0, 10.0, seen.shape)

    plan = values.plan_of(
        scenes.caches(folder, frames, pixels), group_rotation_deg=180.0, altaz_cleanup_requested=requested
    )
    assert len(plan.tiles) == 1
    return plan


def events(made: PhaseMade, event: str) -> list[dict[str, object]]:
    """The fields of the notes of one kind."""
    return [note.fields for note in made.notes if note.event == event]


def colour_steps(mosaic: dict[str, scenes.Array]) -> scenes.Array:
    """How far the colours of the outermost 8 px are off those 12 to 40 px further in, patch by patch along the edge, in
    units of the noise of a well covered pixel: (n,), the worse of R-G and B-G. Stars are left out; the sky is grey."""
    picture, seen = mosaic[""], np.isfinite(mosaic[""]).all(axis=0)
    depth = cv2.distanceTransform(np.pad(seen, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    core = seen & (mosaic["COVERAGE"] >= 0.9 * mosaic["COVERAGE"].max())
    low, middle, high = np.percentile(picture[1][core], [16, 50, 84])
    stars = np.nan_to_num(picture[1]) > middle + 2 * (high - low)
    sky = seen & (cv2.dilate(stars.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    steps = []
    for colour in (picture[0] - picture[1], picture[2] - picture[1]):
        found = []
        for y, x in itertools.product(*(range(0, side, PATCH) for side in seen.shape)):
            near = np.s_[y : y + PATCH, x : x + PATCH]
            wide = np.s_[max(0, y - 32) : y + PATCH + 32, max(0, x - 32) : x + PATCH + 32]
            edge = colour[near][sky[near] & (depth[near] <= 8)]
            inner = colour[wide][sky[wide] & (depth[wide] >= 12) & (depth[wide] <= 40)]
            if edge.size >= 150 and inner.size >= 300:
                found.append(np.median(edge) - np.median(inner))
        low, high = np.percentile(colour[core & sky], [16, 84])
        steps.append(np.array(found) / ((high - low) / 2))
    return np.maximum(*np.abs(steps))


# --- one tile ------------------------------------------------------------------------------------------------------


def test_M3_an_altaz_tile_is_masked_where_few_frames_looked(tmp_path: Path) -> None:
    """Picture NaN, weight 0 and alpha 0 where less than 3 of 6 frames looked, and on the thin line where alpha begins;
    every other pixel keeps its value and its weight, and coverage stays what it is."""
    plan = turning(tmp_path / "c", ALT_AZ)
    masked = scenes.planes(scenes.stack(tmp_path, plan)[0])
    plain = scenes.planes(scenes.stack(tmp_path, replace(plan, altaz_cleanup=False), name="_plain")[0])
    for name in ("COVERAGE", "REJECTED"):
        assert np.array_equal(masked[name], plain[name])
    looked = plain["COVERAGE"] + plain["REJECTED"]
    gone = np.isfinite(plain[""]) & np.isnan(masked[""])
    assert gone[(looked > 0) & (looked < 3)].all()
    kept = np.isfinite(masked[""])
    assert kept[edge_weight(looked >= 3, 3.0) == 1.0].mean() > 0.99
    assert np.array_equal(masked[""][kept], plain[""][kept])
    assert np.array_equal(masked["WEIGHT"][kept], plain["WEIGHT"][kept])
    assert (masked["WEIGHT"][~kept] == 0).all()
    assert (masked["ALPHA"][~kept] == 0).all()
    assert (masked["ALPHA"][kept] > 0).all()


def test_V1_V2_the_mask_counts_frames_that_looked_not_samples_that_were_kept(tmp_path: Path) -> None:
    """The alpha is that of coverage and rejected frames together: a star whose samples are rejected is no hole."""
    plan = turning(tmp_path / "c", ALT_AZ, step_deg=6.0)
    output, _ = scenes.stack(tmp_path, plan, rejection="kappa_sigma", kappa_low=0.9, kappa_high=0.9)
    tile = scenes.planes(output)
    assert tile["REJECTED"].any()
    looked = np.where(tile["COVERAGE"] > 0, tile["COVERAGE"] + tile["REJECTED"], 0)
    expected = mask_of(looked, 6, MaskRule(), 0.1 * min(values.WIDTH, values.HEIGHT))
    assert np.array_equal(tile["ALPHA"], expected.alpha)


def test_V5_masking_leaves_grid_and_WCS_as_they_are(tmp_path: Path) -> None:
    """The header is the same: shape, CRPIX and all."""
    plan = turning(tmp_path / "c", ALT_AZ)
    masked, _ = scenes.stack(tmp_path, plan)
    plain, _ = scenes.stack(tmp_path, replace(plan, altaz_cleanup=False), name="_plain")
    assert fits.getheader(masked) == fits.getheader(plain)
    assert WCS(fits.getheader(masked)).wcs.crpix[0] == plan.tiles[0].grid.wcs.x_px + 1


@pytest.mark.parametrize("mode", [EQ, UNKNOWN])
def test_M3_M4_no_other_tile_loses_a_bit(tmp_path: Path, mode: MountMode) -> None:
    """Asked for or not, with alt-az frames elsewhere in the session or not."""
    plan = turning(tmp_path / "c", mode)
    on, made = scenes.stack(tmp_path, replace(plan, altaz_cleanup=True, contains_altaz=True))
    off, _ = scenes.stack(tmp_path, replace(plan, altaz_cleanup=False), name="_off")
    assert on.read_bytes() == off.read_bytes()
    assert events(made, "MT_PIPELINE") == [{"tile_id": 1, "altaz_cleanup": False, "threshold": 0.0}]


def test_V8_only_modes_that_say_so_mask_tiles(tmp_path: Path) -> None:
    """Classic does; a plan of another mode is not gated, whatever its mounts."""
    plan = turning(tmp_path / "c", ALT_AZ)
    gates = {name: gate(replace(plan, mode=name), plan.tiles[0]) for name in MODES}
    assert {name for name, gated in gates.items() if gated} == {"classic"}


def test_V7_a_masked_tile_says_what_was_done(tmp_path: Path) -> None:
    """Coverage, alpha and threshold of the tile; the same lines for every tile, at debug where no mask was."""
    _, made = scenes.stack(tmp_path, turning(tmp_path / "c", ALT_AZ))
    tile = scenes.planes(tmp_path / "master_tile_1.fits")
    (coverage,) = events(made, "MT_COVERAGE_STATS")
    assert (coverage["n_used"], coverage["max"]) == (6, 6)
    (alpha,) = events(made, "ALPHA_STATS")
    assert alpha["nonzero_frac"] == pytest.approx((tile["ALPHA"] > 0).mean(), abs=1e-4)
    assert (alpha["min"], alpha["max"]) == (0.0, 1.0)
    assert events(made, "MT_PIPELINE") == [{"tile_id": 1, "altaz_cleanup": True, "threshold": 3.0}]
    assert events(made, "MT_PIPELINE_FLAGS") == [{"tile_id": 1, "altaz_cleanup": True, "edge_trim": False}]
    levels = {note.event: note.level for note in made.notes}
    assert (levels["ALPHA_STATS"], levels["MT_PIPELINE"]) == ("info", "info")


def test_V8_a_mask_that_would_leave_too_little_is_not_applied(tmp_path: Path) -> None:
    """Less than a tenth of the pixels: the tile is that without a mask, and a warning says so."""
    plan = turning(tmp_path / "c", ALT_AZ)
    strict, made = scenes.stack(tmp_path, plan, mask=MaskSettings(morph_open_px=60))
    plain, _ = scenes.stack(tmp_path, replace(plan, altaz_cleanup=False), name="_plain")
    unmasked = scenes.planes(strict)
    for name, plane in scenes.planes(plain).items():
        assert np.array_equal(unmasked[name], plane, equal_nan=True)
    (warned,) = [note for note in made.notes if note.event == "MT_MASK_TOO_STRONG"]
    assert (warned.level, warned.fields) == ("warning", {"tile_id": 1, "kept_frac": 0.0})
    assert events(made, "MT_PIPELINE")[0]["altaz_cleanup"] is False


def test_V8_each_key_reaches_the_mask() -> None:
    """What the configuration says is what the tile's job gets."""
    keys = {
        "altaz_min_coverage_abs": 2.0,
        "altaz_min_coverage_frac": 0.7,
        "altaz_morph_open_px": 5,
        "altaz_nanize_threshold": 0.01,
        "altaz_alpha_soft_threshold": 0.02,
    }
    pairs = ["tiles.edge_trim=true", *(f"tiles.{key}={value}" for key, value in keys.items())]
    config = load(None, ["paths.incoming=['/in']", *pairs])
    assert SessionConfigs.stack_settings(config, MODES["classic"]).mask == MaskSettings(
        min_coverage_abs=2.0,
        min_coverage_frac=0.7,
        morph_open_px=5,
        nanize_threshold=0.01,
        alpha_soft_threshold=0.02,
        edge_trim=True,
    )


def test_V6_a_tile_whose_coverage_is_no_use_goes_on_without_a_mask(tmp_path: Path) -> None:
    """A warning with the reason, and the alpha that a tile without a mask has."""
    plan = turning(tmp_path / "c", ALT_AZ)
    (spec,), shape = plan.tiles, (plan.tiles[0].grid.height, plan.tiles[0].grid.width)
    mask = TileMask(plan, spec, 6, MaskSettings())
    mask.covered[:] = True  # but nothing was ever counted
    images = [ImageSpec(name="", shape=shape), ImageSpec(name="ALPHA", shape=shape)]
    with write_fits(tmp_path / "tile.fits", images) as writer:
        writer.write("", 0, np.ones(shape, np.float32))
        notes = mask.write(writer, 5.0)
    assert (notes[0].level, notes[0].event) == ("warning", "MT_COVERAGE_IGNORED")
    assert notes[0].fields == {"tile_id": 1, "reason": "empty"}
    tile = scenes.planes(tmp_path / "tile.fits")
    assert (tile[""] == 1).all()
    assert np.array_equal(tile["ALPHA"], edge_weight(mask.covered, 5.0))


@pytest.mark.parametrize("settings", [{"band_budget_bytes": 1}, {"threads": 3, "band_budget_bytes": 1}])
def test_V5_the_mask_does_not_know_how_the_tile_was_cut_up(tmp_path: Path, settings: dict[str, int]) -> None:
    """Byte for byte the same, whatever the bands."""
    plan = turning(tmp_path / "c", ALT_AZ)
    whole, _ = scenes.stack(tmp_path, plan)
    cut, _ = scenes.stack(tmp_path, plan, name="_cut", **settings)
    assert whole.read_bytes() == cut.read_bytes()


def test_V5_a_trimmed_tile_keeps_its_sky_and_its_pixels(tmp_path: Path) -> None:
    """Margins go and CRPIX moves with them; what is left, and the mosaic, is the same. Off by default."""
    plan = turning(tmp_path / "c", ALT_AZ)
    whole, _ = scenes.stack(tmp_path, plan)
    mosaic = scenes.planes(scenes.mosaic(tmp_path, plan, [(1, str(whole))])[0])
    cut, made = scenes.stack(tmp_path, plan, name="_cut", mask=MaskSettings(edge_trim=True))
    ((trim,), (flags,)) = events(made, "MT_EDGE_TRIM"), events(made, "MT_PIPELINE_FLAGS")
    assert flags["edge_trim"] is True
    top, bottom, left, right = (int(str(trim[side])) for side in ("top", "bottom", "left", "right"))
    assert min(top, bottom, left, right) > 0
    small, large = scenes.planes(cut), scenes.planes(whole)
    height, width = large[""].shape
    for name, plane in small.items():
        assert np.array_equal(plane, large[name][top : height - bottom, left : width - right], equal_nan=True)
    sky = [WCS(fits.getheader(path)).pixel_to_world_values(x, y) for path, x, y in ((whole, left, top), (cut, 0, 0))]
    np.testing.assert_allclose(sky[0], sky[1], atol=1e-10)
    again = scenes.planes(scenes.mosaic(tmp_path, plan, [(1, str(cut))])[0])
    kept = np.isfinite(again[""])
    assert again[""].shape == mosaic[""].shape
    assert kept.sum() > 0.97 * np.isfinite(mosaic[""]).sum()
    assert np.array_equal(again["COVERAGE"][kept], mosaic["COVERAGE"][kept])
    np.testing.assert_allclose(again[""][kept], mosaic[""][kept], rtol=1e-4)


# --- into the mosaic -----------------------------------------------------------------------------------------------


def test_V5_alpha_reaches_the_mosaic_once_and_soft(tmp_path: Path) -> None:
    """The mosaic of one masked tile shows its pixels unchanged: alpha weighs, it does not dim."""
    plan = turning(tmp_path / "c", ALT_AZ)
    tile = scenes.planes(scenes.stack(tmp_path, plan)[0])
    output, _ = scenes.mosaic(tmp_path, plan, [(1, str(tmp_path / "master_tile_1.fits"))])
    mosaic = scenes.planes(output)
    assert mosaic[""].shape == tile[""].shape
    assert np.array_equal(np.isfinite(mosaic[""]), np.isfinite(tile[""]))
    kept = np.isfinite(tile[""])
    shift = np.median(mosaic[""][kept] - tile[""][kept])
    assert np.abs(mosaic[""][kept] - tile[""][kept] - shift).max() < 0.01
    np.testing.assert_allclose(mosaic["ALPHA"][kept], tile["ALPHA"][kept], atol=1e-6)
    assert (mosaic["COVERAGE"][~kept] == 0).all()


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nights.Place, dict[str, Any]]]:
    """The same turning night as an alt-az, an equatorial and an unknown mount's."""
    made = {}
    for mode in ("ALT_AZ", "EQ", "auto"):
        place = nights.Place(tmp_path_factory.mktemp(mode))
        nights.drop(nights.night(TURNING), place.incoming)
        settings = (f"session.mount_mode={mode}", "plan.group_rotation_deg=180", "log.level=debug")
        assert place.process(*settings) == 0
        made[mode] = place, scenes.planes(place.mosaic())
    return made


def test_M2_an_altaz_night_loses_its_weak_edges_and_no_other_pixel(turned: dict[str, Any]) -> None:
    """Nothing less covered than the threshold is left, nothing that is well covered is missing, and what is left has
    the values that it has without the mask."""
    (place, masked), (_, plain) = turned["ALT_AZ"], turned["EQ"]
    assert place.events("AUTO_ALTaz_cleanup")
    applied = place.events("MT_PIPELINE")
    assert [(line["altaz_cleanup"], line["threshold"]) for line in applied] == [(True, 3.0)]
    assert masked[""].shape == plain[""].shape
    kept, seen = (np.isfinite(planes[""]).all(axis=0) for planes in (masked, plain))
    assert (seen & (plain["COVERAGE"] == 1)).any()
    assert not (kept & ~seen).any()
    assert not (kept & (plain["COVERAGE"] == 1) & (edge_weight(plain["COVERAGE"] < 3, 4.0) == 1)).any()
    assert kept[edge_weight(plain["COVERAGE"] >= 3, 5.0) == 1].all()
    np.testing.assert_allclose(masked[""][:, kept], plain[""][:, kept], rtol=1e-5)


@pytest.fixture(scope="module")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nights.Place]:
    """Two pointings that turn under a tilted sky, with the mask and as an equatorial mount's."""
    places = {}
    for mode in ("ALT_AZ", "EQ"):
        places[mode] = nights.Place(tmp_path_factory.mktemp(mode))
        nights.drop(nights.night(TILTED), places[mode].incoming)
        assert places[mode].process(f"session.mount_mode={mode}") == 0
    return places


def test_V8_weakly_covered_edges_lose_their_colour(tilted: dict[str, nights.Place]) -> None:
    """On a turning night with partial overlaps and a tilted sky the colour step at the edges falls below 1 sigma."""
    steps = {mode: colour_steps(scenes.planes(place.mosaic())) for mode, place in tilted.items()}
    assert min(len(found) for found in steps.values()) > 20
    assert steps["EQ"].max() > 1.0
    assert steps["ALT_AZ"].max() < 1.0
    assert np.median(steps["ALT_AZ"]) < 0.6 * np.median(steps["EQ"])


def test_V5_what_the_mask_hides_still_ties_tiles_together(tilted: dict[str, nights.Place]) -> None:
    """Gains and levels come from all that two tiles saw of the same sky, not from the little that the mask leaves."""
    masked, plain = (tilted[mode].report()["photometry"] for mode in ("ALT_AZ", "EQ"))
    assert len(masked) == 2
    assert masked == plain


def test_M4_equatorial_and_unknown_nights_lose_no_pixel_to_a_mask(turned: dict[str, Any]) -> None:
    """Each shows every pixel that a frame saw, and both are the same picture."""
    (place, eq), (other, unknown) = turned["EQ"], turned["auto"]
    assert np.isfinite(eq[""]).all(axis=0)[eq["COVERAGE"] > 0].all()
    for name in ("", "WEIGHT", "COVERAGE", "ALPHA"):
        assert np.array_equal(eq[name], unknown[name], equal_nan=True)
    for night in (place, other):
        assert [line["altaz_cleanup"] for line in night.events("MT_PIPELINE")] == [False]
        assert not night.events("AUTO_ALTaz_cleanup")


def test_M4_a_mixed_session_loses_no_tile_and_its_equatorial_tile_no_pixel(tmp_path: Path) -> None:
    """The clean-up that came on for the alt-az frames does not touch the other tile; together they show all that the
    equatorial frames saw, and what the alt-az frames saw well."""
    alt = turning(tmp_path / "a", ALT_AZ, requested=False)
    eq = turning(tmp_path / "e", EQ, step_deg=0.0, requested=False)
    renamed = [replace(f, frame="e" + f.frame[1:]) for f in eq.frames.values()]
    plan = values.plan_of([*alt.frames.values(), *renamed], group_rotation_deg=180.0)
    assert (len(plan.tiles), plan.altaz_cleanup, plan.altaz_decision) == (2, True, "auto")
    tiles = []
    for spec in plan.tiles:
        on, _ = scenes.stack(tmp_path, plan, spec.tile)
        off, _ = scenes.stack(tmp_path, replace(plan, altaz_cleanup=False), spec.tile, name="_off")
        assert np.isfinite(scenes.planes(on)[""]).any()
        assert (on.read_bytes() == off.read_bytes()) is (spec.mount_mode is EQ)
        tiles.append((spec.tile, str(on)))
    mosaic, _ = scenes.mosaic(tmp_path, plan, tiles)
    shown = np.isfinite(scenes.planes(mosaic)[""])
    for _, path in tiles:
        seen = np.isfinite(scenes.planes(Path(path))[""])
        dx, dy = (round(fits.getval(mosaic, key) - fits.getval(path, key)) for key in ("CRPIX1", "CRPIX2"))
        assert shown[dy : dy + seen.shape[0], dx : dx + seen.shape[1]][seen].all()
