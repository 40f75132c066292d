"""`session.mode = grid`, as a user runs it: a stack_plan.csv beside the frames, cells out of shared caches (D3, D5)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from scipy import ndimage

from tests.nights import Night, Place, drop, night, pixels, tree
from zemosaicd.shell import daemon
from zemosaicd.shell.executors import Inline
from zemosaicd.work.jobs import StackTile

MODE = "session.mode=grid"
FIELD = Night(cols=2, rows=2, frames=3, width=480, height=640, scale_arcsec=5.0, dither_px=5.0, cloud=0.3)
"""Four pointings under passing clouds, so that levels and scales differ from frame to frame."""


def write_plan(folder: Path, frames: list[Path], *more: str) -> Path:
    """A plan of these frames, with more lines at its end."""
    lines = ["Filename;Exposure;Order", *(f"{f.name};10;{i}" for i, f in enumerate(frames)), *more]
    path = folder / "stack_plan.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def planned(root: Path, *settings: str, kind: Night = FIELD) -> Place:
    place = Place(root, (MODE, *settings))
    write_plan(place.incoming, drop(night(kind), place.incoming))
    return place


@functools.cache
def both(root: Path) -> tuple[Place, Place]:
    """The same night through classic and through grid."""
    classic, grid = Place(root / "classic", ("session.mode=classic",)), planned(root / "grid")
    drop(night(FIELD), classic.incoming)
    assert classic.process() == 0
    assert grid.process() == 0
    return classic, grid


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Place]:
    return both(tmp_path_factory.getbasetemp() / "grid-pair")


def star_ratios(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Fluxes in b over those in a of the bright stars of a plane, in apertures of 6 px."""
    level = float(np.nanmedian(a))
    smooth = ndimage.gaussian_filter(np.where(np.isfinite(a), a, level), 1.5)
    peaks = np.argwhere((ndimage.maximum_filter(smooth, 25) == smooth) & (smooth > level + 400.0))
    far = np.hypot(*np.mgrid[-12:13, -12:13])
    ratios = []
    for y, x in peaks:
        cuts = [p[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13] for p in (a, b)]
        if all(c.shape == far.shape and np.isfinite(c).all() for c in cuts):
            flux = [float((c[far < 6] - np.median(c[(far > 8) & (far < 12)])).sum()) for c in cuts]
            ratios.append(flux[1] / flux[0])
    return np.array(ratios)


def test_D5_grid_and_classic_agree_in_photometry(pair: tuple[Place, Place]) -> None:
    """Over the whole mosaic the light of stars is the same to 0.5 %, and in each channel, which three frames of a few
    dozen stars know to half a percent themselves, to 1 %; and nothing seen is lost."""
    a, b = (fits.getdata(p.mosaic()).astype(np.float64) for p in pair)
    assert a.shape == b.shape
    assert len(star_ratios(a[1], b[1])) > 40
    assert abs(float(np.median(star_ratios(a.sum(axis=0), b.sum(axis=0)))) - 1.0) < 0.005
    for k in range(3):
        assert abs(float(np.median(star_ratios(a[k], b[k]))) - 1.0) < 0.01
    assert (np.isfinite(a) & ~np.isfinite(b)).mean() < 1e-4


def test_D3_cells_join_without_seams(pair: tuple[Place, Place]) -> None:
    """Against classic's picture the grid's differs by one plane: no cell, no pointing stands out by a tenth sigma."""
    a, b = (fits.getdata(p.mosaic()).astype(np.float64)[1] for p in pair)
    off = b - a
    noise = 1.4826 * float(np.nanmedian(np.abs(np.diff(b, axis=1)))) / np.sqrt(2)
    centres = [(y, x) for y in range(30, a.shape[0] - 30, 40) for x in range(30, a.shape[1] - 30, 40)]
    blocks = np.array([np.nanmedian(off[y - 20 : y + 20, x - 20 : x + 20]) for y, x in centres])
    design = np.array([(1.0, y, x) for y, x in centres])
    fit, *_ = np.linalg.lstsq(design, blocks, rcond=None)
    left = blocks - design @ fit
    assert 1.4826 * np.median(np.abs(left)) < 0.1 * noise
    assert np.percentile(np.abs(left), 95) < 0.3 * noise


def test_D3_the_report_and_the_log_say_what_was_done(pair: tuple[Place, Place]) -> None:
    """Mode, cells, the sentence of SPEC word for word; ALPHA and COVERAGE know nothing of cells."""
    classic, grid = pair
    report = grid.report()
    assert (report["mode"], report["verdict"], report["frames"]["used"]) == ("grid", "good", 12)
    assert report["tiles_total"] >= 4
    (line,) = grid.events("grid_mode_invoked")
    assert line["message"].startswith("[GRID] Invoking grid_mode.run_grid_mode(...)")
    with fits.open(classic.mosaic()) as a, fits.open(grid.mosaic()) as b:
        seen = b["COVERAGE"].data > 0
        assert (b["ALPHA"].data[seen] == 1.0).all()
        assert (np.abs(a["COVERAGE"].data.astype(int) - b["COVERAGE"].data) > 1).mean() < 1e-3
        assert b["COVERAGE"].data.max() == 12


