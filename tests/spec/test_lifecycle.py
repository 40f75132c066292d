"""A session is a fold over its events, and its next work a function of that state (faults B6.3, harness P and H)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests import values
from zemosaicd import codec
from zemosaicd.core import events as ev
from zemosaicd.core import lifecycle
from zemosaicd.core.lifecycle import (
    Clean,
    End,
    Instruction,
    MakeMosaic,
    MakePlan,
    Prepare,
    SessionState,
    StackTile,
    due,
    fold,
)
from zemosaicd.model import Artefact, ArtefactKind, LeftOut, MosaicSpec, MountMode, Plan, Reason, TileSpec

S = "2026-11-20_M42"
FRAMES_A_TILE = 3
GRID = values.plan_of([values.frame_plan(0, values.wcs_at(10.0, 20.0))]).tiles[0].grid


# --- events, shortly


def assigned(number: int, version: int = 1) -> ev.FrameAssigned:
    """Frame `number` came, or changed."""
    return ev.FrameAssigned(
        session=S, path=f"/in/{number}", fingerprint=values.fingerprint(version), facts=values.facts()
    )


def prepared(number: int, version: int = 1) -> ev.FramePrepared:
    """Phase 1 of it is done."""
    done = replace(values.prepared(number), path=f"/in/{number}", frame=f"{number}v{version}")
    return ev.FramePrepared(session=S, path=f"/in/{number}", fingerprint=values.fingerprint(version), prepared=done)


def refused(number: int, version: int = 1) -> ev.FrameRejected:
    """Phase 1 refused it."""
    reason = Reason(rule="no_sky", value=0.0, threshold=1.0)
    return ev.FrameRejected(session=S, path=f"/in/{number}", fingerprint=values.fingerprint(version), reason=reason)


def closed(revision: int = 1) -> ev.SessionClosed:
    """The session closed."""
    return ev.SessionClosed(session=S, revision=revision, cause="quiet")


def plan_for(frames: dict[str, str], unsolved: Iterable[str] = ()) -> Plan:
    """A plan of two mosaics, odd and even frames, in tiles of at most three: paths to frame ids."""
    tiles: list[TileSpec] = []
    mosaics = []
    for name, parity in (("even", 0), ("odd", 1)):
        members = [f for path, f in sorted(frames.items()) if int(path.rpartition("/")[2]) % 2 == parity]
        numbers = []
        for start in range(0, len(members), FRAMES_A_TILE):
            numbers.append(len(tiles) + 1)
            part = tuple(members[start : start + FRAMES_A_TILE])
            tiles.append(
                TileSpec(tile=numbers[-1], mosaic=name, group=name, frames=part, reference=part[0], grid=GRID,
                         channels=1, mount_mode=MountMode.EQ)
            )  # fmt: skip
        if numbers:
            mosaics.append(MosaicSpec(name=name, filter_name=name, channels=1, lattice=GRID.wcs, tiles=tuple(numbers)))
    left = tuple(LeftOut(frame=p, path=p, reason=Reason(rule="unsolved")) for p in unsolved)
    return Plan(frames={}, tiles=tuple(tiles), mosaics=tuple(mosaics), left_out=left)


def planned(*numbers: int, revision: int = 1, key: str = "k", unsolved: Iterable[str] = ()) -> ev.SessionPlanned:
    """Phase 2 is done."""
    plan = plan_for({f"/in/{n}": f"{n}v1" for n in numbers}, unsolved)
    return ev.SessionPlanned(session=S, revision=revision, plan=plan, key=key)


def tile_done(tile: int, revision: int = 1, without: Sequence[str] = ()) -> ev.TileDone:
    """A tile is on disk."""
    return ev.TileDone(
        session=S, revision=revision, tile=tile, path="/t", frames_used=1, figures={"without": list(without)}
    )


def tile_failed(tile: int, revision: int = 1) -> ev.TileFailed:
    """A tile was given up."""
    return ev.TileFailed(session=S, revision=revision, tile=tile, reason=Reason(rule="empty_tile", message="empty"))


def published(name: str, revision: int = 1) -> ev.MosaicPublished:
    """A mosaic is out."""
    return ev.MosaicPublished(session=S, revision=revision, mosaic=name, path=f"/out/{name}", verdict="good")


def ended(outcome: str, revision: int = 1) -> ev.SessionEnded:
    """The revision ended without a mosaic."""
    return ev.SessionEnded(session=S, revision=revision, outcome=outcome, reason=Reason(rule=outcome))


def cleaned(revision: int = 1, outcome: str = "done") -> ev.SessionCleaned:
    """Phase 7 is done."""
    return ev.SessionCleaned(session=S, revision=revision, removed=1, kept=0, outcome=outcome)


OPENED = ev.SessionOpened(session=S, night="2026-11-20", target="M42")
ONE_NIGHT: list[ev.Event] = [
    OPENED, assigned(0), assigned(1), assigned(2), prepared(0), refused(1), prepared(2), closed(), planned(0, 2),
    ev.JobStarted(session=S, revision=1, job="tile 1", attempt=1), tile_done(1),
    ev.ArtefactMade(session=S, artefact=Artefact(path="/out/even", kind=ArtefactKind.OUTPUT)),
    ev.ArtefactMade(session=S, artefact=Artefact(path="/state/0.npy", kind=ArtefactKind.CACHE)),
    published("even"), cleaned(),
]  # fmt: skip
"""Frame by frame, closed, planned, stacked, published, cleaned."""


def state_after(*events: ev.Event) -> SessionState:
    """The fold."""
    return fold(S, events)


def kinds(state: SessionState) -> list[str]:
    """The names of what is due, Phase 1 included."""
    return [type(i).__name__ for i in (*lifecycle.frames_due(state), *due(state))]


# --- the table: what is due after each event of a night


TABLE: list[tuple[str, list[str], str]] = [
    ("SessionOpened", [], "1"),
    ("FrameAssigned", ["Prepare"], "1"),
    ("FrameAssigned", ["Prepare"] * 2, "1"),
    ("FrameAssigned", ["Prepare"] * 3, "1"),
    ("FramePrepared", ["Prepare"] * 2, "1"),
    ("FrameRejected", ["Prepare"], "1"),
    ("FramePrepared", [], "1"),
    ("SessionClosed", ["MakePlan"], "2"),
    ("SessionPlanned", ["StackTile"], "3"),
    ("JobStarted", ["StackTile"], "3"),
    ("TileDone", ["MakeMosaic"], "5"),
    ("ArtefactMade", ["MakeMosaic"], "5"),
    ("ArtefactMade", ["MakeMosaic"], "5"),
    ("MosaicPublished", ["Clean"], "7"),
    ("SessionCleaned", [], ""),
]


@pytest.mark.parametrize("step", range(len(TABLE)))
def test_what_is_due_after_each_event_of_a_night(step: int) -> None:
    """The table of a session that goes well, and the phase that each step is in."""
    name, expected, phase = TABLE[step]
    state = state_after(*ONE_NIGHT[: step + 1])
    assert type(ONE_NIGHT[step]).__name__ == name
    assert kinds(state) == expected
    assert state.phase == phase
    assert state.resting == (step == len(TABLE) - 1)


SAMPLES: list[ev.Event] = [
    prepared(9), closed(), closed(2), planned(0, 2), planned(0, 2, revision=2), tile_done(1), tile_done(1, 2),
    tile_failed(1), published("even"), published("even", 2), ended("failed"), ended("empty", 2), cleaned(), cleaned(2),
]  # fmt: skip
ALLOWED = {
    "open": {1, 2},
    "closed": {3, 5, 7, 8, 10, 12},
    "planned": {3, 5, 7, 8, 10, 12},
    "resting": {1, 2, 3, 5, 7, 8, 10, 12},
}
"""Which of SAMPLES may follow. A resting session may be closed anew; late results of its own revision do no harm
(another mosaic failed meanwhile); those of a revision to come are never taken."""
STATES = {"open": 7, "closed": 8, "planned": 9, "resting": len(ONE_NIGHT)}


@pytest.mark.parametrize("where", STATES)
@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_an_event_that_cannot_follow_raises_and_changes_nothing(where: str, index: int) -> None:
    """The whole table of states and events: unknown frames, closing twice, results of another revision."""
    state = state_after(*ONE_NIGHT[: STATES[where]])
    before = repr(state)
    if index in ALLOWED[where]:
        lifecycle.apply(state, SAMPLES[index])
    else:
        with pytest.raises(ValueError, match=S):
            lifecycle.apply(state, SAMPLES[index])
        assert repr(state) == before


def test_closing_twice_raises() -> None:
    """A revision is closed once; the message names the session and the event."""
    with pytest.raises(ValueError, match="closed twice"):
        state_after(*ONE_NIGHT[:8], closed(2))


# --- frames


def test_a_rejected_frame_is_not_waited_for() -> None:
    """It has its reason, and the session goes on without it."""
    state = state_after(*ONE_NIGHT[:7])
    record = state.frames["/in/1"]
    assert record.rejected is not None
    assert record.prepared is None
    assert lifecycle.frame_due(state, "/in/1") is None


def test_F28_a_late_frame_waits_and_opens_the_next_revision() -> None:
    """A frame that comes after closing is kept out of the running revision; when that rests, it opens the next."""
    running = [*ONE_NIGHT[:9], assigned(4)]
    assert kinds(state_after(*running)) == ["StackTile"]
    assert lifecycle.frame_due(state_after(*running), "/in/4") is None
    rested = state_after(*running, *ONE_NIGHT[9:])
    assert (rested.closed, rested.resting, rested.revision) == (False, False, 1)
    assert kinds(rested) == ["Prepare"]
    again = state_after(*running, *ONE_NIGHT[9:], prepared(4), closed(2))
    assert kinds(again) == ["MakePlan"]
    assert again.closed_set == {"/in/0", "/in/1", "/in/2", "/in/4"}
    assert again.frames["/in/0"].prepared is not None


def test_F28_a_frame_after_the_end_reopens_a_resting_session() -> None:
    """What was prepared stays prepared, the plan goes, and what was published is remembered."""
    state = state_after(*ONE_NIGHT, assigned(4))
    assert kinds(state) == ["Prepare"]
    assert (state.plan, state.done, state.published) == (None, {}, {})
    assert set(state.last_published) == {"even"}


@pytest.mark.parametrize("where", [9, 10, 13])
def test_C2_a_frame_that_changes_after_the_plan_belongs_to_the_next_revision(where: int) -> None:
    """The running revision ends with what it was planned with; then the new content has its turn."""
    events = [*ONE_NIGHT[:where], assigned(0, 2), *ONE_NIGHT[where:]]
    state = state_after(*events)
    assert not state.resting
    assert [(i.path, i.fingerprint) for i in lifecycle.frames_due(state)] == [("/in/0", values.fingerprint(2))]


def test_C2_a_frame_that_changes_while_the_plan_is_made_belongs_to_the_next_revision() -> None:
    """Phase 2 is under way with the old content: the change must not vanish into a revision that does not hold it."""
    state = state_after(*ONE_NIGHT[:8], assigned(0, 2), *ONE_NIGHT[8:])
    assert not state.resting
    assert kinds(state) == ["Prepare"]


def test_C2_a_frame_that_changes_while_others_are_prepared_stays_in_the_closed_set() -> None:
    """Before Phase 2 there is time: the new content is prepared, and the session waits for it."""
    state = state_after(assigned(0), assigned(2), prepared(0), closed(), assigned(0, 2), prepared(2))
    assert kinds(state) == ["Prepare"]
    assert kinds(state_after(assigned(0), prepared(0), assigned(0, 2), prepared(0, 2), closed())) == ["MakePlan"]


def test_C2_the_result_for_an_older_content_is_not_taken_for_the_new() -> None:
    """A file that is rewritten while it is prepared: neither the old measures nor the old refusal count."""
    for stale in (prepared(0, 1), refused(0, 1)):
        state = state_after(assigned(0, 1), assigned(0, 2), stale)
        record = state.frames["/in/0"]
        assert (record.prepared, record.rejected) == (None, None)
        assert kinds(state) == ["Prepare"]
    first, second = (lifecycle.frame_due(state_after(assigned(0, v)), "/in/0") for v in (1, 2))
    assert first != second  # so that the shell starts the second while the first still runs


def test_an_older_journal_knows_no_fingerprint_of_a_prepared_frame() -> None:
    """Its results count as they did."""
    bare = replace(prepared(0), fingerprint=None)
    assert state_after(assigned(0), bare).frames["/in/0"].prepared is not None


def test_a_prepared_frame_that_is_refused_later_takes_no_part() -> None:
    """A record is waiting, prepared or rejected: one of them."""
    state = state_after(assigned(0), prepared(0), refused(0), closed())
    assert state.frames["/in/0"].prepared is None
    assert kinds(state) == ["End"]


# --- endings


def only(state: SessionState) -> Any:
    """The one instruction that is due."""
    (instruction,) = due(state)
    return instruction


def test_F29_a_session_without_frames_ends_empty() -> None:
    """0 frames, or all rejected: no mosaic, one reason with count and limit, then Phase 7, then rest."""
    for before, count in (([], 0), ([assigned(1), refused(1)], 1)):
        end = only(state_after(*before, closed()))
        assert (type(end), end.outcome, end.reason.rule, end.reason.value) == (End, "empty", "no_usable_frames", count)
    after = [assigned(1), refused(1), closed(), ended("empty")]
    assert only(state_after(*after)) == Clean(session=S, revision=1, outcome="empty")
    assert state_after(*after, cleaned(outcome="empty")).outcome == "empty"


def test_F29_a_plan_without_tiles_ends_empty_and_says_why() -> None:
    """The rules of the frames that were left out are named."""
    end = only(state_after(assigned(0), prepared(0), closed(), planned(unsolved=["/in/0"])))
    assert (type(end), end.outcome, end.reason.rule, end.reason.value) == (End, "empty", "no_tiles", "unsolved")


def test_F31_failed_tiles_are_holes_not_the_end() -> None:
    """The mosaic is made of the tiles that are done; a mosaic without any is not asked for."""
    night = [*(assigned(n) for n in range(8)), *(prepared(n) for n in range(8)), closed(), planned(*range(8))]
    tiles = {m.name: m.tiles for m in night[-1].plan.mosaics}  # type: ignore[attr-defined]
    assert tiles == {"even": (1, 2), "odd": (3, 4)}
    state = state_after(*night, tile_done(1), tile_failed(2), tile_failed(3), tile_failed(4))
    assert due(state) == [MakeMosaic(session=S, revision=1, mosaic="even")]


def test_D2_no_mega_tile_at_all_asks_for_another_plan_and_begins_anew_with_it() -> None:
    """A plan of SDS steps back, with no try counted against its new tiles; classic's own ends as it always did."""
    (plan,) = (e for e in ONE_NIGHT if isinstance(e, ev.SessionPlanned))
    swept = replace(plan, plan=replace(plan.plan, mode="sds"))
    events = [swept if e is plan else e for e in ONE_NIGHT[:9]]
    tried = ev.JobStarted(session=S, revision=1, job="tile 1", attempt=5)
    assert due(state_after(*events, tried, tile_failed(1))) == [MakePlan(session=S, revision=1)]
    again = state_after(*events, tried, tile_failed(1), plan)
    assert (again.failed, again.attempts) == ({}, {})
    assert due(again) == [StackTile(session=S, revision=1, tile=1)]
    assert only(state_after(*events, tile_failed(1), plan, tile_failed(1))).outcome == "failed"


