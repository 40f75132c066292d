"""R1, R6, R8, R10 and P8 in whole runs: caches go when their last tile has ended, and never before."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.nights import POINTING, Night, Place, coverage_max, drop, night, pixels, undisturbed
from zemosaicd.shell import daemon
from zemosaicd.shell.executors import Inline
from zemosaicd.work.jobs import PhaseMade, StackTile

SHARED = ("plan.batch_cap=3", "plan.batch_overlap=2", "cleanup.cache_retention=per_tile")
FIVE: Night = replace(POINTING, frames=5)
"""One pointing of five frames: with SHARED, tiles {1 2 3}, {2 3 4} and {3 4 5}; the middle one owns no cache alone."""


def batched(root: Path, *settings: str) -> Place:
    place = Place(root, (*SHARED, *settings))
    drop(night(FIVE), place.incoming)
    return place


def messages(place: Place, words: str) -> list[tuple[str, str]]:
    return [(x["level"], x["message"]) for x in place.lines() if words in x["message"]]


def test_R6_per_tile_says_its_three_sentences_once_each(tmp_path: Path) -> None:
    """Tracked at the start, shared once, removed and remaining at the end, at INFO and word for word."""
    place = batched(tmp_path)
    assert place.process() == 0
    assert messages(place, "Phase3:") == [
        (
            "info",
            "Phase3: per_tile cache retention uses refcount; safe deletion enabled (5 unique cache files tracked).",
        ),
        ("info", "Phase3: shared cache detected; 3 of 5 cache files are used by two or more tiles."),
        ("info", "Phase3: refcount cleanup complete; removed 5 files; remaining 0 (if any)."),
    ]
    assert [x for x in place.lines() if ".npy" in x["message"] and x["level"] != "debug"] == []


def test_R6_nothing_is_said_of_sharing_where_nothing_is_shared(tmp_path: Path) -> None:
    """Two panels, two tiles, no cache in common: two sentences; and pixels do not depend on the retention."""
    place = Place(tmp_path, ("cleanup.cache_retention=per_tile",))
    drop(night(), place.incoming)
    assert place.process() == 0
    assert [text for _, text in messages(place, "Phase3:")] == [
        "Phase3: per_tile cache retention uses refcount; safe deletion enabled (6 unique cache files tracked).",
        "Phase3: refcount cleanup complete; removed 6 files; remaining 0 (if any).",
    ]
    assert pixels(place.mosaic()) == undisturbed()


def test_R6_the_last_sentence_counts_the_releases_of_tiles_that_end_together(tmp_path: Path) -> None:
    """Two workers end two tiles in one tick: the sums are said when both are released."""
    place = Place(tmp_path, ("cleanup.cache_retention=per_tile",))
    drop(night(), place.incoming)
    assert place.process("executor.workers=2", "executor.kind=pool") == 0
    (end,) = place.events("phase3_refcount_complete")
    assert (end["removed"], end["remaining"]) == (6, 0)


@pytest.mark.parametrize(("retention", "kept"), [("run_end", 0), ("keep", 5)])
def test_R1_P8_the_other_retentions_do_not_count(tmp_path: Path, retention: str, kept: int) -> None:
    """run_end and keep behave as if the table did not exist; run_end clears in Phase 7, keep never."""
    place = batched(tmp_path, f"cleanup.cache_retention={retention}")
    assert place.process() == 0
    assert messages(place, "Phase3:") == []
    assert len(list(place.state.glob("sessions/*/caches/*.npy"))) == kept
    assert pixels(place.mosaic()) == undisturbed(FIVE, *SHARED)


def test_P8_retention_decides_over_caches_whatever_the_switch_says(tmp_path: Path) -> None:
    """With the master switch off master tiles stay and caches go."""
    place = batched(tmp_path, "cleanup.cleanup_temp_artifacts=false", "cleanup.cache_retention=run_end")
    assert place.process() == 0
    assert list(place.state.glob("sessions/*/caches/*.npy")) == []
    assert len(list(place.state.glob("sessions/*/master_tiles/*.fits"))) == 3


def test_R8_coverage_counts_distinct_frames(tmp_path: Path) -> None:
    """Five frames in three overlapping batches of three: nine shares, but no pixel was seen by more than five."""
    place = batched(tmp_path)
    assert place.process() == 0
    assert coverage_max(place.mosaic()) == 5
    assert place.report()["frames"]["used"] == 5
    assert place.report()["tiles_total"] == 3


# --- watching the caches from inside -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A tile's job that notes how many caches lie there when it has run; `naive` unlinks its own, as the bug did."""

    job: StackTile
    naive: bool
    notes: str

    def run(self) -> PhaseMade:
        made = self.job.run()
        plan = json.loads(Path(self.job.plan_path).read_text())
        tile = next(t for t in plan["tiles"] if t["tile"] == self.job.tile)
        caches = [Path(plan["frames"][f]["cache"]) for f in tile["frames"]]
        if self.naive:
            for cache in caches:
                cache.unlink(missing_ok=True)
        with Path(self.notes).open("a") as notes:
            notes.write(f"{self.job.tile} {len(list(caches[0].parent.glob('*.npy')))}\n")
        return made


