"""Failed sessions keep their files for another try, within limits of age and size (SPEC P10)."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from zemosaicd.core.cleaning import NEVER, CleanupPolicy, FailedSession, expired
from zemosaicd.model import Artefact, ArtefactKind
from zemosaicd.shell import cleanup
from zemosaicd.shell.engine import Engine
from zemosaicd.shell.layout import Layout
from zemosaicd.shell.log import Logger
from zemosaicd.shell.sessions import SessionConfigs
from zemosaicd.work.store import TEMPORARY_SUFFIX

EVERY_S = 3600.0
DAY_S = 86400.0
_TORN = re.compile(rf"\.(.+)\.[^.]+{re.escape(TEMPORARY_SUFFIX)}")
"""The name of a file that was being written (work.store); its group is the name that the file was to have."""


def torn(manifest: Iterable[Artefact]) -> list[Artefact]:
    """What a killed worker left of files that the manifest names: its temporaries, beside where they were to lie."""
    names: dict[str, set[str]] = {}
    for line in manifest:
        if not line.directory and line.kind not in NEVER:
            folder, _, name = line.path.rpartition("/")
            names.setdefault(folder, set()).add(name)
    return [
        Artefact(path=f"{folder}/{entry}", kind=ArtefactKind.SCRATCH)
        for folder, made in names.items()
        if os.path.isdir(folder)  # noqa: PTH112
        for entry in os.listdir(folder)  # noqa: PTH208 - names are enough, of a folder that may hold 20,000
        if (match := _TORN.fullmatch(entry)) and match[1] in made
    ]


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
                clean_session, state.manifest.values(), policy, layout.session(name), log.bind(session=name)
            )
            log.info("failed_session_expired", session=name, removed=cleaned.removed)
            engine.forget(name)
        await asyncio.sleep(EVERY_S)


def clean_session(manifest: Iterable[Artefact], policy: CleanupPolicy, own_root: Path, log: Logger) -> cleanup.Cleaned:
    """Phase 7 for one session, blocking, with what killed workers left. See cleanup.clean."""
    lines = list(manifest)
    return cleanup.clean([*lines, *torn(lines)], policy, own_root, log)


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
