"""What is due: the state of a session is a fold over its events, and its next work a function of that state.

Rule 1: `apply` is the only way a state changes, in the live daemon and after a crash alike, so resume is not a special
case: fold the journal, ask `due`, go on.
Rule 2: nothing here knows what is in flight; the shell starts what is due and not yet running.
Rule 3: a revision's set of frames is fixed when the session closes. Frames that come later wait for the next revision.

    open --SessionClosed--> closed --SessionPlanned--> planned --TileDone/TileFailed a tile--> stacked
         --MosaicPublished a mosaic--> published --SessionCleaned--> resting --FrameAssigned--> open (next revision)
    closed or planned --SessionEnded--> resting
    stacked, where the plan has super tiles --TilesMerged or MergeFailed a super tile--> stacked, and merged

The fold mutates its own state object for the sake of sessions of 20,000 frames (F38); nobody else writes to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zemosaicd.core.events import (
    ArtefactMade,
    Event,
    FrameAssigned,
    FramePrepared,
    FrameRejected,
    FrameRemoved,
    JobStarted,
    MergeFailed,
    MosaicPublished,
    SessionCleaned,
    SessionClosed,
    SessionEnded,
    SessionOpened,
    SessionPlanned,
    TileDone,
    TileFailed,
    TilesMerged,
)
from zemosaicd.core.modes import DEFAULT, MODES, Mode
from zemosaicd.core.supertiles import pending_supers
from zemosaicd.model import (
    Artefact,
    ArtefactKind,
    Fingerprint,
    FrameFacts,
    MosaicSpec,
    Plan,
    PreparedFrame,
    Reason,
    TileSpec,
)


@dataclass(slots=True)
class FrameRecord:
    """What the session knows of one file. Exactly one of: waiting (neither), prepared, rejected."""

    fingerprint: Fingerprint
    facts: FrameFacts
    prepared: PreparedFrame | None = None
    rejected: Reason | None = None


@dataclass(slots=True)
class SessionState:
    """A session as its events made it."""

    session: str
    opened: SessionOpened | None = None
    frames: dict[str, FrameRecord] = field(default_factory=dict)
    unprepared: dict[str, None] = field(default_factory=dict)
    revision: int = 0
    closed: bool = False
    closed_set: frozenset[str] = frozenset()
    planned: SessionPlanned | None = None
    done: dict[int, TileDone] = field(default_factory=dict)
    failed: dict[int, TileFailed] = field(default_factory=dict)
    merged: dict[int, TilesMerged] = field(default_factory=dict)
    unmerged: dict[int, MergeFailed] = field(default_factory=dict)
    published: dict[str, MosaicPublished] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    manifest: dict[str, Artefact] = field(default_factory=dict)
    outcome: str = ""
    ended: SessionEnded | None = None
    last_published: dict[str, MosaicPublished] = field(default_factory=dict)
    last_key: str = ""

    @property
    def mode(self) -> Mode:
        """How this session becomes a mosaic."""
        return MODES[self.opened.mode if self.opened else DEFAULT]

    @property
    def plan(self) -> Plan | None:
        """This revision's plan, once Phase 2 is done."""
        return self.planned.plan if self.planned else None

    @property
    def resting(self) -> bool:
        """Nothing to do and nothing waited for."""
        return bool(self.outcome)

    @property
    def preparing(self) -> bool:
        """Frames of the closed set are still in Phase 1."""
        return any(p in self.closed_set for p in self.unprepared)

    @property
    def unmade_supers(self) -> list[tuple[int, tuple[int, ...]]]:
        """Super tiles that are still to be made, with those of their members that there are."""
        return pending_supers(self.plan, self.done, self.merged, self.unmerged) if self.plan else []

    @property
    def phase(self) -> str:
        """The phase the session is in, as PHASE_UPDATE names it; "" while it rests."""
        if self.outcome:
            return ""
        if not self.closed or self.preparing:
            return "1" if self.mode.prepares else "0"
        if self.planned is None:
            return self.mode.plan_phase
        if pending_tiles(self):
            return "3"
        open_ = "4.5" if self.unmade_supers else "5"
        return open_ if len(self.published) < len(self.planned.plan.mosaics) else "7"


# --- instructions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Base of all instructions: something the shell shall do for a session, and answer with events."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Instruction):
    """Phase 1 for one frame, in one state of its file: a file that changes is another instruction."""

    path: str
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class MakePlan(Instruction):
    """Phase 2 for the closed set."""

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StackTile(Instruction):
    """Phase 3 for one tile."""

    revision: int
    tile: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTiles(Instruction):
    """Phase 4.5 for one super tile."""

    revision: int
    tile: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeMosaic(Instruction):
    """Phases 4 to 6 for one mosaic."""

    revision: int
    mosaic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Instruction):
    """End the revision without a new mosaic."""

    revision: int
    outcome: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean(Instruction):
    """Phase 7."""

    revision: int
    outcome: str


