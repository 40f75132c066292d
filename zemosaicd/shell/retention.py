"""Failed sessions keep their files for another try, within limits of age and size (SPEC P10)."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from zemosaicd.core.cleaning import FailedSession, expired
from zemosaicd.shell import cleanup
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger
from zemosaicd.shell.sessions import SessionConfigs

EVERY_S = 3600.0
DAY_S = 86400.0


async def expire_failed(engine: Engine, layout: Layout, configs: SessionConfigs, log: Logger) -> NoReturn:
    """Looks once an hour at what failed sessions still hold, and cleans those that are too old or too big."""
    while True:
        failed = [
            (row.session, (time.time() - row.updated_at) / DAY_S)
            for row in engine.journal.all_sessions()
            if not row.open and row.summary.get("outcome") == "failed" and layout.session(row.session).is_dir()
        ]
        sizes = await asyncio.to_thread(_sizes, [layout.session(name) for name, _ in failed])
        table = configs.base.cleanup
        held = [
            FailedSession(session=name, age_days=age_days, size_bytes=size)
            for (name, age_days), size in zip(failed, sizes, strict=True)
        ]
        for name in expired(held, table.failed_keep_days, table.failed_keep_gb):
            state = engine.load(name)
            policy = replace(configs.cleanup_policy(configs.of(state)), cleanup_temp_artifacts=True)
            cleaned = await asyncio.to_thread(
                cleanup.clean, list(state.manifest.values()), policy, layout.session(name), log.bind(session=name)
            )
            log.info("failed_session_expired", session=name, removed=cleaned.removed)
            engine.forget(name)
        await asyncio.sleep(EVERY_S)


def _sizes(folders: list[Path]) -> list[int]:
    return [_size(folder) for folder in folders]


def _size(folder: Path) -> int:
    """Bytes below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
