"""Big and odd skies (I6): poles, the RA wrap, mosaics too wide for a tangent plane, islands, two cameras in one mosaic.

A mosaic is held against the true sky by astropy's reading of its own header.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests import scenes, strangers, values, wide
from tests.nights import Night, Place, drop, night
from tests.spec.test_planning import NIGHT, run
from zemosaicd import sphere
from zemosaicd.core import canvas
from zemosaicd.core.canvas import box_of, union
from zemosaicd.core.plan import PlanSettings, shares_of
from zemosaicd.model import FramePlan, Plan
from zemosaicd.work import planfiles
from zemosaicd.work.jobs import PlanSweep

COLUMNS, ROWS = 6, 4
FIELD = Night(cols=2, rows=2, frames=6, width=480, height=640, scale_arcsec=5.0, dither_px=5.0)

SKIES = [
    pytest.param(20.0, 90.0, "auto", "ZEA", id="north_pole-auto"),
    pytest.param(20.0, 90.0, "TAN", "TAN", id="north_pole-TAN"),
    pytest.param(359.5, -12.0, "auto", "ZEA", id="wrap-auto"),
    pytest.param(0.3, 40.0, "TAN", "TAN", id="wrap-TAN"),
    pytest.param(0.0, 30.0, "CAR", "CAR", id="wrap-CAR"),
    pytest.param(0.0, -90.0, "HPX", "HPX", id="south_pole-HPX"),
]


def hold(found: wide.Found, true: wide.Sky, figures: dict[str, object], name: str) -> None:
    """What every such mosaic has to be: whole, level, and stars where they are with the light that they have."""
    assert found.header["CTYPE1"] == f"RA---{name}"
    assert abs(np.nanmedian(found.off)) < 0.1 * wide.NOISE
    for rows in np.array_split(found.off, 4, axis=0):
        for block in np.array_split(rows, 6, axis=1):  # level everywhere, not only in the mean
            assert abs(np.nanmedian(block)) < 0.3 * wide.NOISE
    errors, offsets = wide.stars_of(found, true)
    assert len(errors) > 250
    assert abs(np.median(errors)) < 0.002
    assert np.abs(errors).max() < 0.02
    assert offsets.max() < 0.05
    photometry = figures["photometry"]
    assert isinstance(photometry, dict)
    assert max(p["placement_error_px"] for p in photometry.values()) < (0.01 if name == "TAN" else 1e-3)


@pytest.mark.parametrize(("ra", "dec", "asked", "name"), SKIES)
def test_classic_makes_wide_mosaics_over_poles_and_the_wrap_I6(
    tmp_path: Path, ra: float, dec: float, asked: str, name: str
) -> None:
    """50 degrees: no hole, no seam, flux to 0.2 % in the median, stars within 0.05 px, COVERAGE where seen."""
    true, where = wide.sky(ra, dec), wide.places(ra, dec, COLUMNS, ROWS)
    plan = values.plan_of(wide.frames(tmp_path / "c", where, true), projection=asked)
    assert not plan.left_out
    assert plan.mosaics[0].lattice.projection == name
    assert all(t.grid.wcs.projection == "TAN" for t in plan.tiles)
    path, made = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan))
    found = wide.compare(path, true)
    hold(found, true, made.figures, name)
    assert found.holes(where, edge_px=4) == 0
    coverage = scenes.planes(path)["COVERAGE"]
    assert ((coverage > 0) == np.isfinite(found.picture)).all()
    assert coverage.max() == 4  # where the corners of four frames meet


@pytest.mark.parametrize(("ra", "dec", "asked", "name"), SKIES[:1] + SKIES[2:4])
def test_D4_existing_tiles_make_wide_mosaics_over_poles_and_the_wrap_I6(
    tmp_path: Path, ra: float, dec: float, asked: str, name: str
) -> None:
    """The same of master tiles that each have a tangent plane of their own."""
    true, where = wide.sky(ra, dec), wide.places(ra, dec, COLUMNS, ROWS)
    plan = strangers.plan(tmp_path / "w", wide.tiles(tmp_path / "in", where, true), projection=asked)
    assert not plan.left_out
    path, made = strangers.mosaic(tmp_path / "w", plan)
    found = wide.compare(path, true)
    hold(found, true, made.figures, name)
    assert found.holes(where) == 0


def test_wide_mosaics_do_not_depend_on_bands_and_threads_M5(tmp_path: Path) -> None:
    """One row of windows or many, one thread or two: the same bytes of every picture."""
    true, where = wide.sky(0.0, 88.0), wide.places(0.0, 88.0, 4, 2)
    plan = values.plan_of(wide.frames(tmp_path / "c", where, true), projection="ZEA")
    tiles = scenes.stack_all(tmp_path, plan)
    first = scenes.planes(scenes.mosaic(tmp_path, plan, tiles)[0])
    low = {"band_budget_bytes": 1, "threads": 2, "preview_max_px": 64}
    second = scenes.planes(scenes.mosaic(tmp_path, plan, tiles, **low)[0])
    for name, plane in first.items():
        assert plane.tobytes() == second[name].tobytes(), name


def test_R8_coverage_of_a_wide_mosaic_counts_a_shared_frame_once(tmp_path: Path) -> None:
    """Two batches of a pointing that share a frame: three frames are three, on any projection, up to the pixel on which
    the edge of the shared frame lies."""
    true, (place,) = wide.sky(0.0, 0.0), wide.places(0.0, 0.0, 1, 1)
    where = [values.shifted(place, 0.4 * i, 0.3 * i) for i in range(3)]
    frames = wide.frames(tmp_path / "c", where, true)
    plan = values.plan_of(frames, projection="ZEA", batch_cap=2, batch_overlap=1)
    assert [len(t.frames) for t in plan.tiles] == [2, 2]
    coverage = scenes.planes(scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan))[0])["COVERAGE"]
    assert (coverage[coverage > 0] == 3).mean() > 0.97
    assert (coverage[8:-8, 8:-8][coverage[8:-8, 8:-8] > 0] <= 3).mean() > 0.995


def test_the_certificate_finds_catalogue_stars_on_any_projection_I6(tmp_path: Path) -> None:
    """The places of catalogue stars are those of the mosaic's own projection: as many are found, as near."""
    figures = {}
    for projection in ("TAN", "ZEA", "HPX"):
        folder = tmp_path / projection
        plan = strangers.plan(folder / "w", strangers.write(folder / "in", strangers.square()), projection=projection)
        made = strangers.mosaic(folder / "w", plan)[1]
        figures[projection] = made.figures["certificate"]["astrometry"]  # type: ignore[index]
    assert figures["TAN"]["stars"] >= 5
    for projection in ("ZEA", "HPX"):
        assert abs(figures[projection]["stars"] - figures["TAN"]["stars"]) <= 2
        assert figures[projection]["median_arcsec"] < 0.05 * strangers.SCALE_ARCSEC


