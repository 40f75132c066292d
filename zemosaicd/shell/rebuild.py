"""Caches that have gone, made again from the user's frames (SPEC P10): a hole only where the frame is gone as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from zemosaicd.core.events import ArtefactMade
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.model import Artefact, ArtefactKind, FrameId, FramePlan, PreparedFrame, Reason, ZemosaicdError
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.log import Logger
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.work.jobs import Job, RebuildCache

RunInto = Callable[[SessionState, Path, Job], Awaitable[Any]]
"""Runs a job that writes into a folder of the session's, whenever the disk can take it."""


class Rebuilder:
    """Makes missing caches again, each once, however many tiles ask for it at the same time."""

    def __init__(self, engine: Engine, run_into: RunInto, configs: SessionConfigs, log: Logger) -> None:
        self._engine = engine
        self._run_into = run_into
        self._configs = configs
        self._log = log
        self._under_way: dict[str, asyncio.Future[Reason | None]] = {}

    async def ensure(self, state: SessionState, frames: Sequence[FramePlan | PreparedFrame]) -> list[FrameId]:
        """Returns, with a line for each, the frames whose caches are missing and cannot be made again."""
        missing = [f for f in frames if not Path(f.cache).exists()]
        reasons = await asyncio.gather(*(self._rebuild(state, f) for f in missing))
        gone = [(f, r) for f, r in zip(missing, reasons, strict=True) if r is not None]
        for frame, reason in gone:
            self._log.warning(
                "mastertile_warn_cache_file_missing",
                session=state.session,
                filename=frame.path,
                cache_path=frame.cache,
                reason=reason.message or reason.rule,
            )
        return [f.frame for f, _ in gone]

    async def _rebuild(self, state: SessionState, frame: FramePlan | PreparedFrame) -> Reason | None:
        """None when the cache lies there again, else why not. Tiles that share it wait for the same answer."""
        if frame.cache in self._under_way:
            return await asyncio.shield(self._under_way[frame.cache])
        future: asyncio.Future[Reason | None] = asyncio.get_running_loop().create_future()
        self._under_way[frame.cache] = future
        reason: Reason | None = Reason(rule="interrupted")  # what the others hear if this ends in an unforeseen way
        try:
            artefact = Artefact(path=frame.cache, kind=ArtefactKind.CACHE)
            await self._engine.record(ArtefactMade(session=state.session, artefact=artefact))
            budget = self._configs.budget(self._configs.of(state))
            job = RebuildCache(path=frame.path, cache=frame.cache, frame=frame.frame, budget=budget)
            await self._run_into(state, Path(frame.cache).parent, job)
            reason = None
        except ZemosaicdError as error:
            reason = error.reason
        except OSError as error:
            reason = Reason(rule="unreadable", value=str(error.strerror), message=f"{frame.path}: {error.strerror}")
        finally:
            del self._under_way[frame.cache]
            future.set_result(reason)
        return reason
