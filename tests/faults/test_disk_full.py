"""F8, F22, F23: a disk that is full, or gone read-only, pauses a session with a figure; space lets it go on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.nights import INLINE, Place, drop, night, pixels, undisturbed

MakeDisk = Callable[[str, str], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Mounts a small disk of its own at a folder: (name, mount options). Skips where that is not allowed."""
    mounted: list[Path] = []

    def make(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no right to mount a file system here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> list[Path]:
    """Takes every byte that is left."""
    ballast = folder / "ballast"
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12, 1):
        with suppress(OSError):
            while os.write(file, bytes(size)):
                pass
    os.close(file)
    assert os.statvfs(folder).f_bavail == 0
    return [ballast]


def use_up_inodes(folder: Path) -> list[Path]:
    """Takes every name that is left; bytes are free."""
    ballast: list[Path] = []
    with suppress(OSError):
        for number in range(1000):
            (folder / f"ballast{number}").touch()
            ballast.append(folder / f"ballast{number}")
    return ballast


def place_on(tmp_path: Path) -> Place:
    place = Place(tmp_path, (INLINE, f"log.file={tmp_path / 'daemon.log'}", "service.min_free_factor=1"))
    place.incoming.mkdir()
    return place


def check_end(place: Place) -> None:
    (state,) = place.sessions().values()
    assert (state.outcome, state.revision) == ("done", 1)
    assert pixels(place.mosaic()) == undisturbed()
    assert place.leftovers() == []


@pytest.mark.parametrize(
    ("options", "use_up"), [("size=48m", fill), ("size=48m,nr_inodes=60", use_up_inodes)], ids=["F8", "F23"]
)
def test_F8_F23_a_full_state_disk_pauses_and_goes_on_by_itself(
    tmp_path: Path, small_disk: MakeDisk, options: str, use_up: Callable[[Path], list[Path]]
) -> None:
    """Not a byte, or not a name left when the frames come: nothing fails; when there is room the night goes on."""
    place = place_on(tmp_path)
    state = small_disk("state", options)
    with place.run() as life:
        life.wait_for("daemon_ready")
        ballast = use_up(state)
        drop(night(), place.incoming)
        (place.incoming / ".done").touch()
        assert "free" in life.wait_for("disk_low_paused")["reason"]
        for path in ballast:
            path.unlink()
        life.rest()
        assert life.stop() == 0
    check_end(place)


def test_F8_a_full_output_disk_pauses_before_it_is_written_to(tmp_path: Path, small_disk: MakeDisk) -> None:
    """The line says what is free and what is needed; nothing partial lies there; then the mosaic does."""
    place = place_on(tmp_path)
    output = small_disk("output", "size=48m")
    ballast = fill(output)
    drop(night(), place.incoming)
    (place.incoming / ".done").touch()
    with place.run() as life:
        reason = life.wait_for("disk_low_paused")["reason"]
        assert "free" in reason
        assert "needed" in reason
        assert str(output) in reason
        assert {path.name for path in output.rglob("*")} == {path.name for path in ballast}
        for path in ballast:
            path.unlink()
        life.rest()
        assert life.seen("disk_resumed")
        assert life.stop() == 0
    check_end(place)


def test_F8_the_floor_of_free_space_holds_from_the_first_frame_on(tmp_path: Path, small_disk: MakeDisk) -> None:
    """`service.min_free_gb` is never used up: with less than that free not one frame is prepared."""
    place = place_on(tmp_path)
    small_disk("state", "size=48m")
    drop(night(), place.incoming)
    with place.run("service.min_free_gb=0.06") as life:
        assert "60.3 MB needed" in life.wait_for("disk_low_paused")["reason"]
        assert life.stop() == 0
        assert life.seen("frame_prepared") == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_F8_a_start_on_a_full_disk_waits_too(tmp_path: Path, small_disk: MakeDisk, how: str) -> None:
    """Ended in the middle, started again with no byte left: it waits for space, and then goes on."""
    place = place_on(tmp_path)
    state = small_disk("state", "size=48m")
    drop(night(), place.incoming)
    if how == "killed":
        place.cut_off("commit FramePrepared")
    else:
        with place.run() as life:
            life.wait_for("frame_prepared", 3)
            assert life.stop() == 0
    ballast = fill(state)
    (place.incoming / ".done").touch()
    with place.run() as life:
        life.wait_for("disk_low_paused")
        for path in ballast:
            path.unlink()
        life.rest()
        assert life.stop() == 0
    check_end(place)


def test_F22_an_output_disk_gone_read_only_pauses(tmp_path: Path, small_disk: MakeDisk) -> None:
    """EROFS is waited out; when the disk can be written to again, the mosaic is."""
    place = place_on(tmp_path)
    output = small_disk("output", "size=48m")
    subprocess.run(["mount", "-o", "remount,ro", str(output)], check=True)
    drop(night(), place.incoming)
    (place.incoming / ".done").touch()
    with place.run() as life:
        assert "Read-only file system" in life.wait_for("disk_low_paused")["reason"]
        subprocess.run(["mount", "-o", "remount,rw", str(output)], check=True)
        life.rest()
        assert life.stop() == 0
    check_end(place)


def test_F22_an_output_folder_that_cannot_be_made_pauses(tmp_path: Path) -> None:
    """A file stands where the output folder should be (an unmounted share looks much like it)."""
    place = place_on(tmp_path)
    place.output.write_text("not a folder")
    drop(night(), place.incoming)
    (place.incoming / ".done").touch()
    with place.run() as life:
        assert str(place.output) in life.wait_for("disk_low_paused")["reason"]
        place.output.unlink()
        life.rest()
        assert life.stop() == 0
    check_end(place)