# --- the fold ------------------------------------------------------------------------------------------------------


def apply(state: SessionState, event: Event) -> None:
    """Applies one event. An event that cannot follow raises ValueError and changes nothing."""
    match event:
        case SessionOpened():
            state.opened = event
            _follow_mode(state)
        case FrameAssigned() | FrameRejected() | FramePrepared() | FrameRemoved():
            _apply_to_frame(state, event)
        case ArtefactMade():
            state.manifest[event.artefact.path] = event.artefact
        case JobStarted():
            state.attempts[event.job] = event.attempt
        case SessionClosed():
            _start_revision(state, event)
        case _:
            _apply_result(state, event)


def _apply_to_frame(state: SessionState, event: FrameAssigned | FrameRejected | FramePrepared | FrameRemoved) -> None:
    """The life of one file in its session."""
    match event:
        case FrameAssigned():
            if state.outcome:
                _reopen(state)
            if event.path in state.closed_set and (state.planned is not None or not state.preparing):
                state.closed_set -= {event.path}  # changed in Phase 2 or later: it belongs to the next revision
            state.frames[event.path] = FrameRecord(event.fingerprint, event.facts)
            if state.mode.prepares:
                state.unprepared[event.path] = None
        case FrameRejected():
            record = state.frames.get(event.path)
            if record is not None and record.fingerprint == event.fingerprint:
                record.prepared, record.rejected = None, event.reason
                state.unprepared.pop(event.path, None)
        case FramePrepared():
            record = _known(state, event.path)
            if event.fingerprint in (None, record.fingerprint):  # else the file has changed since: it is due again
                record.prepared, record.rejected = event.prepared, None
                state.unprepared.pop(event.path, None)
        case FrameRemoved():
            state.frames.pop(event.path, None)
            state.unprepared.pop(event.path, None)
            state.closed_set -= {event.path}


def _follow_mode(state: SessionState) -> None:
    """What still waits for Phase 1 in the session's mode, which a user may change between two revisions."""
    waiting = (p for p, r in state.frames.items() if r.prepared is None and r.rejected is None)
    state.unprepared = dict.fromkeys(waiting) if state.mode.prepares else {}


def _apply_result(state: SessionState, event: Event) -> None:
    """The results of a revision's work."""
    revision = getattr(event, "revision", None)
    if revision is None or not 1 <= revision <= state.revision:
        raise ValueError(f"{state.session}: {event} does not belong to revision {state.revision}")
    if revision < state.revision or state.outcome or not state.closed:
        # A result that was on its way when its revision ended (of two mosaics one failed): too late to matter, but
        # what lies in the output folder is known (F26).
        if isinstance(event, MosaicPublished):
            state.last_published[event.mosaic] = event
        return
    match event:
        case SessionPlanned():
            state.planned, state.done, state.failed, state.attempts = event, {}, {}, {}
        case TileDone() | TileFailed() | TilesMerged() | MergeFailed():
            kinds: dict[type[Event], dict[int, Any]] = {
                TileDone: state.done, TileFailed: state.failed,
                TilesMerged: state.merged, MergeFailed: state.unmerged,
            }  # fmt: skip
            kinds[type(event)][event.tile] = event
        case MosaicPublished():
            state.published[event.mosaic] = event
        case SessionCleaned():
            _forget_removed(state, event.kept_kinds)
            _rest(state, event.outcome)
        case SessionEnded():
            state.ended = event
            if event.outcome == "failed":  # its files stay for another try, until they expire (P10)
                _rest(state, "failed")


def _known(state: SessionState, path: str) -> FrameRecord:
    try:
        return state.frames[path]
    except KeyError:
        raise ValueError(f"{state.session}: unknown frame {path!r}") from None


def _reopen(state: SessionState) -> None:
    """A late frame opens the next revision; what was measured and solved stays (P10)."""
    state.closed = False
    state.closed_set = frozenset()
    state.outcome = ""
    state.planned = state.ended = None
    state.done, state.failed, state.published, state.attempts = {}, {}, {}, {}
    state.merged, state.unmerged = {}, {}


def _start_revision(state: SessionState, event: SessionClosed) -> None:
    if state.closed and not state.outcome:
        raise ValueError(f"{state.session}: closed twice ({event})")
    if state.outcome:
        _reopen(state)
    state.revision = event.revision
    state.closed = True
    state.closed_set = frozenset(state.frames)


def _rest(state: SessionState, outcome: str) -> None:
    """The revision is over. Frames that came meanwhile open the next one at once."""
    if state.published:
        state.last_published |= state.published
        state.last_key = state.planned.key if state.planned and outcome == "done" and _whole(state) else ""
    state.outcome = outcome
    if has_late_frames(state):
        _reopen(state)


