"""`session.mode = sds` (D2): a sweep becomes mega tiles that each cover the field; where it cannot, a step back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from tests import values
from tests.nights import INLINE, Night, Place, drop, night
from tests.spec.test_grid_mode import star_ratios
from zemosaicd.core.canvas import convex_hull, lattice, window
from zemosaicd.core.plan import canonical
from zemosaicd.core.sweeps import (
    LEAST_COVERED,
    LEAST_FRAMES,
    RASTER,
    TARGET_FRAMES,
    batches_of,
    points_in,
    without_blurred,
)
from zemosaicd.model import FramePlan

MODE = "session.mode=sds"
FIELD = Night(cols=2, rows=2, frames=6, width=480, height=640, scale_arcsec=5.0, dither_px=5.0)


def sweep(count: int) -> list[FramePlan]:
    """A telescope that goes round four pointings, a frame each, `count` times."""
    return [
        values.frame_plan(4 * turn + i, f.wcs, observed_s=1e9 + 40.0 * turn + 10.0 * i)
        for turn in range(count)
        for i, f in enumerate(values.field(2, 2))
    ]


def batched(frames: list[FramePlan]) -> list[list[FramePlan]]:
    ordered = canonical(frames)
    base = lattice(ordered, "auto")
    box = window(ordered, base)
    assert box is not None
    return batches_of(ordered, box, base)


@given(st.integers(1, 12))
def test_D2_batches_are_in_time_order_and_cover_the_field(turns: int) -> None:
    """Every frame is in one batch, in order; none has fewer than 5 frames or twice the ten that it should have."""
    frames = sweep(turns)
    parts = batched(frames)
    if len(frames) < LEAST_FRAMES:
        assert parts == []
        return
    assert [f.frame for part in parts for f in part] == [f.frame for f in canonical(frames)]
    assert min(len(p) for p in parts) >= LEAST_FRAMES
    assert max(len(p) for p in parts) < 2 * TARGET_FRAMES
    base = lattice(canonical(frames), "auto")
    for part in parts:
        own, whole = window(part, base), window(frames, base)
        assert own is not None
        assert whole is not None
        assert (own[2] - own[0]) * (own[3] - own[1]) >= LEAST_COVERED * (whole[2] - whole[0]) * (whole[3] - whole[1])


def test_D2_pointings_one_after_the_other_give_no_batch_but_one_of_all() -> None:
    """A batch goes on until it covers the field; of a night that ends pointing by pointing that is all of it."""
    frames = [values.frame_plan(i, f.wcs, observed_s=1e9 + i) for i, f in
              enumerate(f for f in values.field(2, 2) for _ in range(10))]  # fmt: skip
    assert [len(p) for p in batched(frames)] == [40]


def test_D2_a_frame_out_of_focus_stays_out_where_sharper_ones_have_seen_the_same() -> None:
    """Twice as wide as the others it is named with figures; what nobody else has seen often enough is kept."""
    frames = sweep(5)
    frames[6] = replace(frames[6], fwhm_px=2.0 * frames[0].fwhm_px)
    base = lattice(canonical(frames), "auto")
    (kept,), (out,) = without_blurred([frames], base)
    assert [f.frame for f in kept] == [f.frame for f in frames if f.frame != frames[6].frame]
    assert (out.frame, out.reason.rule, out.reason.value) == (frames[6].frame, "blurred", frames[6].fwhm_px)
    few = [f for f in frames if f.wcs != frames[6].wcs or f.frame == frames[6].frame]
    assert without_blurred([few], base) == ([few], [])


def test_D2_a_raster_sees_what_a_polygon_covers() -> None:
    """Half of a box by its diagonal, the whole box by its corners."""
    box = (0, 0, 300, 200)
    assert points_in(convex_hull([(0, 0), (300, 0), (300, 200), (0, 200)]), box).bit_count() == RASTER**2
    half = points_in(convex_hull([(0, 0), (300, 0), (300, 200)]), box).bit_count()
    assert half == pytest.approx(RASTER**2 / 2, rel=0.02)


def interleaved(place: Place, kind: Night = FIELD) -> None:
    """The night's frames, as a telescope that goes round its pointings would have dated them."""
    for index, path in enumerate(drop(night(kind), place.incoming)):
        panel, turn = divmod(index, kind.frames)
        seconds = (turn * kind.rows * kind.cols + panel) * (kind.exposure_s + 1)
        when = datetime.fromisoformat(kind.start) + timedelta(seconds=seconds)
        fits.setval(path, "DATE-OBS", value=when.isoformat(timespec="milliseconds"))


def test_D2_D5_a_sweep_becomes_mega_tiles_that_agree_with_classic(tmp_path: Path) -> None:
    """Two mega tiles, no master tile, the sentence of success, no step back; star fluxes are classic's to 0.5 %."""
    place, classic = Place(tmp_path / "sds", (MODE,)), Place(tmp_path / "classic", ("session.mode=classic",))
    for each in (place, classic):
        interleaved(each)
        assert each.process() == 0
    report = place.report()
    assert (report["mode"], report["tiles_total"], report["verdict"]) == ("sds", 2, "good")
    assert [x["message"] for x in place.events("sds_phase5_polish")] == [
        "[SDS] Phase 5 polish ... (skipping master tiles)"
    ]
    assert not [x for x in place.lines() if "fallback" in x["event"]]
    (state,) = place.sessions().values()
    assert not any("master_tile_" in path for path in state.manifest)
    assert place.leftovers() == []
    a, b = (fits.getdata(p.mosaic()).astype(np.float64) for p in (classic, place))
    assert a.shape == b.shape
    assert abs(float(np.median(star_ratios(a.sum(axis=0), b.sum(axis=0)))) - 1.0) < 0.005
    for k in range(3):  # a few dozen stars know their colours to half a percent
        assert abs(float(np.median(star_ratios(a[k], b[k]))) - 1.0) < 0.01
    with fits.open(place.mosaic()) as hdus:
        assert hdus["COVERAGE"].data.max() == 24