def test_D3_the_plan_is_the_users(tmp_path: Path) -> None:
    """It is no broken frame, and nothing in the watched folder changes, the plan included."""
    place = planned(tmp_path)
    before = tree(place.incoming)
    assert place.process() == 0
    assert tree(place.incoming) == before
    assert place.events("frame_rejected") == []
    (state,) = place.sessions().values()
    assert not any(path.startswith(str(place.incoming)) for path in state.manifest)
    assert place.leftovers() == []


def test_D3_bad_rows_are_reported_with_their_line_and_the_rest_is_made(tmp_path: Path) -> None:
    """Missing, named twice, outside, no number: in report.json with path and line; frames not named are left out."""
    place = Place(tmp_path, (MODE,))
    frames = drop(night(FIELD), place.incoming)
    plan = write_plan(place.incoming, frames[:11], "gone.fit;10;1", f"{frames[0].name};10;1", "../x.fit;10;1", "a;b;c")
    assert place.process() == 0
    report = place.report()
    told = {Path(r["path"]).name: r["reason"] for r in report["frames"]["rejected"]}
    assert told == {
        f"{plan.name}:13": "stack_plan.missing", f"{plan.name}:14": "stack_plan.twice",
        f"{plan.name}:15": "stack_plan.outside", f"{plan.name}:16": "stack_plan.exposure",
        frames[11].name: "stack_plan.not_named",
    }  # fmt: skip
    assert (report["frames"]["used"], report["verdict"]) == (11, "good")


def test_D3_without_a_plan_every_frame_takes_part(tmp_path: Path) -> None:
    """There is a warning, and a mosaic."""
    place = Place(tmp_path, (MODE,))
    drop(night(FIELD), place.incoming)
    assert place.process() == 0
    assert [x["level"] for x in place.events("stack_plan_absent")] == ["warning"]
    assert place.report()["frames"]["used"] == 12


def test_D3_another_plan_makes_another_revision(tmp_path: Path) -> None:
    """The same plan again is nothing new, though its caches are gone; with a frame less it is."""
    place = planned(tmp_path)
    assert place.process() == 0
    assert place.process() == 0
    assert place.report()["revision"] == 1
    write_plan(place.incoming, sorted(place.incoming.glob("*.fit"))[1:])
    assert place.process() == 0
    assert (place.report()["revision"], place.report()["frames"]["used"]) == (3, 11)


def test_M5_bands_and_workers_leave_no_trace_in_cells(tmp_path: Path) -> None:
    """Another memory budget, the same bytes."""
    one, other = planned(tmp_path / "a"), planned(tmp_path / "b")
    assert one.process() == 0
    assert other.process("tiles.memory_mb=16") == 0
    assert pixels(one.mosaic()) == pixels(other.mosaic())


# --- caches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """A cell's job that notes which caches lie there before it runs."""

    job: StackTile
    notes: str

    def run(self) -> Any:
        plan = json.loads(Path(self.job.plan_path).read_text())
        there = [f for f, frame in plan["frames"].items() if Path(frame["cache"]).exists()]
        tiles = {t["tile"]: t["frames"] for t in plan["tiles"]}
        with Path(self.notes).open("a") as notes:
            notes.write(json.dumps({"tile": self.job.tile, "there": there, "tiles": tiles}) + "\n")
        return self.job.run()


class Noting(Inline):
    """The real executor, taking notes."""

    notes = ""

    async def run(self, job: Any, *, priority: int = 0, timeout_s: float | None = None) -> Any:
        watched = Noted(job=job, notes=self.notes) if isinstance(job, StackTile) else job
        return await super().run(watched, priority=priority, timeout_s=timeout_s)


def test_R4_R8_a_cache_goes_with_its_last_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each cell just the caches lie there that it or a later one needs; at the end none; all were shared."""
    place = planned(tmp_path, "cleanup.cache_retention=per_tile", "plan.cell_size=0.6")
    monkeypatch.setattr(Noting, "notes", str(tmp_path / "notes.jsonl"))
    monkeypatch.setattr(daemon, "Inline", Noting)
    assert place.process() == 0
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert len(notes) >= 9
    for i, note in enumerate(notes):
        needed = {f for later in notes[i:] for f in note["tiles"][str(later["tile"])]}
        assert set(note["there"]) == needed
    (shared,) = place.events("phase3_shared_cache")
    assert (shared["shared"], shared["tracked"]) == (12, 12)
    (end,) = place.events("phase3_refcount_complete")
    assert (end["removed"], end["remaining"]) == (12, 0)
    assert len(notes[-1]["there"]) < 12