# --- which projection ----------------------------------------------------------------------------------------------


def two(apart_deg: float, dec_deg: float = 0.0) -> list[FramePlan]:
    """Two frames of 6 degrees so far apart, and one between them."""
    return [
        values.frame_plan(i, values.wcs_at(100.0 + ra, dec_deg, scale_arcsec=240.0))
        for i, ra in enumerate((-apart_deg / 2, 0.0, apart_deg / 2))
    ]


def test_auto_takes_TAN_until_it_stretches_areas_by_a_tenth_I6() -> None:
    """1 / cos^3 of the distance from the tangent point: 10 % at 14.3 degrees, and there ZEA takes over; the reason says
    both figures."""
    for apart, name in ((5.0, "TAN"), (21.4, "TAN"), (22.8, "ZEA"), (60.0, "ZEA")):
        base, why = canvas.choose(two(apart), "auto", "north")
        reach = max(
            sphere.separation_deg(sphere.direction(100.0, 0.0), v) for f in two(apart) for v in canvas.footprint_of(f)
        )
        assert (1 / np.cos(np.radians(reach)) ** 3 <= 1.1) == (name == "TAN")
        assert base.projection == name
        assert f"{2 * reach:.1f} degrees" in why
        assert "10 % is the most" in why


def test_a_narrow_mosaic_is_on_the_plane_that_it_has_always_been_on_I6() -> None:
    """Below the limit the lattice is the tangent plane, and every tile is a window of it."""
    frames = values.field(3, 3)
    plan = values.plan_of(frames)
    assert plan.mosaics[0].lattice == canvas.lattice(frames, "auto")
    assert all(
        canvas.cut(plan.mosaics[0].lattice, box_of(t.grid, plan.mosaics[0].lattice)) == t.grid for t in plan.tiles
    )


@pytest.mark.parametrize(("projection", "dec_step"), [("CAR", 40.0), ("HPX", 22.0)])
def test_a_projection_that_would_tear_the_mosaic_gives_way_to_ZEA_I6(projection: str, dec_step: float) -> None:
    """Where frames reach the seams of CAR or the gores of HPX, ZEA shows them in one piece, and the reason says so."""
    tall = [
        values.frame_plan(i, values.wcs_at(10.0, d * dec_step, scale_arcsec=240.0))
        for i, d in enumerate((-2, -1, 0, 1, 2))
    ]
    base, why = canvas.choose(tall, projection, "auto")
    assert base.projection == "ZEA"
    assert "does not show in one piece" in why
    base, why = canvas.choose(tall[1:4], projection, "auto")
    assert (base.projection, why) == (projection, "mosaic.projection")