def _whole(state: SessionState) -> bool:
    """No tile and no frame was lost on the way; only then is the same plan again nothing new."""
    return not state.failed and not state.unmerged and not any(t.figures.get("without") for t in state.done.values())


def _forget_removed(state: SessionState, kept_kinds: tuple[ArtefactKind, ...]) -> None:
    """Phase 7 is done: what stayed stays on the manifest, so that a later Phase 7 can still remove it."""
    stay = {ArtefactKind.OUTPUT, ArtefactKind.LOG, *kept_kinds}
    state.manifest = {p: a for p, a in state.manifest.items() if a.kind in stay}


def fold(session: str, events: Iterable[Event]) -> SessionState:
    """The state that these events make."""
    state = SessionState(session)
    for event in events:
        apply(state, event)
    return state


def has_late_frames(state: SessionState) -> bool:
    """Whether something came that was not in the closed set: it waits for the next revision."""
    arrived = state.unprepared if state.mode.prepares else (p for p, r in state.frames.items() if r.rejected is None)
    return any(path not in state.closed_set for path in arrived)


# --- what is due ---------------------------------------------------------------------------------------------------


def frame_due(state: SessionState, path: str) -> Prepare | None:
    """Phase 1 for this frame, if it is due now. A frame that came after closing waits for the next revision."""
    if path not in state.unprepared or (state.closed and path not in state.closed_set):
        return None
    return Prepare(session=state.session, path=path, fingerprint=state.frames[path].fingerprint)


def frames_due(state: SessionState) -> list[Prepare]:
    """Phase 1 for every frame that is due: what a start-up needs to ask once."""
    return [p for path in state.unprepared if (p := frame_due(state, path)) is not None]


def pending_tiles(state: SessionState) -> list[TileSpec]:
    """Planned tiles that are neither done nor failed."""
    plan = state.plan
    return [t for t in plan.tiles if t.tile not in state.done and t.tile not in state.failed] if plan else []


def pending_mosaics(state: SessionState) -> list[MosaicSpec]:
    """Mosaics that have at least one tile and are not published."""
    plan = state.plan
    if plan is None:
        return []
    return [m for m in plan.mosaics if m.name not in state.published and any(t in state.done for t in m.tiles)]


def due(state: SessionState) -> list[Instruction]:
    """What a closed session needs next; [] for an open or resting one, or while its frames are being prepared."""
    if not state.closed or state.outcome:
        return []
    if state.ended is not None:
        return [Clean(session=state.session, revision=state.revision, outcome=state.ended.outcome)]
    if state.planned is not None:
        return _after_plan(state, state.planned.plan)
    return [] if state.preparing else [_plan_or_end(state)]


def _plan_or_end(state: SessionState) -> Instruction:
    if any(_usable(state, state.frames[p]) for p in state.closed_set):
        return MakePlan(session=state.session, revision=state.revision)
    reason = Reason(
        rule="no_usable_frames",
        value=len(state.closed_set),
        threshold=1,
        message=f"none of {len(state.closed_set)} frames could be used",
    )
    return End(session=state.session, revision=state.revision, outcome="empty", reason=reason)


def _usable(state: SessionState, record: FrameRecord) -> bool:
    """Whether there is something to plan with: a prepared frame, or what needs no preparation and was not refused."""
    return record.prepared is not None if state.mode.prepares else record.rejected is None


def _after_plan(state: SessionState, plan: Plan) -> list[Instruction]:
    session, revision = state.session, state.revision
    if not plan.tiles:
        rules = sorted({left.reason.rule for left in plan.left_out})
        reason = Reason(rule="no_tiles", value=", ".join(rules), message="no frame could be placed on the sky")
        return [End(session=session, revision=revision, outcome="empty", reason=reason)]
    tiles = pending_tiles(state)
    if tiles:
        return [StackTile(session=session, revision=revision, tile=t.tile) for t in tiles]
    if supers := state.unmade_supers:
        return [MergeTiles(session=session, revision=revision, tile=number) for number, _ in supers]
    mosaics = pending_mosaics(state)
    if mosaics:
        return [MakeMosaic(session=session, revision=revision, mosaic=m.name) for m in mosaics]
    if not state.published:
        if MODES[plan.mode].steps_back:
            return [MakePlan(session=session, revision=revision)]
        first = next(iter(state.failed.values())).reason
        reason = Reason(rule="all_tiles_failed", value=len(state.failed), message=first.message or first.rule)
        return [End(session=session, revision=revision, outcome="failed", reason=reason)]
    return [Clean(session=session, revision=revision, outcome="done")]
