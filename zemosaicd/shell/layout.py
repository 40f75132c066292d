"""Where things lie: every path that zemosaicd makes is named here (SPEC section 10)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from zemosaicd.core.headers import slug
from zemosaicd.core.lifecycle import SessionState
from zemosaicd.model import ArtefactKind, Fingerprint, MosaicSpec, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The state and output folders of one daemon."""

    state: Path
    output: Path

    @property
    def journal(self) -> Path:
        """The event journal."""
        return self.state / "journal.sqlite"

    @property
    def status(self) -> Path:
        """What `zemosaicd status` reads."""
        return self.state / "status.json"

    @property
    def requests(self) -> Path:
        """Where commands leave what they ask of a running daemon."""
        return self.state / "requests"

    def session(self, session: str) -> Path:
        """The session's own folder; nothing in it belongs to the user."""
        return self.state / "sessions" / session

    def caches(self, session: str) -> Path:
        """The session's prepared frames."""
        return self.session(session) / "caches"

    def cache(self, session: str, path: str, fingerprint: Fingerprint) -> Path:
        """A frame's cache: named by the file it was made from, so that a changed file never meets an old cache."""
        seen = f"{fingerprint.size}:{fingerprint.mtime_ns}:".encode() + os.fsencode(path)
        return self.caches(session) / f"{hashlib.sha256(seen).hexdigest()[:24]}.npy"

    def frames_file(self, session: str, revision: int) -> Path:
        """What Phase 2 reads."""
        return self.session(session) / "runtime" / f"frames_r{revision}.json"

    def plan_file(self, session: str, revision: int) -> Path:
        """What Phase 2 writes and Phases 3 to 6 read."""
        return self.session(session) / "runtime" / f"plan_r{revision}.json"

    def master_tile(self, session: str, tile: int, kind: ArtefactKind = ArtefactKind.MASTER_TILE) -> Path:
        """A master tile, or a mega tile."""
        return self.session(session) / "master_tiles" / f"{kind.value}_{tile}.fits"

    def output_folder(self, state: SessionState, plan: Plan, spec: MosaicSpec) -> Path:
        """The mosaic's folder: the session's name; for further mosaics of it (filters) with the filter's.

        A mosaic keeps the folder it was published in (F28). A folder or file of that name that this session did not
        make is the user's: the next free name is taken (P9, F26).
        """
        homes = {name: Path(p.path).parent for name, p in state.last_published.items()}
        here = {name: home for name, home in homes.items() if home.parent == self.output}
        if spec.name in here:
            return here[spec.name]
        first = max(plan.mosaics, key=lambda m: (sum(len(t.frames) for t in plan.tiles if t.tile in m.tiles), m.name))
        name = state.session if not here and spec.name == first.name else f"{state.session}_{slug(spec.name)}"
        ours = {Path(a.path).parent for a in state.manifest.values() if a.kind is ArtefactKind.OUTPUT}
        number = 1
        while True:
            folder = self.output / (name if number == 1 else f"{name}-{number}")
            if folder in ours or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                return folder
            number += 1
