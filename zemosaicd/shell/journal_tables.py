"""The journal's tables, and how one more event enters them."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from typing import Any

from zemosaicd.codec import plain
from zemosaicd.core import events as ev

SCHEMA_VERSION = 1
APPLICATION_ID = 0x7A656D6F  # "zemo"
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE events(seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, session TEXT NOT NULL,
                    kind TEXT NOT NULL, data TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX events_of_session ON events(session, seq);
CREATE TABLE files(path BLOB PRIMARY KEY, device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
                   mtime_ns INTEGER NOT NULL, session TEXT NOT NULL, outcome TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX files_of_session ON files(session, outcome);
CREATE TABLE sessions(id TEXT PRIMARY KEY, state TEXT NOT NULL, summary TEXT NOT NULL,
                      opened_at REAL NOT NULL, updated_at REAL NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_OPENS = (ev.SessionOpened, ev.FrameAssigned, ev.SessionClosed)


def index(writes: sqlite3.Connection, at: float, event: ev.Event) -> None:
    """Keep the two index tables in step with one more event."""
    if isinstance(event, ev.FrameAssigned | ev.FrameRejected):
        outcome = "assigned" if isinstance(event, ev.FrameAssigned) else "rejected"
        state = event.fingerprint
        writes.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                os.fsencode(event.path),
                _signed(state.device),
                _signed(state.inode),
                state.size,
                state.mtime_ns,
                event.session,
                outcome,
            ),
        )
    if isinstance(event, ev.FrameRemoved):  # should it come back, it is new
        writes.execute("DELETE FROM files WHERE path = ?", (os.fsencode(event.path),))
    if not event.session:
        return
    row = writes.execute("SELECT state, summary FROM sessions WHERE id = ?", (event.session,)).fetchone()
    state_now, summary = row or ("open", "{}")
    if isinstance(event, _OPENS):
        state_now = "open"
    elif isinstance(event, ev.SessionCleaned) or (isinstance(event, ev.SessionEnded) and event.outcome == "failed"):
        # One that ended otherwise still has its Phase 7 before it; one with late frames has its next revision.
        state_now = "open" if _has_late_frames(writes, event.session) else "closed"
    writes.execute(
        "INSERT INTO sessions VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT(id) DO UPDATE SET state = excluded.state, summary = excluded.summary, "
        "updated_at = excluded.updated_at",
        (event.session, state_now, _summed(summary, event), at, at),
    )


def _has_late_frames(writes: sqlite3.Connection, session: str) -> bool:
    """Whether frames came after the last closing: what the fold calls the next revision (core.lifecycle)."""
    found = writes.execute(
        "SELECT 1 FROM events WHERE session = ? AND kind = 'FrameAssigned' AND seq > "
        "(SELECT max(seq) FROM events WHERE session = ? AND kind = 'SessionClosed') LIMIT 1",
        (session, session),
    )
    return found.fetchone() is not None


def _summed(summary: str, event: ev.Event) -> str:
    """The session's summary after one more event: last known figures, for people; state is the fold's business."""
    news: dict[str, Any] = {}
    match event:
        case ev.SessionOpened():
            news = {"night": event.night, "target": event.target, "telescope": event.telescope}
        case ev.SessionClosed():
            news = {"revision": event.revision, "cause": event.cause, "outcome": "", "mosaics": {}}
        case ev.SessionPlanned():
            news = {"tiles_total": len(event.plan.tiles), "tiles_done": 0, "tiles_failed": 0}
        case ev.TileDone() | ev.TileFailed():
            counter = "tiles_done" if isinstance(event, ev.TileDone) else "tiles_failed"
            news = {counter: json.loads(summary).get(counter, 0) + 1}
        case ev.MosaicPublished():
            made = {"path": event.path, "verdict": event.verdict}
            news = {"mosaics": json.loads(summary).get("mosaics", {}) | {event.mosaic: made}}
        case ev.SessionCleaned():
            news = {"outcome": event.outcome}
        case ev.SessionEnded():
            news = {"outcome": event.outcome, "reason": plain(event.reason)}
    return json.dumps(json.loads(summary) | news) if news else summary


def crc(kind: str, data: str) -> int:
    """SQLite has no checksum of its own in the database file; a flipped bit must not become a fact (F15)."""
    return zlib.crc32(f"{kind}:{data}".encode())


def _signed(number: int) -> int:
    """SQLite's integers are signed; device and inode numbers of network shares use all 64 bits."""
    return number - 2**64 if number >= 2**63 else number


def unsigned(number: int) -> int:
    """The inverse of how 64-bit numbers are kept."""
    return number + 2**64 if number < 0 else number