@pytest.mark.parametrize("projection", ["ZEA", "CAR", "HPX"])
def test_windows_of_a_wide_mosaic_hold_their_tiles_I6(projection: str) -> None:
    """Each tile's box on the mosaic holds all of its outline, and the union all boxes; pixels have the camera's solid
    angle."""
    where = wide.places(350.0, 80.0, 5, 3)
    frames = [values.frame_plan(i, w, width=wide.W, height=wide.H) for i, w in enumerate(where)]
    plan = values.plan_of(frames, projection=projection)
    base = plan.mosaics[0].lattice
    assert base.projection == projection
    assert sphere.scale_arcsec(base) == pytest.approx(wide.SCALE_ARCSEC, rel=1e-9)
    whole = union((t.grid for t in plan.tiles), base)
    for tile in plan.tiles:
        box = box_of(tile.grid, base)
        for i in range(0, tile.grid.width + 1, 5):
            for y in (-0.5, tile.grid.height - 0.5):
                x, y = sphere.sky_to_pixel(base, sphere.pixel_to_sky(tile.grid.wcs, i - 0.5, y)) or (np.nan, np.nan)
                assert box[0] - 0.5 <= x <= box[2] - 0.5
                assert box[1] - 0.5 <= y <= box[3] - 0.5
        in_whole = box_of(replace(whole, width=1, height=1), base)
        assert in_whole[0] <= box[0]
        assert in_whole[1] <= box[1]


def test_what_is_said_of_projection_and_islands_I6() -> None:
    """A line for each mosaic with the projection and the reason; a warning where it is islands."""
    frames = two(60.0)
    plan: Plan = values.plan_of(frames, sparse_limit=1e9)
    notes = canvas.notes(plan)
    assert [(n.level, n.event) for n in notes] == [("info", "mosaic_projection"), ("warning", "mosaic_islands")]
    assert notes[0].fields["projection"] == "ZEA"
    assert notes[1].fields["parts"] == 3
    assert len(shares_of(frames, PlanSettings(sparse_limit=1e9))[0]) == 1


# --- other modes ---------------------------------------------------------------------------------------------------


def test_D3_cells_need_a_tangent_plane_and_give_way_to_master_tiles_I6(tmp_path: Path) -> None:
    """`process` in mode grid with another projection: a mosaic of master tiles in it, and log and report say why."""
    place = Place(tmp_path, ("session.mode=grid", "mosaic.projection=ZEA"))
    drop(night(FIELD), place.incoming)
    assert place.process() == 0
    report = place.report()
    assert (report["mode"], report["verdict"]) == ("classic", "good")
    assert report["projection"] == {"name": "ZEA", "reason": "mosaic.projection"}
    assert report["islands"] == 1
    assert report["certificate"]["injected"]["flux_worst"] == pytest.approx(1.0, abs=0.05)
    (line,) = place.events("mosaic_projection")
    assert line["projection"] == "ZEA"
    assert len(place.events("grid_mode_wide_fallback_mastertiles")) == 1
    with fits.open(place.mosaic()) as hdus:
        assert [h.header["CTYPE1"] for h in hdus if h.is_image] == ["RA---ZEA"] * 5
    assert place.leftovers() == []


def test_D2_mega_tiles_need_a_tangent_plane_and_give_way_to_master_tiles_I6(tmp_path: Path) -> None:
    """Phase 2 of mode SDS with another projection plans what classic plans, and the sentence of the step back says
    why."""
    frames = planfiles.PlanRequest(frames=tuple(NIGHT), settings=PlanSettings(projection="HPX"), mount_mode="auto")
    planfiles.write_request(frames, tmp_path / "frames.json")
    made = PlanSweep(frames_path=str(tmp_path / "frames.json"), plan_path=str(tmp_path / "plan.json")).run()
    plan = planfiles.read_plan(tmp_path / "plan.json")
    classic, _ = run(tmp_path / "classic", NIGHT, projection="HPX")
    assert (plan.mode, plan.tiles, plan.mosaics) == ("classic", classic.tiles, classic.mosaics)
    assert [n.event for n in made.notes if n.level == "warning"] == ["sds_and_mosaic_first_failed_fallback_mastertiles"]
