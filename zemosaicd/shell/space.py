"""Free space and absent folders: work waits with the figure, and goes on by itself (F8, F22)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from zemosaicd.settings import Service
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger

T = TypeVar("T")

WAIT_FOR = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN}
)
"""Errors of a disk that is full, gone or read-only for now: waited out, never a failure of the session."""

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


class DiskGate:
    """Lets work through when its disk can take it. `paused` says, session by session, why it does not."""

    def __init__(self, log: Logger, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.paused: dict[str, str] = {}
        self._log = log
        self._first_wait_s = first_wait_s

    async def room(self, session: str, layout: Layout, needed_bytes: int, service: Service) -> None:
        """Returns when both folders have the estimate times its factor free, beyond the floor."""
        wanted = needed_bytes * service.min_free_factor + service.min_free_gb * 1e9
        await self._until(session, lambda: _shortage((layout.state, layout.output), wanted))

    async def retrying(self, session: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, which is made again, more and more slowly, while its disk is full or gone."""
        wait_s = self._first_wait_s
        while True:
            try:
                result = await attempt()
            except OSError as error:
                if error.errno not in WAIT_FOR:
                    raise
                self._pause(session, f"{os.strerror(error.errno)}: {error.filename or ''}")
            else:
                self._resume(session)
                return result
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _until(self, session: str, shortage: Callable[[], str]) -> None:
        wait_s = self._first_wait_s
        while why := await asyncio.to_thread(shortage):
            self._pause(session, why)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        self._resume(session)

    def _pause(self, session: str, why: str) -> None:
        if session not in self.paused:
            self._log.warning("disk_low_paused", session=session, reason=why)
        self.paused[session] = why

    def _resume(self, session: str) -> None:
        if self.paused.pop(session, None) is not None:
            self._log.info("disk_resumed", session=session)


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write in `folder`, or in the nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def _shortage(folders: tuple[Path, ...], wanted_bytes: float) -> str:
    """ "" if every folder has room, else the sentence with both figures."""
    for folder in folders:
        free = free_bytes(folder)
        if free < wanted_bytes:
            return f"{folder}: {free / 1e9:.2f} GB free, {wanted_bytes / 1e9:.2f} GB needed"
    return ""
