"""The daemon over a night: how sessions close and reopen, what it rebuilds, and that arrival order never shows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.nights import INLINE, POINTING, ROOT, TINY, Place, drop, night, pixels, tree, undisturbed, until


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A daemon's folders, empty; jobs inline."""
    made = Place(tmp_path, (INLINE,))
    made.incoming.mkdir()
    return made


def cli(place: Place, *command: str) -> subprocess.CompletedProcess[str]:
    """A command beside the daemon, as a user types it."""
    words = [sys.executable, "-m", "zemosaicd", *command, *place.arguments()]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


# --- C7: arrival order ---------------------------------------------------------------------------------------------


def test_C7_neither_arrival_order_nor_executor_changes_pixels(tmp_path: Path) -> None:
    """Backwards one by one into two workers, and all at once into none: the same bytes."""
    slow = Place(tmp_path / "slow", ("executor.workers=2",))
    slow.incoming.mkdir(parents=True)
    with slow.run() as life:
        life.wait_for("daemon_ready")
        for count, frame in enumerate(reversed(night()), 1):
            drop([frame], slow.incoming)
            life.wait_for("frame_prepared", count)
        (slow.incoming / ".done").touch()
        life.rest()
        life.stop()
    assert pixels(slow.mosaic()) == undisturbed()


# --- C3: closing ---------------------------------------------------------------------------------------------------


def test_C3_a_marker_closes_what_lies_beneath_it_and_nothing_else(place: Place) -> None:
    """Two targets in two folders; the marker in one of them makes one mosaic, the other session stays open."""
    drop(night(), place.incoming / "a")
    drop(night(replace(POINTING, object_name="NGC 1")), place.incoming / "b")
    with place.run() as life:
        life.wait_for("frame_prepared", 10)
        (place.incoming / "a" / ".done").touch()
        life.wait_for("session_done")
        assert sorted((s.opened.target, s.resting) for s in place.sessions().values() if s.opened) == [
            ("NGC 1", False), ("Sadr", True),
        ]  # fmt: skip
        assert life.seen("session_closed")[0]["cause"] == "marker"
        life.stop()
    assert pixels(place.mosaic()) == undisturbed()


def test_C3_quiet_time_closes(place: Place) -> None:
    """No frame for `session.quiet_min`: the session is complete."""
    drop(night(), place.incoming)
    with place.run("session.quiet_min=0.01") as life:
        life.wait_for("session_done")
        assert {x["cause"] for x in life.seen("session_closed")} == {"quiet"}
        life.stop()
    assert place.leftovers() == []


def test_C3_a_command_closes_and_a_status_says_what_is_waited_for(place: Place) -> None:
    """`zemosaicd status`, `sessions` and `close` beside the running daemon."""
    drop(night(), place.incoming)
    with place.run() as life:
        life.wait_for("frame_prepared", 6)
        (session,) = place.sessions()
        until(lambda: "waits for quiet" in cli(place, "status").stdout, "the status", life.tail)
        assert cli(place, "close", "nonsense").returncode == 2
        assert cli(place, "close", session).returncode == 0
        life.wait_for("session_done")
        assert life.seen("session_closed")[0]["cause"] == "command"
        (row,) = json.loads(cli(place, "sessions", "--json").stdout)
        assert (row["session"], row["open"], row["frames"]) == (session, False, 6)
        life.stop()
    assert "not running" in cli(place, "status").stdout


def test_C3_a_session_toml_makes_one_session_of_a_folder(place: Place) -> None:
    """`[session] join = true` ties two nights and two telescopes together; its other keys hold for that folder only."""
    folder = place.incoming / "both"
    folder.mkdir()
    (folder / "session.toml").write_text("[session]\njoin = true\n[outputs]\npreview = false\n")
    other = replace(TINY, start="2025-08-16T22:00:00", telescope="another", seed=5)
    drop(night(), folder / "first")
    drop(night(other), folder / "second", names=[f"n2_{i}.fit" for i in range(other.count)])
    with place.run() as life:
        life.wait_for("frame_prepared", 12)
        (folder / ".done").touch()
        life.rest()
        life.stop()
    (state,) = place.sessions().values()
    assert (state.session, len(state.closed_set)) == ("both", 12)
    assert place.report()["frames"]["used"] == 12
    assert {path.name for path in place.mosaic().parent.iterdir()} == {"mosaic.fits", "report.json"}


def test_C3_a_bad_session_toml_is_reported_and_mended(place: Place) -> None:
    """The line says file and key; its frames wait, and come in when the file is good."""
    drop(night(), place.incoming / "x")
    toml = place.incoming / "x" / "session.toml"
    toml.write_text("[tiles]\nkapa_low = 3\n")
    with place.run() as life:
        line = life.wait_for("session_toml_invalid")
        assert "session.toml:2" in line["reason"]
        assert "kapa_low" in line["reason"]
        toml.write_text("[tiles]\nkappa_low = 3\n")
        life.wait_for("frame_prepared", 6)
        (place.incoming / "x" / ".done").touch()
        life.rest()
        life.stop()
    assert place.report()["frames"]["used"] == 6


# --- C2: arriving --------------------------------------------------------------------------------------------------


