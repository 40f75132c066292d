"""What the daemon says of itself: phase, progress, and what each session waits for and until when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from zemosaicd import __version__
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.sessions import Closing
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.supervisor import DaemonStatus, RootStatus, SessionStatus, WaitingFile
from zemosaicd.shell.watch import Clock, Watcher


def session_status(
    state: SessionState, closing: Closing | None, paused: str, now_monotonic_s: float, now_s: float
) -> SessionStatus:
    """One session: how far it is, and what holds it."""
    frames = state.closed_set or frozenset(state.frames)
    done, total = len(frames) - sum(p in frames for p in state.unprepared), len(frames)
    if state.plan is not None:
        done, total = len(state.done) + len(state.failed), len(state.plan.tiles)
    waits_for, until_s = "", None
    if paused:
        waits_for = f"disk: {paused}"
    elif closing is not None:
        waits_for, until_s = closing.waits_for.value, now_s + closing.due_s - now_monotonic_s
    elif state.preparing:
        waits_for = "frames"
    return SessionStatus(
        id=state.session,
        phase=state.phase,
        done=done,
        total=total,
        frames=len(state.frames),
        rejected=sum(r.rejected is not None for r in state.frames.values()),
        revision=state.revision,
        waits_for=waits_for,
        until_s=None if until_s is None else float(round(until_s)),
    )


def make_status(
    name: str,
    started_s: float,
    engine: Engine,
    watcher: Watcher,
    clock: Clock,
    paused: dict[str, str],
    closing_of: Callable[[SessionState], Closing | None],
) -> DaemonStatus:
    """The whole daemon, for `zemosaicd status` and systemd's status line."""
    now_s, monotonic_s = clock.wall(), clock.monotonic()
    sessions = tuple(
        session_status(s, closing_of(s), paused.get(s.session, ""), monotonic_s, now_s)
        for s in engine.states.values()
        if not s.resting
    )
    waiting = watcher.waiting()
    held = tuple(
        WaitingFile(path=w.path, quiet_s=round(w.quiet_s, 1), reason=w.reason.message or w.reason.rule)
        for w in waiting
        if w.reason is not None
    )
    return DaemonStatus(
        version=__version__,
        pid=os.getpid(),
        state=name,
        line=_line(name, sessions, len(waiting) - len(held)),
        started_at_s=started_s,
        written_at_s=float(round(time.time())),
        roots=tuple(RootStatus(path=r.path, away=r.away, polling=r.polling) for r in watcher.root_states()),
        sessions=sessions,
        settling=len(waiting) - len(held),
        held=held,
    )


def _line(name: str, sessions: tuple[SessionStatus, ...], settling: int) -> str:
    if name != "running":
        return name
    if not sessions:
        return f"watching; {settling} files settling" if settling else "watching"
    parts = [f"{s.id}: phase {s.phase or '-'} {s.done}/{s.total}" for s in sessions[:3]]
    return "; ".join(parts) + (f" and {len(sessions) - 3} more" if len(sessions) > 3 else "")
