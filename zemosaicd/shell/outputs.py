"""What leaves the daemon at the end of a session: the published files, and the lines that tell of each step.

A revision is staged whole in a hidden folder beside its final place; publishing is a few renames, after the older
revision has taken its own name. A power cut between any two of them is repaired by doing the rest again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os

from zemosaicd import __version__, codec
from zemosaicd.core.events import MosaicPublished
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.model import Artefact, ArtefactKind, LogNote, Plan, PreparedFrame, Reason
from zemosaicd.shell.cleanup import Cleaned
from zemosaicd.shell.journal import JournalReader
from zemosaicd.shell.log import Logger, emit
from zemosaicd.work.jobs import PhaseMade
from zemosaicd.work.store import set_mode, sync_folder

REPORT, PREVIEW, MOSAIC = "report.json", "preview.png", "mosaic.fits"
PUBLISHED_IN_ORDER = (REPORT, PREVIEW, MOSAIC)
"""The mosaic last: whoever sees it appear finds the others there."""
FOLDER_MODE, FILE_MODE = 0o755, 0o644
"""The daemon's umask hides its state; mosaics are for everybody (F36)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A revision on its way out: `folder` is the mosaic's, `staging` the hidden folder in it that the session made."""

    folder: Path
    staging: Path
    device: int
    inode: int

    @property
    def mosaic(self) -> Path:
        """Where the job writes the mosaic."""
        return self.staging / MOSAIC

    @property
    def preview(self) -> Path:
        """Where the job writes the preview."""
        return self.staging / PREVIEW

    def artefact(self) -> Artefact:
        """The manifest's line for the staging folder, pinned by its inode (F18)."""
        return Artefact(
            path=str(self.staging), kind=ArtefactKind.SCRATCH, device=self.device, inode=self.inode, directory=True
        )


def intended(folder: Path) -> list[Artefact]:
    """What will lie in a mosaic's folder: in the manifest before the folder is made, so that a restart knows it."""
    return [Artefact(path=str(folder / name), kind=ArtefactKind.OUTPUT) for name in PUBLISHED_IN_ORDER]


def stage(folder: Path, revision: int) -> Staged:
    """Makes the output folder and its hidden staging folder (found again after a crash)."""
    staging = folder / f".staging-r{revision}"
    for made in (folder, staging):
        with contextlib.suppress(FileExistsError):  # somebody's, or ours from before a crash: its mode stays
            made.mkdir(parents=made is folder)
            set_mode(made, FOLDER_MODE)
    stat = staging.stat(follow_symlinks=False)
    return Staged(folder=folder, staging=staging, device=stat.st_dev, inode=stat.st_ino)


async def publish(staged: Staged, report: Mapping[str, Any], previous: int) -> None:
    """Writes the report beside the staged pictures and moves all to their names.

    Of what lies there, revision `previous` (0: none) first gets a name of its own, `mosaic.r1.fits`. Safe to repeat:
    a file whose older self has its own name already is this revision's. At no time is there no mosaic (F28).
    """
    path = staged.staging / REPORT
    async with aiofiles.open(path, "w", encoding="utf-8") as file:
        await file.write(json.dumps(report, indent=1) + "\n")
        await file.flush()
        await aiofiles.os.wrap(set_mode)(file.fileno(), FILE_MODE)
        await aiofiles.os.wrap(os.fsync)(file.fileno())
    await aiofiles.os.wrap(_move_out)(staged, previous)


def _move_out(staged: Staged, previous: int) -> None:
    for name in PUBLISHED_IN_ORDER:
        source, final = staged.staging / name, staged.folder / name
        stem, suffix = name.rsplit(".", 1)
        kept = staged.folder / f"{stem}.r{previous}.{suffix}"
        wanted = source.exists()  # the preview may not be
        if previous and final.exists() and not kept.exists():
            _keep(final, kept, stays=wanted)
        if wanted:
            source.replace(final)
    sync_folder(staged.folder)


def _keep(final: Path, kept: Path, *, stays: bool) -> None:
    """The older file under its own name; its present name `stays` its own too, until the new file takes that."""
    if stays:
        try:
            kept.hardlink_to(final)
        except OSError:  # a share that knows no links
            pass
        else:
            return
    final.rename(kept)


