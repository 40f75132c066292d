"""F1, R9: kill -9 at any step; the next start goes on, and ends with the same pixels and nothing left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from tests.nights import INLINE, TINY, Place, drop, night, pixels, tree, undisturbed, until
from zemosaicd import cli

MOMENTS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("frame_prepared", 2, {}),
    ("PHASE_UPDATE", 1, {"phase": "2"}),
    ("PHASE_UPDATE", 1, {"phase": "3"}),
    ("tile_stacked", 1, {}),
    ("PHASE_UPDATE", 1, {"phase": "5"}),
)
"""After which line of the log a life with workers is cut off, life after life."""

STEPS = {
    "run_end": (
        "commit SessionOpened",
        "os.mkdir /caches",
        "commit SessionClosed",
        "os.rename .npy",
        "os.rename frames_r1.json",
        "commit SessionPlanned",
        "commit JobStarted",
        "os.rename master_tile_1.fits",
        "commit TileDone",
        "os.mkdir .staging-r1",
        "os.rename .staging-r1/report.json",
        "os.rename .staging-r1/mosaic.fits /output",
        "commit MosaicPublished",
        "commit SessionCleaned",
    ),
    "per_tile": (
        "commit FrameAssigned",
        "commit FramePrepared",
        "os.rename plan_r1.json",
        "os.rename master_tile_2.fits",
        "os.remove .npy",
        "os.mkdir /output",
        "commit ArtefactMade",
        "os.rename .staging-r1/mosaic.fits",
        "os.rename .staging-r1/preview.png /output",
        "os.rmdir caches",
    ),
}
"""Right before which step on disk a life is cut off, life after life; no tile or mosaic more than four times (F21)."""


def place_with_night(root: Path, *settings: str) -> Place:
    place = Place(root, settings)
    drop(night(), place.incoming)
    (place.incoming / ".done").touch()
    return place


def check_whole_or_absent(place: Place) -> None:
    """Whoever looks at the output after a crash sees a whole mosaic or none."""
    for mosaic in place.output.glob("*/mosaic*.fits"):
        with fits.open(mosaic) as hdus:
            assert [hdu.name for hdu in hdus[1:]] == ["WEIGHT", "COVERAGE", "REJECTED", "ALPHA", "FRAMES"]


def check_end(place: Place, frames: dict[str, str]) -> None:
    """One more life ends well: same pixels, no hole, nothing left over, the user's frames as they were."""
    with place.run(INLINE) as life:
        life.rest()
        assert life.stop() == 0
    (state,) = place.sessions().values()
    assert (state.outcome, state.revision) == ("done", 1)
    assert pixels(place.mosaic()) == undisturbed()
    report = place.report()
    assert report["num_master_tiles"] == report["tiles_total"] == 2
    assert (report["frames"]["used"], report["verdict"]) == (6, "good")
    assert place.leftovers() == []
    assert sorted(path.name for path in place.output.iterdir()) == [state.session]
    assert tree(place.incoming) == frames


def test_F1_R9_killed_with_its_workers_in_one_phase_after_the_other(tmp_path: Path) -> None:
    """A daemon with a pool is killed after one line of its log after the other; no worker survives it (M13)."""
    place = place_with_night(tmp_path, "cleanup.cache_retention=per_tile")
    frames = tree(place.incoming)
    for event, count, fields in MOMENTS:
        with place.run() as life:
            life.wait_for("daemon_started")
            until(lambda: len(life.seen(event, **fields)) >= count or place.at_rest(), event, life.tail)  # noqa: B023
            life.kill()
        check_whole_or_absent(place)
    check_end(place, frames)


@pytest.mark.parametrize("retention", ["run_end", "per_tile"])
def test_F1_R9_killed_between_two_steps_on_disk(tmp_path: Path, retention: str) -> None:
    """A dozen lives end right before a rename, an unlink, a new folder or a commit; the next one ends well."""
    place = place_with_night(tmp_path, f"cleanup.cache_retention={retention}")
    frames = tree(place.incoming)
    for words in STEPS[retention]:
        place.cut_off(words)
        check_whole_or_absent(place)
    check_end(place, frames)


def test_F1_F26_F28_killed_while_a_second_revision_takes_the_first_ones_place(tmp_path: Path) -> None:
    """At every moment there is a whole mosaic.fits; in the end both revisions lie there, each with its own bytes."""
    place = Place(tmp_path)
    drop(night(), place.incoming)
    assert place.process() == 0
    folder = place.mosaic().parent
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = "tiles.rejection=none"
    for words in (
        "os.link report.json",
        "os.rename .staging-r2/report.json",
        "os.rename .staging-r2/mosaic.fits /output",
    ):
        place.cut_off(words, "process", str(place.incoming), "--output", str(place.output), "--set", other)
        check_whole_or_absent(place)
        assert (folder / "mosaic.fits").read_bytes() == first["mosaic.fits"]
    assert place.process(other) == 0
    assert len(list(folder.iterdir())) == 6
    for name, data in first.items():
        stem, suffix = name.split(".")
        assert (folder / f"{stem}.r1.{suffix}").read_bytes() == data
    assert pixels(place.mosaic()) == undisturbed(TINY, other)
    assert place.leftovers() == []


def test_F21_a_tile_that_kills_the_daemon_again_and_again_becomes_a_hole(tmp_path: Path) -> None:
    """Five lives end in tile 1; the sixth leaves it out with the reason, makes tile 2, and stays up."""
    place = place_with_night(tmp_path)
    for _ in range(5):
        place.cut_off("os.rename master_tile_1.fits")
    with place.run(INLINE) as life:
        life.rest()
        (hole,) = place.report()["tiles_failed"]
        assert (hole["tile"], hole["reason"], hole["threshold"]) == (1, "interrupted", 5)
        assert (place.report()["num_master_tiles"], place.report()["verdict"]) == (1, "holes")
        assert place.leftovers() == []
        (session,) = place.sessions()
        assert cli.main(["close", session, *place.arguments()]) == 0  # whoever asks for it again gets it whole
        life.wait_for("session_done", 2)
        assert life.stop() == 0
    assert place.report()["revision"] == 2
    assert pixels(place.mosaic()) == undisturbed()
