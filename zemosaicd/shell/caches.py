"""The async-locked refcount table (C4): the one place that deletes caches while a session runs (SPEC section 3).

For each file it keeps the *set* of tiles that still need it; the reference count is the size of that set, so a second
release of the same tile changes nothing and no count can fall below zero. Callers keep the order *journal the tile's
end -> release -> unlink*, which is what makes the table rebuildable after `kill -9` (R9).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from zemosaicd.core.refs import keys, shared
from zemosaicd.shell.log import Logger

PER_TILE = "per_tile"


class CacheTable:
    """Which tiles still need which cache file; unlinks a file when its last tile has ended, never before.

    `users`: for every planned tile the paths of its caches, given whole before the first tile is dispatched (R3).
    `root`: the session's cache folder; a path outside it is refused with ValueError, so that a plan which names a
    user's frame can never get it deleted (P9). `finished`: tiles whose end the journal knows already (R9).
    With a `retention` other than per_tile nothing is counted, logged or removed (R1). `strict` turns a release that
    would take a count below zero into an AssertionError (R5).
    """

    def __init__(
        self,
        users: Mapping[int, Iterable[str]],
        *,
        root: str,
        retention: str,
        log: Logger,
        finished: Set[int] = frozenset(),
        strict: bool = False,
    ) -> None:
        self._counting = retention == PER_TILE
        self._root = next(iter(keys([root])))
        self._log = log
        self._strict = strict
        self._underflow_told = False
        self._told = False
        self._lock = asyncio.Lock()
        self._finished = finished
        self._users = {tile: self._own(paths) for tile, paths in users.items()} if self._counting else {}
        self._waiting: dict[str, set[int]] = {}
        self._gone: set[str] = set()
        for tile, paths in self._users.items():
            for path in paths:
                self._waiting.setdefault(path, set()).add(tile)

    @property
    def tracked(self) -> int:
        """How many distinct files the table knows: always `removed + remaining`."""
        return len(self._waiting)

    @property
    def removed(self) -> int:
        """How many of them are gone from disk."""
        return len(self._gone)

    @property
    def remaining(self) -> int:
        """How many of them are still there."""
        return self.tracked - self.removed

    def count(self, path: str) -> int:
        """How many tiles that have not ended need this path."""
        (name,) = keys([path])
        return len(self._waiting.get(name, ()))

    async def start(self) -> None:
        """Say what is tracked (R6), and apply the releases of the tiles that ended before a restart (R9)."""
        if not self._counting:
            return
        self._log.info("phase3_refcount_enabled", tracked=self.tracked)
        if common := shared(self._users):
            self._log.info("phase3_shared_cache", shared=len(common), tracked=self.tracked)
        async with self._lock:
            freed: list[str] = []
            for tile in sorted(self._finished & self._users.keys()):
                freed += self._spend(tile)
            await self._unlink(freed)

    async def register(self, tile: int, paths: Iterable[str]) -> frozenset[str]:
        """Count a tile made later, before the tile that it came from is released (R3).

        Returns those of its files that are already gone: they must be prepared again before the tile runs (P10), and
        are counted again from now on.
        """
        if not self._counting:
            return frozenset()
        own = self._own(paths)
        async with self._lock:
            self._users[tile] = own
            for path in own:
                self._waiting.setdefault(path, set()).add(tile)
            missing = own & self._gone
            self._gone -= missing
            return missing

    async def release(self, tile: int) -> None:
        """This tile has ended for good, well or badly: files that no other tile waits for go now (R4).

        Releasing a tile twice does nothing. A caller that is cancelled does not interrupt the work half-way.
        """
        if self._counting:
            await asyncio.shield(self._release(tile))

    async def finish(self) -> None:
        """Say how it ended, once (R6)."""
        if self._counting and not self._told:
            self._told = True
            self._log.info("phase3_refcount_complete", removed=self.removed, remaining=self.remaining)

    async def _release(self, tile: int) -> None:
        async with self._lock:
            if tile not in self._users:
                self._below_zero(tile)
                return
            await self._unlink(self._spend(tile))

    def _spend(self, tile: int) -> list[str]:
        freed = []
        for path in self._users[tile]:
            waiting = self._waiting[path]
            if tile in waiting:
                waiting.remove(tile)
                if not waiting:
                    freed.append(path)
        return freed

    async def _unlink(self, paths: list[str]) -> None:
        """Under the lock, so that nothing can be registered on a file that is just going."""
        if not paths:
            return
        failures = await asyncio.to_thread(_unlink_all, sorted(paths))
        self._gone.update(path for path in paths if not isinstance(failures.get(path), OSError))
        for path in paths:
            failure = failures.get(path)
            self._log.debug("phase3_refcount_unlink", path=path, outcome=str(failure) if failure else "removed")

    def _below_zero(self, tile: int) -> None:
        assert not self._strict, f"tile {tile} was released but never registered"
        if not self._underflow_told:
            self._underflow_told = True
            self._log.debug("phase3_refcount_underflow", tile_id=tile)

    def _own(self, paths: Iterable[str]) -> frozenset[str]:
        own = keys(paths)
        strange = [path for path in own if not path.startswith(self._root + "/")]
        if strange:
            raise ValueError(f"not a cache of this session: {min(strange)!r} is outside {self._root!r}")
        return own


def _unlink_all(paths: list[str]) -> dict[str, OSError | str]:
    """What could not be unlinked: an OSError where the file is still there, a word where it was gone already (R5)."""
    failures: dict[str, OSError | str] = {}
    for path in paths:
        try:
            Path(path).unlink()
        except FileNotFoundError:
            failures[path] = "missing"
        except OSError as error:
            failures[path] = error
    return failures
