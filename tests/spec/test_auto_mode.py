"""`session.mode = auto`, the default: what lies in the folder says how the mosaic is made, and the report says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.io import fits

from tests import strangers
from tests.nights import Night, Place, drop, night, pixels, undisturbed
from tests.spec.test_sds_mode import interleaved
from zemosaicd.core.headers import is_master_tile
from zemosaicd.core.modes import choose, mode_named

SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}


@pytest.mark.parametrize(
    ("there", "mode"),
    [
        ({}, "classic"),
        ({"frames": 9}, "classic"),
        ({"frames": 9, "stack_plans": ("/in/stack_plan.csv",)}, "grid"),
        ({"tiles": 2}, "existing"),
        ({"tiles": 5, "stack_plans": ("/in/stack_plan.csv",)}, "existing"),
        ({"tiles": 1}, "classic"),
        ({"tiles": 5, "frames": 1}, "classic"),
        ({"tiles": 5, "frames": 1, "stack_plans": ("/in/stack_plan.csv",)}, "grid"),
    ],
)
def test_auto_chooses_by_what_there_is(there: dict[str, object], mode: str) -> None:
    """Tiles alone, then a plan, then classic; raw frames outweigh stacks that lie beside them (C2). With its reason."""
    choice = choose(**there)  # type: ignore[arg-type]
    assert choice.mode == mode
    assert choice.why
    assert mode_named("auto").name == "classic"


@pytest.mark.parametrize(
    ("cards", "name", "expected"),
    [
        (SKY | {"TILE": 1, "GROUP": "g", "NCOMBINE": 1}, "a.fits", True),
        (SKY, "master_tile_003.fits", True),
        (SKY | {"NCOMBINE": 12}, "m42.fits", True),
        (SKY | {"STACKCNT": 40, "INSTRUME": "Seestar S50"}, "m42.fit", False),
        (SKY | {"STACKCNT": 40}, "Stacked_40_M42.fit", False),
        (SKY | {"STACKCNT": 1}, "m42.fit", False),
        (SKY | {"BITPIX": -32}, "j1365085.fits", True),
        (SKY | {"BITPIX": -32, "EXPTIME": 10.0}, "sub.fits", False),
        (SKY | {"BITPIX": -32, "INSTRUME": "Seestar S50"}, "m42.fit", False),
        ({"BITPIX": -32}, "j1365085.fits", False),
        (SKY, "light_001.fit", False),
        ({"TILE": 1, "GROUP": "g", "NCOMBINE": 9}, "master_tile_1.fits", False),
    ],
)
def test_auto_knows_a_master_tile(cards: dict[str, object], name: str, expected: bool) -> None:
    """A stack that says where it lies; not a telescope's own, not a raw frame with a WCS."""
    assert is_master_tile(cards, name) is expected  # type: ignore[arg-type]


def kept_tiles(root: Path) -> list[Path]:
    """The master tiles of a classic run."""
    place = Place(root)
    drop(night(), place.incoming)
    assert place.process("cleanup.cleanup_temp_artifacts=false") == 0
    return sorted(place.state.glob("sessions/*/master_tiles/*.fits"))


def test_auto_takes_a_folder_of_master_tiles_as_tiles(tmp_path: Path) -> None:
    """Nothing is set, and nothing set is lost at the next run: existing, with its reason in log and report."""
    place = Place(tmp_path / "again")
    drop(kept_tiles(tmp_path / "first"), place.incoming)
    assert place.process() == 0
    report = place.report()
    assert (report["mode"], report["frames"]["used"]) == ("existing", 2)
    assert "master tiles" in report["mode_reason"]
    assert place.process() == 0
    assert place.report()["revision"] == 1
    tile = strangers.Stranger(cards={"NCOMBINE": 5})
    fits.writeto(place.incoming / "more.fits", strangers.pixels_of(tile, 5), strangers.header_of(tile))
    place.process()
    (state,) = place.sessions().values()
    assert len(state.frames) == 3


def test_auto_takes_a_plan_beside_frames_as_grid(tmp_path: Path) -> None:
    """A stack_plan.csv that comes, and goes: grid, then classic again, each said once with its reason."""
    place = Place(tmp_path)
    frames = drop(night(), place.incoming)
    plan = place.incoming / "stack_plan.csv"
    plan.write_text("file\n" + "\n".join(f.name for f in frames) + "\n")
    assert place.process() == 0
    assert place.report()["mode"] == "grid"
    assert str(plan) in place.report()["mode_reason"]
    plan.unlink()
    assert place.process() == 0
    assert place.report()["mode"] == "classic"
    assert [x["mode"] for x in place.events("mode_chosen")] == ["grid", "classic"]
    assert pixels(place.mosaic()) == undisturbed()


SMALL = Night(cols=2, rows=2, frames=7, width=240, height=320, scale_arcsec=8.0, dither_px=5.0)


def test_D2_auto_takes_a_sweep_as_sds(tmp_path: Path) -> None:
    """Seven times round four pointings: three mega tiles, and the reason says what the telescope did."""
    place = Place(tmp_path)
    interleaved(place, SMALL)
    assert place.process() == 0
    report = place.report()
    assert (report["mode"], report["tiles_total"], report["frames"]["used"]) == ("sds", 3, 28)
    assert report["mode_reason"].startswith("the telescope swept: 1.0 frames in a row")


def test_C2_a_stack_among_raw_frames_is_not_stacked_again(tmp_path: Path) -> None:
    """Raw frames with their own master tiles beside them: classic from the frames, the tiles refused by rule."""
    place = Place(tmp_path / "again")
    drop([*night(), *kept_tiles(tmp_path / "first")], place.incoming)
    assert place.process() == 0
    assert (place.report()["mode"], place.report()["frames"]["used"]) == ("classic", 6)
    assert {x["rule"] for x in place.events("frame_rejected")} == {"header.stacked"}
    assert pixels(place.mosaic()) == undisturbed()


def test_auto_waits_for_a_second_tile(tmp_path: Path) -> None:
    """A running daemon holds a lone tile until another comes; then both become a mosaic."""
    first, second = kept_tiles(tmp_path / "first")
    place = Place(tmp_path / "again", ("executor.kind=inline",))
    place.incoming.mkdir(parents=True)
    with place.run() as life:
        life.wait_for("daemon_ready")
        drop([first], place.incoming)
        life.wait_for("frame_waiting")
        drop([second], place.incoming)
        life.wait_for("session_opened")
        (place.incoming / ".done").touch()
        assert life.wait_for("mosaic_published")["verdict"]
    (state,) = place.sessions().values()
    assert state.mode.name == "existing"
