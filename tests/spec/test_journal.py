"""The journal: what was appended is there, whatever happens (DESIGN, "State"; F1, F8, F15, M3)."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.core import events as ev
from zemosaicd.model import Artefact, ArtefactKind, Fatal, Fingerprint, FrameFacts, Reason
from zemosaicd.shell.journal import Journal, JournalFull
from zemosaicd.shell.journal_tables import SCHEMA_VERSION

ROOT = Path(__file__).parents[2]
STATE = Fingerprint(device=1, inode=2, size=3, mtime_ns=4)


def opened(session: str = "n") -> ev.SessionOpened:
    return ev.SessionOpened(session=session, night="2026-01-02", target="m31")


def assigned(path: str = "/in/a.fits", session: str = "n", state: Fingerprint = STATE) -> ev.FrameAssigned:
    return ev.FrameAssigned(session=session, path=path, fingerprint=state, facts=FrameFacts(width=4, height=3))


def rejected(path: str, session: str = "") -> ev.FrameRejected:
    return ev.FrameRejected(session=session, path=path, fingerprint=STATE, reason=Reason(rule="zero_tail", value=0.5))


def cleaned(session: str = "n") -> ev.SessionCleaned:
    return ev.SessionCleaned(session=session, revision=1, removed=2, kept=1, outcome="done")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def with_journal(path: Path, body: Callable[[Journal], Awaitable[None]]) -> None:
    """Run a test body with an open journal, and close it."""

    async def whole() -> None:
        journal = Journal.open(path)
        try:
            await body(journal)
        finally:
            await journal.aclose()

    asyncio.run(whole())


def append(path: Path, *events: ev.Event) -> None:
    with_journal(path, lambda journal: journal.append(*events))


def test_events_come_back_as_they_went_in(path: Path) -> None:
    """Typed, in order, session by session, after the journal was closed and opened again."""
    mine = [opened(), assigned(), ev.ArtefactMade(session="n", artefact=Artefact(path="/c", kind=ArtefactKind.CACHE))]
    append(path, mine[0], opened("other"), *mine[1:])

    async def body(journal: Journal) -> None:
        assert journal.events_of("n") == mine
        assert journal.events_of("other") == [opened("other")]
        assert journal.events_of("nobody") == []

    with_journal(path, body)


def test_appends_of_one_tick_are_one_transaction_in_order(path: Path) -> None:
    """A thousand concurrent appends are a few commits; none is lost, and each caller's order is kept."""

    async def body(journal: Journal) -> None:
        await asyncio.gather(*(journal.append(assigned(f"/in/{i}.fits")) for i in range(1000)))
        assert [e.path for e in journal.events_of("n")] == [f"/in/{i}.fits" for i in range(1000)]  # type: ignore[attr-defined]
        assert journal.commits < 10

    with_journal(path, body)


