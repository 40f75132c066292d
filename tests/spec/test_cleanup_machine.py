"""P9 as a machine: whatever is made, planted, replaced, cleaned and killed half-way, only what was made ever goes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zemosaicd.core.cleaning import CleanupPolicy, doomed
from zemosaicd.model import Artefact, ArtefactKind
from zemosaicd.shell.cleanup import Cleaned, clean

INSIDE = {
    ArtefactKind.CACHE: "own/caches/{}.npy",
    ArtefactKind.MASTER_TILE: "own/master_tiles/master_tile_{}.fits",
    ArtefactKind.SUPER_TILE: "own/master_tiles/super_tile_{}.fits",
    ArtefactKind.MEGA_TILE: "own/master_tiles/mega_tile_{}.fits",
    ArtefactKind.SDS_TILES: "own/runtime/sds_tiles_{}/",
    ArtefactKind.COADD_MEMMAP: "own/runtime/coverage_{}.dat",
    ArtefactKind.MOSAIC_FIRST: "own/runtime/mosaic_first_{}/",
    ArtefactKind.GLOBAL_WCS: "own/runtime/global_mosaic_wcs_{}.json",
    ArtefactKind.SCRATCH: "own/runtime/scratch_{}/",
    ArtefactKind.OUTPUT: "own/kept_{}.fits",
    ArtefactKind.LOG: "own/logs/{}.log",
}
"""Where a kind lies in the session's own folder; a closing slash: a folder that holds files."""
OUTSIDE = {
    ArtefactKind.COADD_MEMMAP: "memmaps/mosaic_{}.dat",
    ArtefactKind.MOSAIC_FIRST: "memmaps/mosaic_first_{}/",
    ArtefactKind.SCRATCH: "memmaps/zemosaic_{}.dat",
    ArtefactKind.GLOBAL_WCS: "out/global_mosaic_wcs_{}.fits",
    ArtefactKind.OUTPUT: "out/mosaic_{}.fits",
    ArtefactKind.LOG: "logs/{}.log",
}
"""Where a kind may lie in the user's folders, pinned by device and inode (F18)."""
NUMBERS = st.integers(1, 3)
BY_USER = "{}_by_user"
"""The number of a look-alike: the same pattern of name, another file."""


class Silent:
    """A logger that says nothing, and that ends the cleanup right after `fatal` deletions."""

    def __init__(self, fatal: int = -1) -> None:
        self._left = fatal

    def debug(self, event: str, **fields: Any) -> None:
        """One line a deletion."""
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1

    def info(self, event: str, **fields: Any) -> None:
        """Not heard."""

    def warning(self, event: str, **fields: Any) -> None:
        """Not heard."""


