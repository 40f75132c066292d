"""`session.mode = existing`, as a user runs it: tiles in, a mosaic out, the tiles untouched (D4, D5, P9)."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests import strangers
from tests.nights import INLINE, ROOT, Place, drop, night, tree
from zemosaicd.core.modes import MODES, PHASES, mode_named
from zemosaicd.settings import Config
from zemosaicd.shell.planners import PLANNERS

MODE = "session.mode=existing"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Four tiles of somebody's, waiting."""
    made = Place(tmp_path, (MODE,))
    strangers.write(made.incoming, strangers.square("SIN"))
    return made


def test_D4_a_folder_of_tiles_becomes_a_mosaic(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, the three outputs, a report that says which tiles were used and how they were brought together."""
    assert place.process() == 0
    assert capsys.readouterr().out == f"{place.mosaic()}  good\n"
    assert {path.name for path in place.mosaic().parent.iterdir()} == {"mosaic.fits", "preview.png", "report.json"}
    report = place.report()
    assert (report["mode"], report["frames"]["used"], report["num_master_tiles"], report["tiles_total"]) == (
        "existing", 4, 4, 4,
    )  # fmt: skip
    assert sorted(report["phases"]) == ["4", "5"]
    assert report["seams"]["parts"] == 1
    assert len(report["photometry"]) == 4
    with fits.open(place.mosaic()) as hdus:
        assert [h.name for h in hdus] == ["PRIMARY", "WEIGHT", "ALPHA", "FRAMES"]
        assert sorted(hdus["FRAMES"].data["NAME"]) == [f"tile_{i}.fits" for i in (1, 2, 3, 4)]


def test_D4_phases_1_to_3_are_skipped_and_said_to_be(place: Place) -> None:
    """The log has the key and the count, and the phases that there are."""
    place.process()
    assert [x["phase"] for x in place.events("PHASE_UPDATE")] == ["4", "5", "6", "7"]
    (line,) = place.events("run_info_existing_master_tiles_mode")
    assert (line["count"], line["message"].partition(" ")[0]) == (4, "existing_master_tiles_mode:")
    assert "existing_master_tiles_mode: 4" in line["message"]
    assert not place.events("phase3_refcount_enabled")
    assert not place.events("MT_COVERAGE_STATS")


@pytest.mark.parametrize("switch", ["true", "false"])
def test_P9_the_tiles_are_the_users_whatever_the_switch_says(place: Place, switch: str) -> None:
    """Not a byte of the tiles' folder changes, and no tile is on the manifest."""
    before = tree(place.incoming)
    assert place.process(f"cleanup.cleanup_temp_artifacts={switch}") == 0
    assert tree(place.incoming) == before
    (state,) = place.sessions().values()
    assert not any(path.startswith(str(place.incoming)) for path in state.manifest)


def test_F26_the_same_tiles_again_change_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run finds the mosaic that is there."""
    place.process()
    before = tree(place.output)
    capsys.readouterr()
    assert place.process() == 0
    assert capsys.readouterr().out == f"{place.mosaic()}  good (unchanged)\n"
    assert tree(place.output) == before
    assert place.leftovers() == []


def test_D4_a_tile_more_makes_a_new_revision(place: Place) -> None:
    """What is added to the folder is in the next revision; what is taken out is not."""
    place.process()
    tile = strangers.Stranger(ra_deg=strangers.RA + 0.3)
    fits.writeto(place.incoming / "tile_5.fits", strangers.pixels_of(tile, 5), strangers.header_of(tile))
    assert place.process() == 0
    assert (place.report()["revision"], place.report()["frames"]["used"]) == (2, 5)
    (place.incoming / "tile_5.fits").unlink()
    assert place.process() == 0
    assert (place.report()["revision"], place.report()["frames"]["used"]) == (3, 4)


def test_D4_finished_pictures_are_no_frames_without_the_mode(tmp_path: Path) -> None:
    """C2: the same folder in mode classic is refused, file by file, by rule."""
    place = Place(tmp_path, ("session.mode=classic",))
    strangers.write(place.incoming, strangers.square())
    assert place.process() == 1
    assert {x["rule"] for x in place.events("frame_rejected")} == {"header.finished"}


def test_D4_a_tile_that_cannot_be_placed_is_in_the_report(place: Place) -> None:
    """The rest becomes the mosaic; the report says which file was left out, and why."""
    fits.writeto(place.incoming / "nowhere.fits", np.ones((60, 60), np.float32))
    assert place.process() == 0
    (left,) = place.report()["frames"]["rejected"]
    assert (Path(left["path"]).name, left["reason"]) == ("nowhere.fits", "tile.wcs")


def test_D5_master_tiles_of_this_program_give_its_own_mosaic_again(tmp_path: Path) -> None:
    """Two modes agree: tiles kept by a classic run, given back as tiles, make the same picture.

    They may come in another order, in which the robust solve ends a thousandth of the noise away.
    """
    place = Place(tmp_path)
    drop(night(), place.incoming)
    assert place.process("cleanup.cleanup_temp_artifacts=false") == 0
    tiles = sorted(place.state.glob("sessions/*/master_tiles/*.fits"))
    assert len(tiles) == 2
    again = Place(tmp_path / "again", (MODE,))
    again.incoming.mkdir(parents=True)
    for tile in tiles:
        (again.incoming / tile.name).write_bytes(tile.read_bytes())
    assert again.process() == 0
    with fits.open(place.mosaic()) as classic, fits.open(again.mosaic()) as existing:
        for name in ("PRIMARY", "WEIGHT", "ALPHA"):
            np.testing.assert_allclose(existing[name].data, classic[name].data, rtol=1e-5, err_msg=name)


def test_C3_a_subfolder_may_have_the_mode_to_itself(tmp_path: Path) -> None:
    """session.toml says so for what lies in it; raw frames beside it go their own way."""
    place = Place(tmp_path, (INLINE,))
    strangers.write(place.incoming / "tiles", strangers.square())
    (place.incoming / "tiles" / "session.toml").write_text('[session]\nmode = "existing"\njoin = true\n')
    drop(night(), place.incoming / "raw")
    with place.run() as life:
        life.wait_for("session_opened", count=2)
        for folder in ("tiles", "raw"):
            (place.incoming / folder / ".done").touch()
        life.wait_for("session_done", count=2)
    modes = {state.opened.mode: state for state in place.sessions().values() if state.opened}
    assert {mode: len(state.frames) for mode, state in modes.items()} == {"existing": 4, "classic": 6}
    assert {p.verdict for state in modes.values() for p in state.last_published.values()} == {"good"}


def test_D5_modes_are_rows_of_data() -> None:
    """Every word of session.mode names a row, every row a planner and phases that exist, in order."""
    words = {"auto", *MODES}
    assert {mode_named(w).name for w in words} == set(MODES)
    assert mode_named(Config().session.mode).name == "classic"
    for mode in MODES.values():
        assert mode.planner in PLANNERS
        assert [p for p in PHASES if p in mode.phases] == list(mode.phases)


SOURCES = [p for p in sorted((ROOT / "zemosaicd").rglob("*.py")) if p.name != "modes.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "zemosaicd")))
def test_D5_nobody_asks_for_the_name_of_a_mode(path: Path) -> None:
    """Outside of core.modes no comparison and no `match` names a mode: what differs between modes is in their rows."""
    names = set(MODES)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Compare | ast.MatchValue):
            continue
        said = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
        said |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & {"MODE", "DEFAULT"}
        assert not said & (names | {"MODE", "DEFAULT"}), f"line {node.lineno}: {ast.unparse(node)}"