def test_C2_F6_a_frame_that_is_still_being_copied_waits(place: Place) -> None:
    """Half a file is said to be waited for, is not stacked, and comes in when it is whole."""
    *others, last = night()
    drop(others, place.incoming)
    data = last.read_bytes()
    with place.run() as life:
        with (place.incoming / last.name).open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            life.wait_for("frame_waiting")
            file.write(data[len(data) // 2 :])
        life.wait_for("frame_prepared", 6)
        (place.incoming / ".done").touch()
        life.rest()
        life.stop()
    assert pixels(place.mosaic()) == undisturbed()


def test_C2_F7_a_frame_that_is_written_again_is_prepared_again(place: Place) -> None:
    """The second content of a file counts, whenever it comes before the session closes."""
    *others, last = night()
    drop(others, place.incoming)
    with place.run() as life:
        target = place.incoming / last.name
        target.write_bytes(others[0].read_bytes())
        life.wait_for("frame_prepared", 6)
        drop([last], place.incoming)
        life.wait_for("frame_prepared", 7)
        (place.incoming / ".done").touch()
        life.rest()
        life.stop()
    assert pixels(place.mosaic()) == undisturbed()
    assert place.leftovers() == []


# --- P10, F28: late frames and lost caches -------------------------------------------------------------------------


@pytest.mark.parametrize("retention", ["run_end", "per_tile"])
def test_P10_F28_a_late_frame_makes_a_new_revision(place: Place, retention: str) -> None:
    """The old files stay under their own names; what was cleaned away is prepared again from the user's frames."""
    *early, late = night()
    drop(early, place.incoming)
    frames = place.incoming
    with place.run(f"cleanup.cache_retention={retention}") as life:
        life.wait_for("frame_prepared", 5)
        (frames / ".done").touch()
        life.rest()
        folder = place.mosaic().parent
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        drop([late], frames)
        life.wait_for("session_reopened")
        life.wait_for("frame_prepared", 6)
        (frames / ".done").touch()
        life.wait_for("session_done", 2)
        life.stop()
    assert {path.name for path in folder.iterdir()} == {
        "mosaic.fits", "preview.png", "report.json", "mosaic.r1.fits", "preview.r1.png", "report.r1.json",
    }  # fmt: skip
    for name, data in first.items():
        stem, suffix = name.split(".")
        assert (folder / f"{stem}.r1.{suffix}").read_bytes() == data
    assert pixels(place.mosaic()) == undisturbed()
    assert (place.report()["revision"], place.leftovers()) == (2, [])


def test_P10_a_late_frame_after_a_restart_finds_its_session(place: Place) -> None:
    """The daemon was stopped in between; the session is one of yesterday's, and gets its second revision."""
    *early, late = night()
    drop(early, place.incoming)
    assert place.process() == 0
    with place.run() as life:
        life.wait_for("daemon_ready")
        life.stop()
    drop([late], place.incoming)
    assert place.process() == 0
    assert pixels(place.mosaic()) == undisturbed()
    assert place.report()["revision"] == 2


def test_C3_a_marker_that_comes_while_a_revision_is_made_holds_for_the_next(place: Place) -> None:
    """A late frame and a new marker fall into Phase 3: when that revision is out, the next one closes at once."""
    *early, late = night()
    drop(early, place.incoming)
    (place.incoming / ".done").touch()
    place.cut_off("commit TileDone")
    drop([late], place.incoming)
    (place.incoming / ".done").touch()
    with place.run() as life:
        until(lambda: place.at_rest() and place.report()["frames"]["used"] == 6, "six frames", life.tail)
        assert life.stop() == 0
    assert pixels(place.mosaic()) == undisturbed()


def test_P10_a_cache_that_vanished_is_made_again(place: Place) -> None:
    """All caches of the closed session go while no daemon runs; the tiles are made all the same, without a hole."""
    drop(night(), place.incoming)
    (place.incoming / ".done").touch()
    place.cut_off("commit JobStarted")
    caches = list(place.state.glob("sessions/*/caches/*.npy"))
    assert len(caches) == 6
    for cache in caches:
        cache.unlink()
    with place.run() as life:
        life.rest()
        life.stop()
    assert pixels(place.mosaic()) == undisturbed()
    assert place.events("mastertile_warn_cache_file_missing") == []
    assert place.leftovers() == []


# --- C6, F34: the running daemon -----------------------------------------------------------------------------------


def test_F34_a_bad_configuration_keeps_the_old_one_on_reload(tmp_path: Path) -> None:
    """SIGHUP with a bad file: one error, and the daemon goes on; with a good one it takes it."""
    place = Place(tmp_path, (INLINE,))
    place.incoming.mkdir()
    file = tmp_path / "zemosaicd.toml"
    file.write_text("[session]\nmarker = '.done'\n")
    with place.run("log.level=info", config=file) as life:
        life.wait_for("daemon_ready")
        file.write_text("[session]\nmarkr = '.done'\n")
        life.process.send_signal(signal.SIGHUP)
        assert "markr" in life.wait_for("config_kept")["reason"]
        file.write_text("[session]\nmarker = '.ready'\n")
        life.process.send_signal(signal.SIGHUP)
        life.wait_for("config_reloaded")
        drop(night(), place.incoming)
        life.wait_for("frame_prepared", 6)
        (place.incoming / ".ready").touch()
        life.rest()
        assert life.stop() == 0


def test_C2_a_restart_looks_at_nothing_twice(place: Place) -> None:
    """Frames that were judged before are not read again; the ones that came meanwhile are."""
    *early, late = night()
    drop(early, place.incoming)
    with place.run() as life:
        life.wait_for("frame_prepared", 5)
        life.stop()
    drop([late], place.incoming)
    before = tree(place.incoming)
    with place.run() as life:
        life.wait_for("frame_prepared")
        (place.incoming / ".done").touch()
        life.rest()
        assert len(life.seen("frame_prepared")) == 1
        life.stop()
    (place.incoming / ".done").unlink()
    assert tree(place.incoming) == before
    assert pixels(place.mosaic()) == undisturbed()