def test_an_append_that_was_awaited_survives_kill_9(tmp_path: Path, path: Path) -> None:
    """F1: the process is killed right after the append returned; the event is there, and the lock is free."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from zemosaicd.core.events import SessionOpened\n"
        "from zemosaicd.shell.journal import Journal\n"
        "async def main():\n"
        "    journal = Journal.open(Path(sys.argv[1]))\n"
        "    await journal.append(SessionOpened(session='n', night='2026-01-02', target='m31'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, script, path], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert ended.returncode == -signal.SIGKILL

    async def body(journal: Journal) -> None:
        assert journal.events_of("n") == [opened()]

    with_journal(path, body)


def test_F40_every_commit_reaches_the_disk(path: Path) -> None:
    """A power cut cannot be made here, but the settings that answer for it can be read: WAL, a full sync a commit."""

    async def body(journal: Journal) -> None:
        assert journal._writes.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._writes.execute("PRAGMA synchronous").fetchone() == (2,)

    with_journal(path, body)


def test_open_sessions_are_those_that_start_up_must_fold(path: Path) -> None:
    """Until its Phase 7 is done; a late frame reopens; a frame refused without a session opens none."""

    async def body(journal: Journal) -> None:
        end = ev.SessionEnded(session="c", revision=1, outcome="empty", reason=Reason(rule="no_frames"))
        await journal.append(opened("a"), opened("b"), cleaned("b"), opened("c"), end, rejected("/in/x.fits"))
        assert journal.open_sessions() == ["a", "c"]
        await journal.append(cleaned("c"))
        assert journal.open_sessions() == ["a"]
        await journal.append(assigned(session="b"), ev.SessionClosed(session="a", revision=1, cause="quiet"))
        assert journal.open_sessions() == ["a", "b"]

    with_journal(path, body)


def test_P10_a_failed_session_rests_with_its_files(path: Path) -> None:
    """It is not begun again at every start; a late frame or a command takes it up."""

    async def body(journal: Journal) -> None:
        end = ev.SessionEnded(session="n", revision=1, outcome="failed", reason=Reason(rule="no_tiles"))
        await journal.append(opened(), end)
        assert journal.open_sessions() == []

    with_journal(path, body)


def test_F28_frames_that_came_while_a_revision_was_made_keep_the_session_open(path: Path) -> None:
    """A power cut right after Phase 7 must not forget them."""

    async def body(journal: Journal) -> None:
        closed = ev.SessionClosed(session="n", revision=1, cause="quiet")
        await journal.append(opened(), assigned(), closed, assigned("/in/late.fits"), cleaned())
        assert journal.open_sessions() == ["n"]

    with_journal(path, body)


def test_process_asks_only_for_what_its_own_session_has_judged(path: Path) -> None:
    """A file that another session took counts as new for the session of a whole folder."""

    async def body(journal: Journal) -> None:
        await journal.append(opened("a"), assigned("/in/a.fits", "a"), opened("b"), assigned("/in/b.fits", "b"))
        both = ["/in/a.fits", "/in/b.fits"]
        assert set(journal.known(both)) == set(both)
        assert set(journal.known(both, "b")) == {"/in/b.fits"}

    with_journal(path, body)


def test_a_session_has_a_summary_without_being_folded(path: Path) -> None:
    """Night, target, frames, outcome and times of every session, for `sessions` and `status`."""

    async def body(journal: Journal) -> None:
        await journal.append(opened(), assigned("/in/a.fits"), assigned("/in/b.fits"), rejected("/in/b.fits", "n"))
        await journal.append(
            ev.SessionClosed(session="n", revision=2, cause="marker"),
            ev.TileDone(session="n", revision=2, tile=1, path="/t", frames_used=1),
            ev.MosaicPublished(session="n", revision=2, mosaic="L", path="/out/mosaic.fits", verdict="good"),
            cleaned(),
        )
        (row,) = journal.all_sessions()
        assert (row.session, row.open, row.frames, row.rejected) == ("n", False, 1, 1)
        assert row.summary == {
            "night": "2026-01-02",
            "target": "m31",
            "telescope": "",
            "revision": 2,
            "cause": "marker",
            "outcome": "done",
            "tiles_done": 1,
            "mosaics": {"L": {"path": "/out/mosaic.fits", "verdict": "good"}},
        }
        assert row.opened_at <= row.updated_at

    with_journal(path, body)


def test_M3_a_file_is_known_by_its_bytes_and_its_last_judged_state(path: Path) -> None:
    """Names that are not UTF-8, 64-bit inodes, thousands at once: assigned or rejected, the fingerprint comes back."""
    odd = os.fsdecode(b"/in/Light_\xff\n001.fits")
    huge = Fingerprint(device=2**64 - 1, inode=2**63, size=5, mtime_ns=6)

    async def body(journal: Journal) -> None:
        await journal.append(assigned(odd), rejected("/in/thumb.fits"), *(assigned(f"/in/{i}") for i in range(1200)))
        await journal.append(assigned(odd, state=huge))
        known = journal.known([odd, "/in/thumb.fits", "/in/new.fits", *(f"/in/{i}" for i in range(1200))])
        assert len(known) == 1202
        assert known[odd] == huge
        assert known["/in/thumb.fits"] == STATE
        assert journal.events_of("n")[0] == assigned(odd)

    with_journal(path, body)


def test_F15_a_second_daemon_is_refused_and_told_by_whom(path: Path) -> None:
    """One line, naming the process that holds the lock; readers are let in beside it, without a lock."""

    async def body(journal: Journal) -> None:
        with pytest.raises(Fatal, match=f"another zemosaicd \\(pid {os.getpid()}\\)") as refusal:
            Journal.open(path)
        assert refusal.value.reason.rule == "journal_locked"
        await journal.append(opened())
        reader = Journal.open_readonly(path)
        assert reader.events_of("n") == [opened()]
        await journal.append(cleaned())
        assert reader.open_sessions() == []
        reader.close()

    with_journal(path, body)


def test_F15_reading_what_is_not_there_says_so(path: Path) -> None:
    """`status` before the first run: Fatal with one line, and nothing is created."""
    with pytest.raises(Fatal, match="there is no journal"):
        Journal.open_readonly(path)
    assert not path.parent.exists()


def test_F15_a_newer_journal_is_refused_and_left_alone(path: Path) -> None:
    """A schema from the future: Fatal, by the daemon and by readers; not a byte changes."""
    append(path, opened())
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    for refused in (Journal.open, Journal.open_readonly):
        with pytest.raises(Fatal, match="newer zemosaicd"):
            refused(path)
    assert path.read_bytes() == before


def test_F15_somebody_elses_database_is_refused(path: Path) -> None:
    """A file of another program under our name is not turned into a journal; nor is a file that is no database."""
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos(name)")
    connection.close()
    with pytest.raises(Fatal, match="other program"):
        Journal.open(path)
    path.write_bytes(b"SIMPLE  =                    T" * 100)
    with pytest.raises(Fatal, match="damaged") as refusal:
        Journal.open(path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes().startswith(b"SIMPLE")


def test_F15_a_journal_that_cannot_be_written_is_refused(path: Path) -> None:
    """Something that is no file stands where the journal belongs: one clear line."""
    path.mkdir(parents=True)
    with pytest.raises(Fatal, match="cannot be used"):
        Journal.open(path)


@settings(max_examples=150)
@given(place=st.integers(0, 2**31), bit=st.integers(0, 7))
def test_F15_a_flipped_bit_never_becomes_a_fact(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    """Any bit of the database flipped: either the journal is refused, or its events are what was written."""
    whole = tmp_path_factory.getbasetemp() / "whole.sqlite"
    events = [opened(), *(assigned(f"/in/{i}.fits") for i in range(40)), cleaned()]
    if not whole.exists():
        append(whole, *events)
    data = bytearray(whole.read_bytes())
    data[place % len(data)] ^= 1 << bit
    damaged = tmp_path_factory.getbasetemp() / "damaged.sqlite"
    damaged.write_bytes(data)
    try:
        journal = Journal.open(damaged)
    except Fatal as refusal:
        assert "\n" not in str(refusal)  # noqa: PT017
    else:
        try:
            assert journal.events_of("n") == events
        except Fatal:
            pass
        finally:
            journal.close()


def test_F15_a_torn_write_ahead_log_is_a_prefix(tmp_path: Path, path: Path) -> None:
    """Power cut in the middle of a commit: what was written before is there, in order, and nothing is refused."""
    journal = Journal.open(path)
    asyncio.run(_append_each(journal, [opened(), assigned(), cleaned()]))
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    log = path.with_name(path.name + "-wal").read_bytes()
    journal.close()
    for cut in range(0, len(log), 1500):
        copy.with_name(copy.name + "-wal").write_bytes(log[:cut])
        torn = tmp_path / f"torn{cut}.sqlite"
        torn.write_bytes(copy.read_bytes())
        torn.with_name(torn.name + "-wal").write_bytes(log[:cut])
        found = Journal.open(torn)
        events = found.events_of("n")
        found.close()
        assert events == [opened(), assigned(), cleaned()][: len(events)]


async def _append_each(journal: Journal, events: list[ev.Event]) -> None:
    for event in events:
        await journal.append(event)


def test_F8_a_full_disk_is_an_error_to_wait_on_and_to_try_again(path: Path) -> None:
    """No room: JournalFull, nothing of that append is kept; with room again the same append goes through."""

    async def body(journal: Journal) -> None:
        await journal.append(opened())
        big = [assigned(f"/in/{i}.fits") for i in range(3000)]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
        try:
            with pytest.raises(JournalFull) as full:
                await journal.append(*big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert isinstance(full.value, OSError)
        assert journal.events_of("n") == [opened()]
        await journal.append(*big)
        assert journal.events_of("n") == [opened(), *big]

    with_journal(path, body)


def test_F36_the_journal_is_private(path: Path) -> None:
    """Folder 0700, files 0600, whatever the umask."""

    async def body(journal: Journal) -> None:
        await journal.append(opened())
        assert path.parent.stat().st_mode & 0o777 == 0o700
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert set(modes.values()) == {0o600}
        assert set(modes) >= {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite.lock"}

    old = os.umask(0o022)
    try:
        with_journal(path, body)
    finally:
        os.umask(old)


def test_a_cancelled_append_is_still_written(path: Path) -> None:
    """Whoever stops waiting does not take the event back; closing waits for it."""

    async def body(journal: Journal) -> None:
        task = asyncio.create_task(journal.append(opened()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    with_journal(path, body)
    reader = Journal.open_readonly(path)
    assert reader.events_of("n") == [opened()]
    reader.close()


def test_nothing_is_appended_after_the_end(path: Path) -> None:
    """A closed journal refuses loudly, and may be closed again."""

    async def body(journal: Journal) -> None:
        await journal.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await journal.append(opened())

    with_journal(path, body)