def refused_beside(journal: JournalReader, state: SessionState) -> dict[str, Reason]:
    """Files that lie in the folders of the session's frames and were refused since it was opened, and why."""
    folders = {os.path.dirname(path) for path in state.frames}  # noqa: PTH120 - thousands of them
    since = state.opened.opened_at if state.opened else 0.0
    known = [e for e in journal.refused_since(since) if e.path not in state.frames]
    return {e.path: e.reason for e in known if os.path.dirname(e.path) in folders}  # noqa: PTH120


def all_there(published: Mapping[str, MosaicPublished], output: Path) -> bool:
    """Whether every mosaic of the last revision still lies where it was published, in the output folder of today."""
    paths = [Path(p.path) for p in published.values()]
    return bool(paths) and all(path.is_relative_to(output) and os.path.isfile(path) for path in paths)  # noqa: PTH113


def content_key(plan: Plan, settings: Mapping[str, Any]) -> str:
    """What the pixels depend on: frames, transforms, tiles, settings, this program's version; not where files lie."""
    frames = {key: replace(f, path="", cache="") for key, f in plan.frames.items()}
    bare = replace(plan, frames=frames, left_out=(), figures={})
    text = codec.dumps(bare) + json.dumps(settings, sort_keys=True) + __version__
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def cost(made: PhaseMade) -> dict[str, float]:
    """Seconds and memory of a phase, for the report."""
    predicted = made.figures.get("predicted_mb")
    return {
        "seconds": made.seconds,
        "peak_rss_mb": made.peak_rss_mb,
        "predicted_mb": float(predicted) if isinstance(predicted, int | float) else 0.0,
    }


# --- lines ---------------------------------------------------------------------------------------------------------


def log_notes(log: Logger, session: str, notes: Iterable[LogNote]) -> None:
    """Emits lines that were made where there is no logger."""
    for note in notes:
        emit(log, note, session=session)


def log_prepared(log: Logger, session: str, frame: PreparedFrame) -> None:
    """One line a frame: what was measured, and where it lies."""
    name = Path(frame.path).name
    m = frame.measures
    if frame.solution is None:
        reason = frame.unsolved or Reason(rule="unsolved")
        log.warning(
            "frame_unsolved", session=session, frame=name, rule=reason.rule, reason=reason.message or reason.rule
        )
        return
    log.info(
        "frame_prepared",
        session=session,
        frame=name,
        stars=m.stars,
        fwhm_px=round(m.fwhm_px, 2),
        solver=frame.solution.solver,
        matches=frame.solution.matches,
        rms_arcsec=round(frame.solution.rms_arcsec, 2),
    )
    if frame.solution.header_wcs.startswith("implausible"):
        log.info("header_wcs_dropped", session=session, frame=name, reason=frame.solution.header_wcs)


def log_rejected(log: Logger, session: str, path: str, reason: Reason) -> None:
    """Why a frame is left out, with the measured value and the limit."""
    log.warning(
        "frame_rejected",
        session=session,
        frame=Path(path).name,
        rule=reason.rule,
        value=reason.value,
        threshold=reason.threshold,
        reason=reason.message or reason.rule,
    )


def log_plan(log: Logger, session: str, plan: Plan, made: PhaseMade) -> None:
    """Phase 2's line: what will be made, and what it will cost."""
    for left in plan.left_out:
        log_rejected(log, session, left.path, left.reason)
    log.info(
        "session_planned",
        session=session,
        frames=len(plan.frames),
        tiles=len(plan.tiles),
        mosaics=len(plan.mosaics),
        left_out=len(plan.left_out),
        disk_mb=round(plan.disk_bytes / 1e6),
        memory_mb=round(plan.memory_bytes / 1e6),
        seconds=round(made.seconds, 2),
    )


def done_fields(state: SessionState, outcome: str, cleaned: Cleaned) -> dict[str, Any]:
    """The canonical line of a session: everything one would ask of it, in one place."""
    published = state.published or (state.last_published if outcome == "unchanged" else {})
    return {
        "outcome": outcome,
        "revision": state.revision,
        "frames": len(state.closed_set),
        "tiles": len(state.done),
        "tiles_failed": len(state.failed),
        "mosaic": ", ".join(p.path for p in published.values()),
        "verdict": ", ".join(sorted({p.verdict for p in published.values()})) or "none",
        "removed": cleaned.removed,
        "kept": cleaned.kept,
    }
