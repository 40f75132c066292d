"""Free space and absent folders: work waits with the figure, and goes on by itself (F8, F22)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from zemosaicd.core.lifecycle import SessionState
from zemosaicd.core.plan import spec_bytes, tile_bytes
from zemosaicd.core.supertiles import super_spec
from zemosaicd.model import FrameFacts, MosaicSpec, Plan
from zemosaicd.settings import Service
from zemosaicd.shell.log import Logger

T = TypeVar("T")

WAIT_FOR = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN}
)
"""Errors of a disk that is full, gone or read-only for now: waited out, never a failure of the session."""

AWAY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ETIMEDOUT})
"""Errors that mean the same when they are about the output folder: an unmounted share, a right not given yet (F22)."""

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


class DiskGate:
    """Lets work through when its disk can take it. `paused` says, session by session, why it does not.

    `folders`: the state and the output folder.
    """

    def __init__(self, log: Logger, folders: tuple[Path, Path], first_wait_s: float = FIRST_WAIT_S) -> None:
        self.paused: dict[str, str] = {}
        self._log = log
        self._folders = folders
        self._first_wait_s = first_wait_s

    async def room(self, session: str, needed_bytes: int, service: Service) -> None:
        """Returns when both folders have the estimate times its factor free, beyond the floor."""
        wanted = needed_bytes * service.min_free_factor + service.min_free_gb * 1e9
        await self._until(session, lambda: _shortage(self._folders, wanted))

    async def retrying(self, session: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, which is made again, more and more slowly, while its disk is full or gone."""
        wait_s = self._first_wait_s
        while True:
            try:
                result = await attempt()
            except OSError as error:
                if error.errno not in WAIT_FOR and not self._away(error):
                    raise
                self._pause(session, await asyncio.to_thread(self._why, error))
            else:
                self._resume(session)
                return result
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _away(self, error: OSError) -> bool:
        """Whether it is about something in the output folder, and will pass when that is there again."""
        if error.errno not in AWAY or not isinstance(error.filename, str | bytes | os.PathLike):
            return False
        return Path(os.fsdecode(error.filename)).is_relative_to(self._folders[1])

    def _why(self, error: OSError) -> str:
        free = ", ".join(f"{_size(free_bytes(folder))} free in {folder}" for folder in self._folders)
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''} ({free})"

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


def frame_bytes(facts: FrameFacts) -> int:
    """What a prepared frame takes: float32 a photosite."""
    return facts.width * facts.height * facts.planes * 4


def still_needed_bytes(state: SessionState) -> int:
    """What Phases 3 to 6 have yet to write: the plan's estimate without the tiles that lie there."""
    if state.plan is None:
        return 0
    specs = {t.tile: t for t in state.plan.tiles}
    made = sum(spec_bytes(specs[t]) for t in state.done if t in specs)
    supers = [super_spec(n, [specs[t] for t in m.members], _mosaic_of(state.plan, n)) for n, m in state.merged.items()]
    return max(0, state.plan.disk_bytes - made - sum(tile_bytes(t.grid, t.channels) for t in supers))


def _mosaic_of(plan: Plan, number: int) -> MosaicSpec:
    """The mosaic that a super tile is for."""
    return next(m for m in plan.mosaics if plan.supers[number][0] in m.tiles)


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write in `folder`, or the nearest parent that is there; 0 if it is away."""
    try:
        while not folder.exists():
            folder = folder.parent
        stat = os.statvfs(folder)
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize


def _size(amount_bytes: float) -> str:
    return f"{amount_bytes / 1e9:.2f} GB" if amount_bytes >= 1e9 else f"{amount_bytes / 1e6:.1f} MB"


def _shortage(folders: tuple[Path, ...], wanted_bytes: float) -> str:
    """ "" if every folder has room, else the sentence with both figures."""
    for folder in folders:
        free = free_bytes(folder)
        if free < wanted_bytes:
            return f"{folder}: {_size(free)} free, {_size(wanted_bytes)} needed"
    return ""
