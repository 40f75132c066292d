"""The daemon and its keeper: readiness, heartbeat, status (systemd's sd_notify protocol; SPEC C6, F14).

The heartbeat is a task of the loop and asks a probe before each beat: a blocked loop, a dead side task or a stuck
journal silence it, and systemd restarts the daemon. Without NOTIFY_SOCKET everything here is silently absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import aiofiles.os

from zemosaicd import codec
from zemosaicd.shell.log import Logger

SEND_TIMEOUT_S = 0.5
BEATS_PER_INTERVAL = 4  # systemd asks for two; four leave room for a late one (F38: no gap above a quarter)
REFRESH_S = 30.0
START_STEP_S, LONGEST_START_S = 30.0, 1800.0
"""While workers come up the keeper is asked for more time so often, and no longer than this: a first start ever
compiles kernels, for half a minute on a quick processor, for minutes on a slow one that is busy."""


class Notifier:
    """Speaks sd_notify(3). Every method returns whether the message left; False when there is no keeper."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """`address`: path, or abstract name after "@"; "" for nobody. `watchdog_s` 0: no heartbeat is expected."""
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(SEND_TIMEOUT_S)  # a keeper that hangs must not hang us

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int | None = None) -> Notifier:
        """By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as sd_watchdog_enabled(3) reads them."""
        usec = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in ("", str(pid if pid is not None else os.getpid()))
        watchdog_s = int(usec) / 1e6 if usec.isdecimal() and ours else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_s)

    def send(self, *lines: str) -> bool:
        """One datagram of `NAME=value` lines."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)
        except OSError:
            return False  # the keeper is gone or deaf; its watchdog will tell
        return True

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is complete."""
        return self.send("READY=1", *([f"STATUS={_one_line(status)}"] if status else []))

    def status(self, text: str) -> bool:
        """The line that `systemctl status` shows."""
        return self.send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> bool:
        """One beat."""
        return self.send("WATCHDOG=1")

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> bool:
        """Shutdown has begun (F12: within a second of SIGTERM)."""
        return self.send("STOPPING=1", *([f"STATUS={_one_line(status)}"] if status else []))

    def extend_timeout(self, seconds: float) -> bool:
        """Start-up, reload or shutdown needs so much longer from now."""
        return self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _one_line(text: str) -> str:
    """A header's newline must not become a second message to systemd (F19)."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


async def patiently(notifier: Notifier, work: Awaitable[None], step_s: float = START_STEP_S) -> None:
    """Waits for a part of the start, and has the keeper wait too, up to LONGEST_START_S. Raises what `work` does."""
    task = asyncio.ensure_future(work)
    asked_s = 0.0
    try:
        while not (await asyncio.wait([task], timeout=step_s))[0]:
            if asked_s < LONGEST_START_S:
                notifier.extend_timeout(3 * step_s)
                notifier.status("starting: the first time kernels are compiled, which takes minutes on a slow machine")
            asked_s += step_s
    finally:
        task.cancel()
    await task


async def beat(notifier: Notifier, probe: Callable[[], str], log: Logger) -> None:
    """Beat four times a watchdog interval while `probe` returns "" (all is well); for ever.

    What `probe` returns otherwise is why the daemon does not live: it is logged once, and no beat is sent until the
    probe is content again, so that systemd restarts what does not recover (F14).
    """
    ailing = ""
    while True:
        trouble = probe()
        if not trouble:
            notifier.watchdog()
        elif trouble != ailing:
            log.error("heartbeat_withheld", reason=trouble)
        ailing = trouble
        await asyncio.sleep((notifier.watchdog_s or 60.0) / BEATS_PER_INTERVAL)


async def side_task(name: str, work: Awaitable[object], log: Logger) -> None:
    """Run a task that must last as long as the daemon: its end, by error or by returning, ends the daemon (F14).

    Errors: the task's own, or RuntimeError if it returned. Not Fatal, whose exit status systemd does not restart.
    """
    try:
        await work
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        log.error("side_task_died", task=name, error=f"{type(error).__name__}: {error}")
        raise
    log.error("side_task_died", task=name, error="it returned")
    raise RuntimeError(f"the task {name} ended, which it never should")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """One open session. `waits_for` (quiet, time, frames, disk, ...) and `until_s` (Unix time) say what holds it."""

    id: str
    phase: str = ""
    done: int = 0
    total: int = 0
    frames: int = 0
    rejected: int = 0
    revision: int = 0
    waits_for: str = ""
    until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RootStatus:
    """One watched folder: `away` and `polling` say why it cannot be read, or is only scanned; "" when all is well."""

    path: str
    away: str = ""
    polling: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingFile:
    """A file that was seen and not taken yet: settling (`reason` "") or held, because `reason`."""

    path: str
    quiet_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """What `zemosaicd status` shows. Times are Unix seconds; `line` is the sentence for systemd and people."""

    version: str
    pid: int
    state: str
    line: str = ""
    started_at_s: float = 0.0
    written_at_s: float = 0.0
    roots: tuple[RootStatus, ...] = ()
    sessions: tuple[SessionStatus, ...] = ()
    settling: int = 0
    held: tuple[WaitingFile, ...] = ()


async def write_status(path: Path, status: DaemonStatus) -> None:
    """Put the status beside readers' feet: a temporary name, then a rename, so that no reader sees half of it.

    Not fsynced: it is worth nothing after a power cut. Errors: OSError (the temporary file is removed).
    """
    await aiofiles.os.wrap(_replace)(path, codec.dumps(status) + "\n")


def _replace(path: Path, text: str) -> None:
    """All of it in one thread: who is cancelled while it waits leaves no open file behind."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_status(path: Path) -> DaemonStatus | None:
    """The last status written; None when there is none, or it is not one."""
    try:
        return codec.loads(DaemonStatus, path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


async def keep_status(
    path: Path,
    make: Callable[[], DaemonStatus],
    notifier: Notifier,
    log: Logger,
    *,
    every_s: float = 2.0,
) -> None:
    """Write what `make` says to `path` and to systemd, when it has changed, and every 30 s as a sign of life.

    A full or broken disk costs the file, not the daemon: it is said once and tried again (F8).
    """
    last: DaemonStatus | None = None
    written_s, failing = float("-inf"), False
    while True:
        status, now_s = make(), time.monotonic()
        changed = last is None or replace(status, written_at_s=last.written_at_s) != last
        if changed or now_s - written_s >= REFRESH_S:
            if last is None or status.line != last.line:
                notifier.status(status.line)
            try:
                await write_status(path, status)
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("status_not_written", path=str(path), error=error.strerror or str(error))
                failing = True
            last, written_s = status, now_s
        await asyncio.sleep(every_s)