def test_D2_without_a_batch_all_frames_go_straight_into_the_grid(tmp_path: Path) -> None:
    """Four frames make no batch: a warning, one mega tile of all."""
    place = Place(tmp_path, (MODE,))
    interleaved(place, Night(cols=2, rows=2, frames=1, width=480, height=640, scale_arcsec=5.0))
    assert place.process() == 0
    (line,) = place.events("sds_failed_fallback_mosaic_first")
    assert line["level"] == "warning"
    assert (place.report()["mode"], place.report()["tiles_total"], place.report()["frames"]["used"]) == ("sds", 1, 4)


ROUNDS = Night(cols=2, rows=2, frames=5, width=240, height=320, scale_arcsec=8.0, dither_px=5.0)
"""Two mega tiles of ten frames."""


@pytest.fixture
def barred(tmp_path: Path) -> tuple[Place, list[Path]]:
    """A session killed before its first mega tile appeared; now folders lie where its mega tiles should."""
    place = Place(tmp_path, (MODE, "tiles.attempts=1"))
    interleaved(place, ROUNDS)
    (place.incoming / ".done").touch()
    place.cut_off("os.rename mega_tile_1.fits")
    (tiles,) = place.state.glob("sessions/*/master_tiles")
    bars = [tiles / f"mega_tile_{number}.fits" for number in (1, 2)]
    for bar in bars:
        bar.mkdir()
        (bar / "there").touch()
    return place, bars


def rested(place: Place) -> None:
    """A last life, until nothing is due."""
    with place.run(INLINE) as life:
        life.rest()
        assert life.stop() == 0


def test_D2_F1_where_no_mega_tile_can_be_made_there_is_one_of_all_frames(barred: tuple[Place, list[Path]]) -> None:
    """The warning, and one mega tile with every frame; killed before that plan is journalled, it is made again."""
    place, bars = barred
    place.cut_off("commit SessionPlanned")
    for bar in bars:
        (bar / "there").unlink()
        bar.rmdir()
    rested(place)
    line = place.events("sds_failed_fallback_mosaic_first")[-1]
    assert (line["level"], "no mega tile could be made" in line["reason"]) == ("warning", True)
    report = place.report()
    assert (report["mode"], report["tiles_total"], report["frames"]["used"]) == ("sds", 1, 20)
    assert place.events("sds_and_mosaic_first_failed_fallback_mastertiles") == []


def test_D2_where_one_of_all_frames_fails_too_it_is_classics(barred: tuple[Place, list[Path]]) -> None:
    """Both warnings in their order, then master tiles, four of them, of the same frames; P9: the bars stay."""
    place, bars = barred
    rested(place)
    steps = [x["event"] for x in place.lines() if "fallback" in x["event"]]
    assert steps == ["sds_failed_fallback_mosaic_first", "sds_and_mosaic_first_failed_fallback_mastertiles"]
    report = place.report()
    assert (report["mode"], report["tiles_total"], report["frames"]["used"]) == ("classic", 4, 20)
    assert place.events("sds_phase5_polish") == []
    assert [(bar / "there").exists() for bar in bars] == [True, True]


def test_D2_F21_a_mega_tile_that_kills_the_daemon_again_and_again_leaves_the_field_to_the_others(
    tmp_path: Path,
) -> None:
    """Five lives end in the first; the mosaic of the second has all of the field, and the report says what was lost."""
    place = Place(tmp_path, (MODE,))
    interleaved(place, ROUNDS)
    (place.incoming / ".done").touch()
    for _ in range(5):
        place.cut_off("os.rename mega_tile_1.fits")
    rested(place)
    report = place.report()
    assert (report["mode"], report["tiles_total"], report["frames"]["used"]) == ("sds", 2, 10)
    assert [(x["tile"], x["reason"]) for x in report["tiles_failed"]] == [(1, "interrupted")]
    assert [x for x in place.lines() if "fallback" in x["event"]] == []
    whole = np.isfinite(fits.getdata(place.mosaic())[1]).mean()
    assert whole > 0.85


def test_D2_frames_that_do_not_mix_are_classics(tmp_path: Path) -> None:
    """Two exposure times: a warning, then classic in all: master tiles, its mode in the report, no success of SDS."""
    place = Place(tmp_path, (MODE,))
    interleaved(place, Night(cols=2, rows=2, frames=2, width=480, height=640, scale_arcsec=5.0))
    for path in sorted(place.incoming.glob("*.fit"))[::2]:
        fits.setval(path, "EXPTIME", value=20.0)
    assert place.process() == 0
    (line,) = place.events("sds_and_mosaic_first_failed_fallback_mastertiles")
    assert line["level"] == "warning"
    assert place.report()["mode"] == "classic"
    assert place.events("sds_phase5_polish") == []
    (state,) = place.sessions().values()
    assert state.planned is not None
    assert all(t.frames for t in state.planned.plan.tiles)