def test_F31_no_tile_at_all_ends_the_session_as_failed() -> None:
    """With the first tile's reason; it rests at once, and its files stay for another try (P10)."""
    events = [*ONE_NIGHT[:9], tile_failed(1)]
    end = only(state_after(*events))
    assert (end.outcome, end.reason.rule, end.reason.value, end.reason.message) == (
        "failed", "all_tiles_failed", 1, "empty",
    )  # fmt: skip
    made = ev.ArtefactMade(session=S, artefact=Artefact(path="/state/0.npy", kind=ArtefactKind.CACHE))
    state = state_after(*events, made, ended("failed"))
    assert (state.outcome, due(state)) == ("failed", [])
    assert list(state.manifest) == ["/state/0.npy"]


@pytest.mark.parametrize("outcome", ["cancelled", "unchanged", "empty"])
def test_P10_every_other_end_is_cleaned(outcome: str) -> None:
    """As a completed session is."""
    state = state_after(*ONE_NIGHT[:9], ended(outcome))
    assert due(state) == [Clean(session=S, revision=1, outcome=outcome)]
    assert state_after(*ONE_NIGHT[:9], ended(outcome), cleaned(outcome=outcome)).outcome == outcome


def test_P9_after_cleanup_only_outputs_and_logs_stay_on_the_manifest() -> None:
    """What Phase 7 removed is not removed again at the next."""
    log = ev.ArtefactMade(session=S, artefact=Artefact(path="/state/x.log", kind=ArtefactKind.LOG))
    state = state_after(*ONE_NIGHT[:-1], log, cleaned())
    assert set(state.manifest) == {"/out/even", "/state/x.log"}