class Rigged(Inline):
    """The real executor, with tile 2 held back until the others have ended: completion order is nobody's to choose."""

    naive = False
    notes = ""
    capacity = 3  # so that tile 2 may wait for the others

    async def run(self, job: Any, *, priority: int = 0, timeout_s: float | None = None) -> Any:
        if not isinstance(job, StackTile):
            return await super().run(job, priority=priority, timeout_s=timeout_s)
        if job.tile == 2:
            while not {1, 3} <= {int(line.split()[0]) for line in self.noted()}:
                await asyncio.sleep(0)
        rigged = Watched(job=job, naive=self.naive, notes=self.notes)
        made = await super().run(rigged, priority=priority, timeout_s=timeout_s)
        if self.naive and job.tile == 3:
            self.hide_the_frames()
        return made

    def noted(self) -> list[str]:
        return Path(self.notes).read_text().splitlines() if Path(self.notes).exists() else []

    def hide_the_frames(self) -> None:
        incoming = Path(self.notes).parent / "incoming"
        incoming.rename(incoming.with_name("taken-away"))


def rig(monkeypatch: pytest.MonkeyPatch, place: Place, *, naive: bool) -> Path:
    notes = place.root / "notes.txt"
    monkeypatch.setattr(Rigged, "naive", naive)
    monkeypatch.setattr(Rigged, "notes", str(notes))
    monkeypatch.setattr(daemon, "Inline", Rigged)
    return notes


KEYS = ("mastertile_warn_cache_file_missing", "mastertile_error_no_valid_images_from_cache",
        "run_warn_phase3_master_tile_creation_failed_thread")  # fmt: skip


def test_R10_naive_deletion_makes_the_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug itself: each tile's caches unlinked right after it; the tile between two others finds nothing."""
    place = batched(tmp_path, "cleanup.cache_retention=keep")
    rig(monkeypatch, place, naive=True)
    assert place.process() == 3
    assert all(place.events(key) for key in KEYS)
    report = place.report()
    assert (report["num_master_tiles"], report["tiles_total"], report["verdict"]) == (2, 3, "holes")
    (hole,) = report["tiles_failed"]
    assert hole["tile"] == 2
    assert hole["reason"] == "mastertile_error_no_valid_images_from_cache"


def test_R10_R4_R8_the_table_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan in the same order with the table: no key, no hole, and disk use falls while the session runs."""
    place = batched(tmp_path)
    notes = rig(monkeypatch, place, naive=False)
    assert place.process() == 0
    assert [place.events(key) for key in KEYS] == [[], [], []]
    report = place.report()
    assert (report["num_master_tiles"], report["tiles_total"], report["verdict"]) == (3, 3, "good")
    assert [line.split()[1] for line in notes.read_text().splitlines()] == ["5", "4", "3"]
    assert pixels(place.mosaic()) == undisturbed(FIVE, *SHARED)
