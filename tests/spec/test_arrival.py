"""C7: whether frames lie there at once or come one by one, and in which order, the mosaic has the same pixels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.nights import INLINE, Place, drop, night, pixels, undisturbed

DATA = {"PRIMARY", "WEIGHT", "COVERAGE", "REJECTED", "ALPHA"}


def arrived_one_by_one(root: Path, frames: Sequence[Path]) -> dict[str, bytes]:
    """The pixels of a running daemon that saw each frame only when the one before it was prepared."""
    place = Place(root, (INLINE,))
    place.incoming.mkdir(parents=True)
    with place.run() as life:
        life.wait_for("daemon_ready")
        for count, frame in enumerate(frames, 1):
            drop([frame], place.incoming)
            life.wait_for("frame_prepared", count)
        (place.incoming / ".done").touch()
        life.rest()
        assert life.stop() == 0
    return pixels(place.mosaic())


def shuffled(frames: Sequence[Path]) -> list[Path]:
    """An order that is neither that of the names nor its reverse, the same in every run."""
    return random.Random(3).sample(list(frames), len(frames))


@pytest.mark.parametrize("order", [list, lambda frames: list(reversed(frames)), shuffled], ids=["in", "back", "mixed"])
def test_C7_one_by_one_in_any_order_is_what_process_makes(tmp_path: Path, order: type[list[Path]]) -> None:
    """Two panels of three simulated frames: primary, WEIGHT, COVERAGE and ALPHA are the same bytes."""
    made = arrived_one_by_one(tmp_path, order(night()))
    assert made.keys() >= DATA
    assert made == undisturbed()


@pytest.mark.frames
def test_C7_real_frames_of_no_name_in_two_orders_are_what_process_makes(frames_dir: Path, tmp_path: Path) -> None:
    """M 27, whose frames are called Unknown and so belong together by position: three ways, the same bytes."""
    frames = sorted((frames_dir / "m27_osc").glob("*.fits"))
    at_once = Place(tmp_path / "process")
    drop(frames, at_once.incoming)
    assert at_once.process() == 0
    expected = pixels(at_once.mosaic())
    assert expected.keys() >= DATA
    assert arrived_one_by_one(tmp_path / "in", frames) == expected
    assert arrived_one_by_one(tmp_path / "mixed", shuffled(frames)) == expected