def test_F21_attempts_are_counted_over_restarts_and_forgotten_with_the_revision() -> None:
    """The last number counts (an orderly stop takes one back, F12); a new revision starts at none."""
    tries = [ev.JobStarted(session=S, revision=1, job="tile 1", attempt=n) for n in (1, 2, 3, 2)]
    assert state_after(*ONE_NIGHT[:9], *tries).attempts == {"tile 1": 2}
    assert state_after(*ONE_NIGHT, closed(2)).attempts == {}


# --- what is remembered of what was published


def two_mosaics(*events: ev.Event) -> SessionState:
    """Frames 0 and 1, one to a mosaic, planned and stacked; then these events."""
    start = [assigned(0), assigned(1), prepared(0), prepared(1), closed(), planned(0, 1), tile_done(1), tile_done(2)]
    return state_after(*start, *events)


def test_a_whole_revision_is_remembered_by_its_key() -> None:
    """The same frames and settings again are nothing new."""
    state = two_mosaics(published("even"), published("odd"), cleaned())
    assert (state.last_key, set(state.last_published)) == ("k", {"even", "odd"})


def test_a_revision_that_failed_half_way_is_not_taken_for_done() -> None:
    """One mosaic out, the other failed: the next try with the same settings is not `unchanged`."""
    state = two_mosaics(published("even"), ended("failed"))
    assert state.last_key == ""
    assert set(state.last_published) == {"even"}


