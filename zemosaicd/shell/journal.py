"""The journal: an append-only SQLite table of events, which all state is folded from (DESIGN, "State").

WAL with `synchronous=FULL`: an awaited append survives a power cut. One writer thread commits what one tick of the
loop appended, and whatever came while it was busy, as one transaction. Two index tables ride in the same
transactions: `files` (which states of which files were judged, so that they are not looked at again) and `sessions`
(which are open, and a summary, so that a year of history costs nothing at start-up). Paths are BLOBs (M3).
Nothing is ever deleted here; what cannot be read is refused with one clear line (F15).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zemosaicd.codec import dumps, loads
from zemosaicd.core import events as ev
from zemosaicd.model import Fatal, Fingerprint, Reason
from zemosaicd.shell.journal_tables import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, crc, index, unsigned

_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY_S = 30.0
_CHUNK = 500


class JournalFull(OSError):
    """The disk is full: nothing of this append was kept; wait for space and append again (F8, F23)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """What the journal says of a session without folding it. `summary`: the last known figures of its revision."""

    session: str
    open: bool
    opened_at: float
    updated_at: float
    frames: int
    rejected: int
    summary: dict[str, Any] = field(default_factory=dict)


class JournalReader:
    """The reading half; every method may be called from any thread. Raises Fatal when the journal cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        with _explained(path):
            self._reads = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=_BUSY_S
            )
            try:
                _check_version(self._reads, path)
            except BaseException:
                self._reads.close()
                raise

    def events_of(self, session: str) -> list[ev.Event]:
        """All events of a session, oldest first."""
        rows = self._rows("SELECT kind, data, crc FROM events WHERE session = ? ORDER BY seq", (session,))
        return [self._event(*row) for row in rows]

    def open_sessions(self) -> list[str]:
        """The sessions that start-up must fold, oldest first."""
        return [row[0] for row in self._rows("SELECT id FROM sessions WHERE state = 'open' ORDER BY opened_at, id")]

    def opened(self) -> list[ev.SessionOpened]:
        """How every session that ever was began, oldest first: what a new frame may belong to."""
        rows = self._rows("SELECT kind, data, crc FROM events WHERE kind = 'SessionOpened' ORDER BY seq")
        return [event for row in rows if isinstance(event := self._event(*row), ev.SessionOpened)]

    def all_sessions(self) -> list[SessionRow]:
        """Every session that ever was, oldest first."""
        counts = {
            (session, outcome): count
            for session, outcome, count in self._rows(
                "SELECT session, outcome, count(*) FROM files GROUP BY session, outcome"
            )
        }
        rows = self._rows("SELECT id, state, summary, opened_at, updated_at FROM sessions ORDER BY opened_at, id")
        with _explained(self._path):
            summaries = [json.loads(row[2]) for row in rows]
        return [
            SessionRow(
                session=session,
                open=state == "open",
                opened_at=opened_at,
                updated_at=updated_at,
                frames=counts.get((session, "assigned"), 0),
                rejected=counts.get((session, "rejected"), 0),
                summary=summary,
            )
            for (session, state, _, opened_at, updated_at), summary in zip(rows, summaries, strict=True)
        ]

    def known(self, paths: Iterable[str], session: str | None = None) -> dict[str, Fingerprint]:
        """For each of these paths that was judged before (for this session): the state of the file that was judged."""
        names = [os.fsencode(path) for path in paths]
        found: dict[str, Fingerprint] = {}
        for start in range(0, len(names), _CHUNK):
            part = names[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            query = f"SELECT path, device, inode, size, mtime_ns FROM files WHERE path IN ({marks})"
            rows = (
                self._rows(query, part) if session is None else self._rows(f"{query} AND session = ?", [*part, session])
            )
            for path, device, inode, size, mtime_ns in rows:
                found[os.fsdecode(path)] = Fingerprint(
                    device=unsigned(device), inode=unsigned(inode), size=size, mtime_ns=mtime_ns
                )
        return found

    def sessions_below(self, folder: str) -> set[str]:
        """The sessions that have taken a file in this folder or below it."""
        first, last = os.fsencode(folder.rstrip("/") + "/"), os.fsencode(folder.rstrip("/") + "0")  # "0" follows "/"
        rows = self._rows("SELECT DISTINCT session FROM files WHERE path >= ? AND path < ?", (first, last))
        return {row[0] for row in rows} - {""}

    def refused_since(self, at: float) -> list[ev.FrameRejected]:
        """Files that were refused before they had a session, since `at` (Unix seconds), oldest first."""
        rows = self._rows(
            "SELECT kind, data, crc FROM events WHERE session = '' AND kind = 'FrameRejected' AND at >= ? ORDER BY seq",
            (at,),
        )
        return [event for row in rows if isinstance(event := self._event(*row), ev.FrameRejected)]

    def close(self) -> None:
        """Close the reading connection."""
        with self._guard:
            self._reads.close()

    def _rows(self, query: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._guard, _explained(self._path):
            return self._reads.execute(query, arguments).fetchall()

    def _event(self, kind: str, data: str, check: int) -> ev.Event:
        if kind not in ev.EVENTS or check != crc(kind, data):
            raise _corrupt(self._path, f"an event of kind {kind!r} is damaged")
        return loads(ev.EVENTS[kind], data)


class Journal(JournalReader):
    """The whole journal, held by one daemon at a time (a second one gets Fatal, naming the first's process id).

    `commits` counts transactions: many appends share one.
    Raises Fatal when the file is damaged, from a newer version, or not usable; JournalFull when the disk is full.
    """

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Journal:
        """Take the lock, check the file, create it if it is not there. Blocks: call it before the loop runs."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(path.with_name(path.name + ".lock"))
        try:
            return cls(path, lock, clock)
        except BaseException:
            os.close(lock)
            raise

    @staticmethod
    def open_readonly(path: Path) -> JournalReader:
        """For `status`, `sessions` and `why`: beside a running daemon, without the lock."""
        if not path.exists():
            raise Fatal(Reason(rule="journal_missing", value=str(path), message=f"there is no journal at {path} yet"))
        return JournalReader(path)

    def __init__(self, path: Path, lock: int, clock: Callable[[], float]) -> None:
        self._writes = _prepared(path)
        try:
            super().__init__(path)
        except BaseException:
            self._writes.close()
            raise
        self._lock = lock
        self._clock = clock
        self._waiting: list[_Append] = []
        self._inbox: queue.SimpleQueue[list[_Append] | None] = queue.SimpleQueue()
        self._closed = False
        self.commits = 0
        self._writer = threading.Thread(target=self._write_until_closed, name="journal")
        self._writer.start()

    async def append(self, *events: ev.Event) -> None:
        """Write these events, in this order, all or none; returns when they are safe on disk.

        A caller that is cancelled while it waits does not take the events back. Raises JournalFull: nothing was kept.
        """
        if self._closed:
            raise RuntimeError("the journal is closed")
        loop = asyncio.get_running_loop()
        rows = [(event, type(event).__name__, dumps(event)) for event in events]
        entry = _Append(rows=rows, at=self._clock(), loop=loop, done=loop.create_future())
        self._waiting.append(entry)
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)  # what else this tick appends joins the same transaction
        await entry.done

    async def aclose(self) -> None:
        """Write what is waiting, and let go of the file and the lock."""
        self._flush()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As `aclose`, for callers without a loop."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(None)
        self._writer.join()
        super().close()
        self._writes.close()
        os.close(self._lock)

    def _flush(self) -> None:
        if self._waiting:
            self._inbox.put(self._waiting)
            self._waiting = []

    def _write_until_closed(self) -> None:
        while (group := self._inbox.get()) is not None:
            closing = False
            with suppress(queue.Empty):
                while not closing:
                    more = self._inbox.get_nowait()
                    closing = more is None
                    group = group + (more or [])
            failure = self._commit(group)
            for loop in {entry.loop for entry in group}:
                with suppress(RuntimeError):  # that loop is gone, and with it whoever waited
                    loop.call_soon_threadsafe(_answer, [e.done for e in group if e.loop is loop], failure)
            if closing:
                return

    def _commit(self, group: list[_Append]) -> Exception | None:
        try:
            self._writes.execute("BEGIN IMMEDIATE")
            for entry in group:
                for event, kind, data in entry.rows:
                    self._writes.execute(
                        "INSERT INTO events(at, session, kind, data, crc) VALUES (?, ?, ?, ?, ?)",
                        (entry.at, event.session, kind, data, crc(kind, data)),
                    )
                    index(self._writes, entry.at, event)
            self._writes.execute("COMMIT")
            self.commits += 1
        except (sqlite3.Error, ValueError, ArithmeticError, TypeError) as error:
            # F25: after a failed fsync nothing is tried again here; the transaction is undone and the caller told.
            with suppress(sqlite3.Error):
                self._writes.execute("ROLLBACK")
            return _translated(error, self._path) if isinstance(error, sqlite3.Error) else error
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Append:
    rows: list[tuple[ev.Event, str, str]]
    at: float
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


