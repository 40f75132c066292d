"""What must be right before a night: folders, free space, file systems, the catalogue (`zemosaicd check`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zemosaicd.settings import Config
from zemosaicd.shell.scan import network_filesystem
from zemosaicd.shell.space import free_bytes

POLARIS_DEG = (37.95, 89.26)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `text`: what was found, and what to do if it is not `ok`."""

    what: str
    ok: bool
    text: str


def findings(config: Config) -> list[Finding]:
    """Everything that was looked at, good or bad; a bad configuration file never comes this far."""
    return [Finding(what="configuration", ok=True, text="good"), *_folders(config), _catalogue()]


def _folders(config: Config) -> Iterator[Finding]:
    for name in config.paths.incoming:
        there, readable = Path(name).exists(), os.access(name, os.R_OK | os.X_OK)
        text = (
            "readable" if readable else "may not be listed by this user" if there else "not there yet; `run` makes it"
        )
        yield Finding(what=f"incoming {name}", ok=readable or not there, text=text)
    for what, name in (("output", config.paths.output), ("state", config.paths.state)):
        folder = Path(name)
        nearest = next(p for p in (folder, *folder.parents) if p.exists())
        writable = os.access(nearest, os.W_OK | os.X_OK)
        free_gb = free_bytes(folder) / 1e9
        enough = free_gb > config.service.min_free_gb
        remote = network_filesystem(str(nearest)) if what == "state" else ""
        text = f"{free_gb:.1f} GB free" if writable else f"{nearest} is not writable for this user"
        if writable and not enough:
            text += f", less than service.min_free_gb = {config.service.min_free_gb:g}"
        if remote:
            text += f"; it lies on {remote}: the journal needs a local disk"
        yield Finding(what=f"{what} {name}", ok=writable and enough and not remote, text=text)


def _catalogue() -> Finding:
    from zemosaicd.work.catalogue import read_cone

    stars = read_cone(*POLARIS_DEG, 1.0)
    return Finding(what="star catalogue", ok=len(stars) > 10, text=f"{len(stars)} stars within 1 deg of Polaris")