@pytest.mark.parametrize("hole", [tile_failed(2), tile_done(2, without=["1v1"])])
def test_a_mosaic_with_holes_can_be_made_again(hole: ev.Event) -> None:
    """A tile that failed, or a frame that was lost, is reason enough for another try with the same settings."""
    start = [assigned(0), assigned(1), prepared(0), prepared(1), closed(), planned(0, 1), tile_done(1), hole]
    assert state_after(*start, published("even"), cleaned()).last_key == ""


def test_F26_every_mosaic_ever_published_is_remembered() -> None:
    """One that a later revision does not make is still there, and must take its own name when it is made again."""
    state = two_mosaics(published("even"), published("odd"), cleaned(), assigned(2), refused(2), closed(2),
                        planned(0, 1, revision=2), tile_done(1, 2), tile_failed(2, 2), published("even", 2),
                        cleaned(2))  # fmt: skip
    assert {name: p.revision for name, p in state.last_published.items()} == {"even": 2, "odd": 1}


@pytest.mark.parametrize("late", [[], [assigned(7)]])
def test_a_mosaic_that_ends_after_its_session_failed_is_remembered(late: list[ev.Event]) -> None:
    """Two mosaics run at once, one fails: the other's result is known (F26) and breaks nothing, late frames or not."""
    state = two_mosaics(*late, ended("failed"), published("odd"), ended("failed"))
    assert set(state.last_published) == {"odd"}
    assert state.resting == (not late)
    codec_trip = [codec.loads(ev.MosaicPublished, codec.dumps(published("odd")))]
    assert codec_trip == [published("odd")]


