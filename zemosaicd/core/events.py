"""What can happen: the facts that the journal keeps, in the past tense.

State is a fold over these (core.lifecycle). Results are journalled, never observations (DESIGN, "State"): a frame that
is still being copied leaves no event. `session` is "" only for a frame that was refused before it had a session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zemosaicd.core.modes import DEFAULT
from zemosaicd.model import Artefact, ArtefactKind, Fingerprint, FrameFacts, Plan, PreparedFrame, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """The first frame of a night and target was seen; what the session takes in (core.sessions), and how a mosaic is
    made of it (`mode`: a row of core.modes; `why`: if it was found out). Recorded again when that changes."""

    night: str
    target: str
    telescope: str = ""
    ra_deg: float | None = None
    dec_deg: float | None = None
    field_radius_deg: float = 0.0
    whole_folder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    opened_at: float = 0.0
    mode: str = DEFAULT
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameAssigned(Event):
    """A settled frame's header was read; it belongs to this session (and reopens it, if it was closed)."""

    path: str
    fingerprint: Fingerprint
    facts: FrameFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRejected(Event):
    """A file will not be used, unless it changes (its fingerprint says what was judged)."""

    path: str
    fingerprint: Fingerprint
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRemoved(Event):
    """The user took the file out of the folder that `process` was called for; it takes no further part."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePrepared(Event):
    """Phase 1 is done for this frame: measured, solved or not, cached. `fingerprint`: the state of the file it saw."""

    path: str
    prepared: PreparedFrame
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed(Event):
    """No more frames are waited for: quiet, marker, time, command, or process. Starts revision `revision`."""

    revision: int
    cause: str
    closed_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlanned(Event):
    """Phase 2 is done: the plan of this revision, and the files that it names (frame id -> path of the cache)."""

    revision: int
    plan: Plan
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(Event):
    """A job is about to run; counted before it starts, so that a poison job cannot crash us for ever (F21).

    An orderly stop takes its count back by the attempt before: it is nobody's fault (F12).
    """

    revision: int
    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TileDone(Event):
    """A master tile lies on disk. `frames_used` counts distinct frames; `figures` are for the report."""

    revision: int
    tile: int
    path: str
    frames_used: int
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFailed(Event):
    """A tile is given up after its last try; the hole is reported."""

    revision: int
    tile: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesMerged(Event):
    """A super tile of these master tiles lies on disk (Phase 4.5). `figures` are for the report."""

    revision: int
    tile: int
    path: str
    members: tuple[int, ...]
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFailed(Event):
    """A super tile is given up; its members go into the mosaic one by one."""

    revision: int
    tile: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactMade(Event):
    """The session made this file or folder: one line of its manifest (P9)."""

    artefact: Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicPublished(Event):
    """A mosaic and its companions lie in the output folder, complete."""

    revision: int
    mosaic: str
    path: str
    verdict: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCleaned(Event):
    """Phase 7 is done; the session rests until a late frame reopens it. `kept_kinds`: what the settings let stay."""

    revision: int
    removed: int
    kept: int
    outcome: str
    kept_kinds: tuple[ArtefactKind, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded(Event):
    """The revision ended without a new mosaic: `outcome` is failed, empty, cancelled or unchanged."""

    revision: int
    outcome: str
    reason: Reason


EVENTS: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        SessionOpened,
        FrameAssigned,
        FrameRejected,
        FrameRemoved,
        FramePrepared,
        SessionClosed,
        SessionPlanned,
        JobStarted,
        TileDone,
        TileFailed,
        TilesMerged,
        MergeFailed,
        ArtefactMade,
        MosaicPublished,
        SessionCleaned,
        SessionEnded,
    )
}
