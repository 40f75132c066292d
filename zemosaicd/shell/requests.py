"""What commands ask of a running daemon: small files in the state folder, published whole, removed when done.

A request outlives a restart, needs no socket and no port, and is taken up by whichever daemon owns the state.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zemosaicd import codec
from zemosaicd.work.store import publish

SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`verb`: close. `session`: which one."""

    verb: str
    session: str


def ask(folder: Path, request: Request) -> None:
    """Leaves a request for the daemon."""
    folder.mkdir(parents=True, exist_ok=True)
    with publish(folder / f"{uuid.uuid4().hex}{SUFFIX}", mode=0o600) as file:
        file.write(codec.dumps(request).encode())


def waiting(folder: Path) -> Iterator[tuple[Path, Request | None]]:
    """Requests that lie in the folder, by name; None for a file that is none."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix == SUFFIX and not path.name.startswith("."):
            try:
                yield path, codec.loads(Request, path.read_text())
            except (ValueError, TypeError, KeyError, json.JSONDecodeError):
                yield path, None