# --- H: any order of events, any crash


class Nights(RuleBasedStateMachine):
    """A session with frames that come, change and are refused, work that fails, and a shell that dies.

    The shell is that of `shell.engine`: results are journalled, applied, and what became due is started, once each.
    A job works with what it saw when it started, as real jobs do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[ev.Event] = []
        self.state = SessionState(S)
        self.running: dict[Instruction, Any] = {}
        self.version = 0
        self.disk: dict[str, frozenset[str]] = {}
        self.worked: set[tuple[int, str]] = set()
        self.record(OPENED)

    # the shell

    def record(self, *events: ev.Event) -> None:
        self.journal += events
        for event in events:
            lifecycle.apply(self.state, event)
        for event in events:
            if isinstance(event, ev.FrameAssigned):
                self.start([lifecycle.frame_due(self.state, event.path)])
        self.start(due(self.state))

    def start(self, instructions: Sequence[Instruction | None]) -> None:
        for instruction in instructions:
            if instruction is not None and instruction not in self.running:
                self.running[instruction] = self.seen_by(instruction)

    def seen_by(self, instruction: Instruction) -> Any:
        if isinstance(instruction, Prepare):
            return self.state.frames[instruction.path].fingerprint.mtime_ns
        if isinstance(instruction, MakePlan):
            return {p: r.prepared.frame for p, r in self.state.frames.items() if r.prepared is not None}
        return None

    def complete(self, instruction: Instruction, fails: bool) -> None:
        self.record(*self.result(instruction, self.running[instruction], fails))
        del self.running[instruction]
        if not isinstance(instruction, Prepare):
            self.start(lifecycle.frames_due(self.state))
        self.start(due(self.state))

    def result(self, instruction: Instruction, seen: Any, fails: bool) -> list[ev.Event]:
        match instruction:
            case Prepare(path=path):
                number = int(path.rpartition("/")[2])
                return [refused(number, seen) if fails else prepared(number, seen)]
            case MakePlan(revision=revision):
                return [self.plan(revision, seen)]
            case StackTile(revision=revision, tile=tile):
                assert (revision, f"tile {tile}") not in self.worked
                self.worked.add((revision, f"tile {tile}"))
                return [tile_failed(tile, revision) if fails else tile_done(tile, revision)]
            case MakeMosaic(revision=revision, mosaic=name):
                if fails:
                    return [ended("failed", revision)]
                self.publish(name)
                return [published(name, revision)]
            case End(revision=revision, outcome=outcome):
                return [ended(outcome, revision)]
            case Clean(revision=revision, outcome=outcome):
                return [cleaned(revision, outcome)]
        raise AssertionError(instruction)

    def plan(self, revision: int, frames: dict[str, str]) -> ev.Event:
        key = repr(sorted(frames.items()))
        if key == self.state.last_key and self.state.last_published:
            return ended("unchanged", revision)
        return ev.SessionPlanned(session=S, revision=revision, plan=plan_for(frames), key=key)

    def publish(self, name: str) -> None:
        assert name not in self.disk or name in self.state.last_published  # F26: never overwritten in silence
        plan = self.state.plan
        if plan is None:  # its revision ended under it
            return
        tiles = {t.tile: t for t in plan.tiles}
        spec = next(m for m in plan.mosaics if m.name == name)
        self.disk[name] = frozenset(f for t in spec.tiles if t in self.state.done for f in tiles[t].frames)

    # what happens

    @rule(number=st.integers(0, 8))
    def a_frame_comes_or_changes(self, number: int) -> None:
        self.version += 1
        self.record(assigned(number, self.version))

    @rule(asked=st.booleans())
    def it_closes(self, asked: bool) -> None:
        if self.state.frames and (not self.state.closed or (asked and self.state.resting)):
            self.record(closed(self.state.revision + 1))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 20), fails=st.sampled_from([False, False, False, True]))
    def a_job_ends(self, which: int, fails: bool) -> None:
        self.complete(list(self.running)[which % len(self.running)], fails)

    @rule()
    def all_jobs_end(self) -> None:
        self.drain()

    @rule()
    def it_crashes(self) -> None:
        self.state, self.running = fold(S, self.journal), {}
        self.start(lifecycle.frames_due(self.state))
        self.start(due(self.state))

    def drain(self) -> None:
        for _ in range(200):
            if not self.running:
                return
            self.complete(next(iter(self.running)), fails=False)
        raise AssertionError(f"no end: {self.running}")

    # what holds always

    @invariant()
    def the_state_is_the_fold_of_the_journal(self) -> None:
        assert repr(fold(S, self.journal)) == repr(self.state)

    @invariant()
    def a_frame_is_waiting_or_prepared_or_rejected(self) -> None:
        for path, record in self.state.frames.items():
            assert [path in self.state.unprepared, bool(record.prepared), bool(record.rejected)].count(True) == 1

    @invariant()
    def nothing_that_is_done_is_due(self) -> None:
        for instruction in due(self.state):
            match instruction:
                case StackTile(tile=tile):
                    assert tile not in self.state.done
                    assert tile not in self.state.failed
                case MakeMosaic(mosaic=name):
                    assert name not in self.state.published
        assert not (due(self.state) and (self.state.resting or not self.state.closed))

    @invariant()
    def it_waits_for_somebody(self) -> None:
        """Nothing is forgotten: a session that is closed and not at rest has a job running."""
        if self.state.closed and not self.state.resting:
            assert self.running

    def teardown(self) -> None:
        """Left alone and asked once more, the session ends with a mosaic of the newest content of every good frame."""
        for _ in range(3):  # a revision with late frames is followed by one that has them
            self.drain()
            if self.state.frames and not self.state.closed:
                self.record(closed(self.state.revision + 1))
        self.drain()
        if not self.state.frames:
            return
        if self.state.resting:
            self.record(closed(self.state.revision + 1))
            self.drain()
        assert self.state.resting
        assert not self.state.unprepared
        good = {p: r.prepared.frame for p, r in self.state.frames.items() if r.prepared is not None}
        for path, frame in good.items():
            assert frame == f"{path.rpartition('/')[2]}v{self.state.frames[path].fingerprint.mtime_ns}"
        specs = {t.tile: t for t in plan_for(good).tiles}
        for mosaic in plan_for(good).mosaics:
            assert self.disk[mosaic.name] == {f for t in mosaic.tiles for f in specs[t].frames}


TestH_any_order_of_events_and_crashes = Nights.TestCase
TestH_any_order_of_events_and_crashes.settings = settings(
    max_examples=200, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)


# --- P: every prefix of a journal


def journal_of(script: Sequence[ev.Event | str]) -> list[ev.Event]:
    """The journal of a session in which these arrivals happen, `drain` meaning that all work ends in between."""
    machine = Nights()
    machine.journal, machine.state = [], SessionState(S)
    for step in script:
        if isinstance(step, ev.Event):
            machine.record(step)
        else:
            machine.drain()
    machine.drain()
    return machine.journal


SCRIPT: list[ev.Event | str] = [
    OPENED, *(assigned(n) for n in range(8)), "drain", closed(1), "drain", assigned(8), assigned(1, 2), "drain",
    closed(2), "drain",
]  # fmt: skip


def test_P_every_prefix_of_a_journal_resumes_to_the_same_end() -> None:
    """Kill -9 after any event: folding what is there and doing what is due ends with the same mosaics (F1)."""
    whole = journal_of(SCRIPT)
    last = fold(S, whole)
    assert len(whole) > 35
    for cut in range(len(whole) + 1):
        machine = Nights()
        machine.journal = list(whole[:cut])
        machine.it_crashes()
        outside = [e for e in whole[cut:] if isinstance(e, ev.SessionOpened | ev.FrameAssigned | ev.SessionClosed)]
        for event in outside:
            if isinstance(event, ev.SessionClosed):
                machine.drain()
            machine.record(event)
        machine.drain()
        assert repr(machine.state.last_published) == repr(last.last_published), cut
        assert (machine.state.outcome, machine.state.revision, machine.state.last_key) == ("done", 2, last.last_key)
        assert {p: r.prepared for p, r in machine.state.frames.items()} == {
            p: r.prepared for p, r in last.frames.items()
        }


def test_P_a_journal_survives_its_own_text() -> None:
    """Events written as JSON and read back fold to the same state."""
    whole = journal_of(SCRIPT)
    back = [codec.loads(type(e), codec.dumps(e)) for e in whole]
    assert repr(fold(S, back)) == repr(fold(S, whole))


# --- a mode is a row of data (D4, D5)


def tiles_opened() -> ev.SessionOpened:
    """A session of tiles that exist."""
    return ev.SessionOpened(session=S, night="2026-11-20", target="M42", mode="existing")


def plan_of_made_tiles() -> Plan:
    """Two tiles that lie there."""
    tiles = tuple(
        TileSpec(
            tile=n, mosaic="J", group=f"J-{n}", frames=(f"t{n}",), reference=f"t{n}", grid=GRID, channels=1,
            mount_mode=MountMode.UNKNOWN,
        )
        for n in (1, 2)
    )  # fmt: skip
    mosaic = MosaicSpec(name="J", filter_name="J", channels=1, lattice=GRID.wcs, tiles=(1, 2))
    made = {1: "/in/0", 2: "/in/1"}
    return Plan(frames={}, tiles=tiles, mosaics=(mosaic,), mode="existing", made=made)


def test_D4_tiles_that_exist_need_no_phases_1_to_3() -> None:
    """Closed, they are planned with at once; planned and done, the mosaic is next; nothing is ever prepared."""
    events: list[ev.Event] = [tiles_opened(), assigned(0), assigned(1)]
    state = fold(S, events)
    assert state.phase == "0"
    assert lifecycle.frames_due(state) == []
    lifecycle.apply(state, closed())
    assert due(state) == [MakePlan(session=S, revision=1)]
    assert state.phase == "4"
    plan = plan_of_made_tiles()
    lifecycle.apply(state, ev.SessionPlanned(session=S, revision=1, plan=plan, key="k"))
    for tile, path in plan.made.items():
        lifecycle.apply(state, ev.TileDone(session=S, revision=1, tile=tile, path=path, frames_used=1))
    assert due(state) == [MakeMosaic(session=S, revision=1, mosaic="J")]
    assert state.phase == "5"
    assert state.manifest == {}


def test_D4_a_late_tile_opens_the_next_revision() -> None:
    """What comes while the mosaic is made waits for it to be over, as a late frame does."""
    state = fold(S, [tiles_opened(), assigned(0), closed(), assigned(1)])
    assert lifecycle.has_late_frames(state)
    reason = Reason(rule="unchanged")
    lifecycle.apply(state, ev.SessionEnded(session=S, revision=1, outcome="unchanged", reason=reason))
    lifecycle.apply(state, ev.SessionCleaned(session=S, revision=1, removed=0, kept=0, outcome="unchanged"))
    assert not state.closed
    assert set(state.frames) == {"/in/0", "/in/1"}


def test_D5_a_session_follows_its_mode() -> None:
    """A user who asks for the other mode gets it: frames are due when they are to be prepared, and not otherwise."""
    state = fold(S, [tiles_opened(), assigned(0), assigned(1)])
    lifecycle.apply(state, replace(tiles_opened(), mode="classic"))
    assert len(lifecycle.frames_due(state)) == 2
    lifecycle.apply(state, tiles_opened())
    assert lifecycle.frames_due(state) == []