class Phase7(RuleBasedStateMachine):
    """One session's manifest beside a user's files; `safe` must lie there to the byte, `going` may be gone by now."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="zemosaicd-phase7-"))
        self.own = self.root / "own"
        self.own.mkdir()
        self.policy = CleanupPolicy()
        self.manifest: dict[str, Artefact] = {}
        self.safe: dict[str, str] = {}
        self.going: dict[str, str] = {}
        self.replaced: set[str] = set()
        self.writes = 0

    def teardown(self) -> None:
        """Nothing stays behind."""
        shutil.rmtree(self.root)

    def write(self, path: Path) -> None:
        """A file that from now on must stay as it is; its text is like no other's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writes += 1
        path.write_text(f"{self.writes}")
        self.safe[str(path)] = f"{self.writes}"

    def files(self) -> dict[str, str]:
        """All that lies there."""
        return {str(path): path.read_text() for path in self.root.rglob("*") if path.is_file()}

    def doomed(self) -> set[str]:
        """What a cleanup has to remove now: lines of the manifest that still are the session's own."""
        return {line.path for line in doomed(self.manifest.values(), self.policy)[0]} - self.replaced

    @rule(kind=st.sampled_from(ArtefactKind), number=NUMBERS, outside=st.booleans())
    def make(self, kind: ArtefactKind, number: int, outside: bool) -> None:
        """The session makes a file or a folder, and writes it into its manifest."""
        name = (OUTSIDE if outside and kind in OUTSIDE else INSIDE)[kind].format(number)
        path = self.root / name
        if os.path.lexists(path):
            return
        for part in ("a.fits", "deep/b.dat") if name.endswith("/") else ("",):
            self.write(path / part if part else path)
        state = path.stat()
        self.manifest[str(path)] = Artefact(
            path=str(path), kind=kind, device=state.st_dev, inode=state.st_ino, directory=path.is_dir()
        )

    @rule(kind=st.sampled_from(ArtefactKind), number=NUMBERS, outside=st.booleans())
    def plant(self, kind: ArtefactKind, number: int, outside: bool) -> None:
        """The user puts something beside it whose name fits the same pattern."""
        name = (OUTSIDE if outside and kind in OUTSIDE else INSIDE)[kind].format(BY_USER.format(number))
        self.write(self.root / name / "mine" if name.endswith("/") else self.root / name)

    @precondition(lambda self: self.manifest)
    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        """The user puts a file of their own in the place of one outside the session's folder.

        Once a place: a second time the file system may hand out the inode that the session's file had.
        """
        path = Path(data.draw(st.sampled_from(sorted(self.manifest))))
        if path.is_relative_to(self.own) or str(path) in self.replaced or not path.is_file():
            return
        self.write(path.with_name("edited"))
        path.with_name("edited").rename(path)
        self.safe[str(path)] = self.safe.pop(str(path.with_name("edited")))
        self.going.pop(str(path), None)
        self.replaced.add(str(path))

    @rule(
        policy=st.builds(
            CleanupPolicy,
            cleanup_temp_artifacts=st.sampled_from([True, False, None]),
            cache_retention=st.sampled_from(["per_tile", "run_end", "keep"]),
            coadd_use_memmap=st.booleans(),
            coadd_cleanup_memmap=st.booleans(),
            two_pass_enabled=st.booleans(),
        ),
        own_folder=st.booleans(),
    )
    def set_flags(self, policy: CleanupPolicy, own_folder: bool) -> None:
        """Another master switch, another flag, another place for accumulators (P1, P3, P8)."""
        flags = {name: getattr(policy, name) for name in CleanupPolicy.__slots__}
        self.policy = CleanupPolicy(**flags | {"coadd_memmap_dir": str(self.root / "memmaps") if own_folder else ""})

    def start(self, fatal: int = -1) -> Cleaned:
        """A cleanup; what it has to remove is safe no more."""
        for top in self.doomed():
            for path in [p for p in self.safe if p == top or p.startswith(top + "/")]:
                self.going[path] = self.safe.pop(path)
        return clean(self.manifest.values(), self.policy, self.own, Silent(fatal))

    @rule(deletions=st.integers(0, 5))
    def clean_and_be_killed(self, deletions: int) -> None:
        """A cleanup that ends after so many deletions, or is done before."""
        try:
            self.start(deletions)
        except KeyboardInterrupt:
            return

    @rule()
    def clean_to_the_end(self) -> None:
        """All that is doomed is gone, nothing failed, and once more changes nothing (P10)."""
        due = self.doomed()
        assert self.start().failed == 0
        assert not {path for path in due if os.path.lexists(path)}
        left = self.files()
        again = self.start()
        assert (again.removed, again.failed) == (0, 0)
        assert self.files() == left

    @invariant()
    def only_what_was_made_and_is_doomed_goes(self) -> None:
        """The user's files, outputs, logs and what the flags keep lie there to the byte; nothing new appears."""
        here = self.files()
        assert {path: text for path, text in here.items() if path in self.safe} == self.safe
        assert {path: text for path, text in here.items() if path not in self.safe}.items() <= self.going.items()

    @invariant()
    def outputs_and_logs_never_go(self) -> None:
        """Whatever the flags say, and however often it is killed."""
        kept = {ArtefactKind.OUTPUT, ArtefactKind.LOG}
        assert all(Path(path).is_file() for path, line in self.manifest.items() if line.kind in kept)


TestPhase7 = Phase7.TestCase
TestPhase7.settings = settings(max_examples=60, stateful_step_count=25)