def _answer(waiting: list[asyncio.Future[None]], failure: Exception | None) -> None:
    for future in waiting:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)


def _prepared(path: Path) -> sqlite3.Connection:
    """The writing connection, checked, with its tables."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # sqlite would make it readable to all
    with _explained(path):
        writes = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        try:
            if writes.execute("PRAGMA schema_version").fetchone()[0] != 0:
                _check_version(writes, path)
            verdict = writes.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                raise _corrupt(path, verdict)
            writes.execute("PRAGMA journal_mode = WAL")
            writes.execute("PRAGMA synchronous = FULL")
            if writes.execute("PRAGMA schema_version").fetchone()[0] == 0:
                writes.executescript(SCHEMA)
        except BaseException:
            writes.close()
            raise
    return writes


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise _corrupt(path, "it is some other program's database")
    if version > SCHEMA_VERSION:
        message = (
            f"the journal {path} was written by a newer zemosaicd (schema {version}, this one knows {SCHEMA_VERSION})"
        )
        raise Fatal(Reason(rule="journal_newer", value=version, threshold=SCHEMA_VERSION, message=message))


def _locked(path: Path) -> int:
    """The descriptor that holds the single-instance lock; it goes when the process does, however it ends."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        if error.errno != errno.EWOULDBLOCK:
            raise _unusable(path, str(error)) from error
        message = f"another zemosaicd (pid {holder}) is using the state folder {path.parent}"
        raise Fatal(Reason(rule="journal_locked", value=holder, message=message)) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    except ValueError as error:  # a text that sqlite itself does not look into
        raise _corrupt(path, str(error)) from error


def _translated(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _FULL:
        return JournalFull(errno.ENOSPC, f"no space to write the journal ({error})", str(path))
    if code & 0xFF in _CORRUPT:
        return _corrupt(path, str(error))
    return _unusable(path, str(error))


def _corrupt(path: Path, detail: str) -> Fatal:
    line = " ".join(detail.split())
    message = f"the journal {path} is damaged ({line}); nothing was changed: restore it from a copy or move it away"
    return Fatal(Reason(rule="journal_corrupt", value=line, message=message))


def _unusable(path: Path, detail: str) -> Fatal:
    return Fatal(Reason(rule="journal_unusable", value=detail, message=f"the journal {path} cannot be used ({detail})"))
