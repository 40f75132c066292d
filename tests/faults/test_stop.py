"""F9, F12, F13: stopping under load, stopping at once, and workers that are killed: nothing is lost, nobody is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.nights import INLINE, Life, Place, alive, descendants, drop, night, pixels, undisturbed, until
from zemosaicd.work.entry import WORKER_NAME

SLACK_S = 10.0
"""Beyond what is promised: these machines are slow and busy (faults B6.8)."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Six frames and the marker, and one worker."""
    made = Place(tmp_path)
    drop(night(), made.incoming)
    (made.incoming / ".done").touch()
    return made


def workers(life: Life) -> list[int]:
    """The processes of the pool (and of it alone)."""
    children = [pid for pid, _ in descendants(life.process.pid)]
    return [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == WORKER_NAME]


def check_resume(place: Place) -> None:
    """The next life ends the night as if nothing had been."""
    with place.run(INLINE) as life:
        life.rest()
        assert life.stop() == 0
    assert pixels(place.mosaic()) == undisturbed()
    assert place.leftovers() == []


def freeze_in_phase_3(place: Place, life: Life) -> int:
    """Stops the one worker when tiles are due: from now on nothing ends. Returns its pid."""
    life.wait_for("session_planned")
    (pid,) = workers(life)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: any(state.attempts for state in place.sessions().values()), "a tile that has begun", life.tail)
    return pid


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_F12_SIGTERM_under_load(place: Place, group: bool) -> None:
    """Running jobs may end, nothing new begins: exit 0, no child left, and the night goes on with the next start."""
    with place.run() as life:
        life.wait_for("frame_prepared")
        children, pool = descendants(life.process.pid), workers(life)
        asked = time.monotonic()
        (os.killpg if group else os.kill)(life.process.pid, signal.SIGTERM)
        assert life.process.wait(20 + SLACK_S) == 0
        assert time.monotonic() - asked < 20 + SLACK_S
        assert not [pid for pid in pool if Path(f"/proc/{pid}").exists()]
        until(lambda: not any(map(alive, children)), "the end of multiprocessing's own helper", life.tail)
        assert life.seen("daemon_stopped")
    check_resume(place)


def test_F12_a_job_that_does_not_end_is_abandoned_at_drain_s(place: Place) -> None:
    """A frozen worker holds a tile: after `drain_s` it is killed, and the exit code is 0 all the same."""
    with place.run("service.drain_s=0.5") as life:
        pid = freeze_in_phase_3(place, life)
        asked = time.monotonic()
        assert life.stop() == 0
        assert time.monotonic() - asked < 0.5 + SLACK_S
        assert not Path(f"/proc/{pid}").exists()
        assert life.seen("daemon_draining")[0]["drain_s"] == 0.5
    (state,) = place.sessions().values()
    assert set(state.attempts.values()) == {0}  # an orderly stop is nobody's fault
    check_resume(place)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_F13_a_second_signal_ends_it_at_once(place: Place, number: signal.Signals) -> None:
    """With a frozen worker and an hour to drain, a second signal ends the wait within two seconds."""
    with place.run("service.drain_s=3600") as life:
        pid = freeze_in_phase_3(place, life)
        life.process.send_signal(number)
        life.wait_for("daemon_draining")
        asked = time.monotonic()
        assert life.stop(number) == 0
        assert time.monotonic() - asked < 2 + SLACK_S
        assert not Path(f"/proc/{pid}").exists()
    check_resume(place)


def test_F9_a_worker_killed_in_phase_3_changes_nothing(place: Place) -> None:
    """The pool is built again, the tile is made again, and no one can tell from the pixels."""
    with place.run() as life:
        os.kill(freeze_in_phase_3(place, life), signal.SIGKILL)
        life.rest()
        assert life.stop() == 0
    assert pixels(place.mosaic()) == undisturbed()
    assert place.report()["num_master_tiles"] == 2
    assert place.leftovers() == []
