"""Phase 7 on real files: what goes, what survives, and what is refused (SPEC section 4, F2, F18)."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.core.cleaning import CleanupPolicy, doomed
from zemosaicd.model import Artefact, ArtefactKind
from zemosaicd.shell.cleanup import Cleaned, clean

ON = CleanupPolicy()


class Lines:
    """A logger that remembers, and that can kill the process half-way: it raises at the debug line number `fatal`."""

    def __init__(self, fatal: int = -1) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self._left = fatal

    def debug(self, event: str, **fields: Any) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.seen.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:
        self.seen.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.seen.append(("warning", event, fields))

    def of(self, level: str) -> dict[str, dict[str, Any]]:
        return {event: fields for lvl, event, fields in self.seen if lvl == level}


@pytest.fixture
def log() -> Lines:
    return Lines()


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def made(path: Path, kind: ArtefactKind) -> Artefact:
    """A manifest line for what lies there now, pinned."""
    state = path.lstat()
    return Artefact(path=str(path), kind=kind, device=state.st_dev, inode=state.st_ino, directory=path.is_dir())


def picture(root: Path, without: Set[str] = frozenset()) -> dict[str, str]:
    """Every path under a folder with a hash of what it is; `without`: paths left out, and what lies below them."""
    found = {}
    for path in root.rglob("*"):
        if any(str(path) == left or str(path).startswith(left + "/") for left in without):
            continue
        kind = str(path.readlink()) if path.is_symlink() else "dir" if path.is_dir() else None
        found[str(path)] = kind or hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions" / "n"


def test_P2_a_whole_session_goes_but_for_its_outputs(tmp_path: Path, own: Path, log: Lines) -> None:
    """All kinds at once: files, folders with what they hold, then the empty folders of the session, its own last."""
    manifest = [
        made(put(own / "caches" / "a.npy"), ArtefactKind.CACHE),
        made(put(own / "master_tiles" / "master_tile_1.fits"), ArtefactKind.MASTER_TILE),
        made(put(own / "runtime" / "mosaic_9x9x3.dat"), ArtefactKind.COADD_MEMMAP),
        made(put(own / "runtime" / "mosaic_first_1" / "deep" / "x.fits").parents[1], ArtefactKind.MOSAIC_FIRST),
        made(put(tmp_path / "out" / "n" / "global_mosaic_wcs.fits"), ArtefactKind.GLOBAL_WCS),
        made(put(tmp_path / "out" / "n" / "mosaic.fits"), ArtefactKind.OUTPUT),
        made(put(own.parents[1] / "logs" / "n.log"), ArtefactKind.LOG),
    ]
    assert clean(manifest, ON, own, log) == Cleaned(removed=5, gone=0, kept=2, refused=0, failed=0, freed_bytes=5)
    left = {str(Path(path).relative_to(tmp_path)) for path, kind in picture(tmp_path).items() if kind != "dir"}
    assert left == {"out/n/mosaic.fits", "state/logs/n.log"}
    assert not own.exists()


def test_P6_the_lines_of_a_cleanup(own: Path, log: Lines) -> None:
    """One INFO line a kind with its folder, tiles of all levels together; single files at DEBUG."""
    kinds = (ArtefactKind.MASTER_TILE, ArtefactKind.SUPER_TILE, ArtefactKind.CACHE)
    manifest = [made(put(own / f"t{i}" / "f", "123"), kind) for i, kind in enumerate(kinds)]
    clean(manifest, CleanupPolicy(cache_retention="keep"), own, log)
    info = log.of("info")
    assert info["run_info_temp_master_tiles_fits_cleaned"] == {"directory": str(own), "removed": 2, "freed_bytes": 6}
    assert info["run_info_temp_preprocessed_cache_kept"]["directory"] == str(own / "t2")
    assert list(log.of("debug")) == ["phase7_removed"]


def test_P6_off_says_that_tiles_are_retained(own: Path, log: Lines) -> None:
    """The switch off: tiles stay, and the line that says so is the known one."""
    tile = put(own / "master_tiles" / "master_tile_1.fits")
    clean([made(tile, ArtefactKind.MASTER_TILE)], CleanupPolicy(cleanup_temp_artifacts=False), own, log)
    assert tile.exists()
    assert "run_info_temp_master_tiles_retained_cleanup_disabled" in log.of("info")


def test_P9_a_users_look_alike_in_the_session_folder_survives(own: Path, log: Lines) -> None:
    """It is not in the manifest, so it stays, and with it the folders that lead to it."""
    tile = made(put(own / "master_tiles" / "master_tile_1.fits"), ArtefactKind.MASTER_TILE)
    mine = put(own / "master_tiles" / "master_tile_2.fits")
    clean([tile], ON, own, log)
    assert mine.exists()
    assert not Path(tile.path).exists()


def test_P9_a_kept_line_inside_a_folder_that_goes_survives(own: Path, log: Lines) -> None:
    """A scratch folder that holds an output, and an accumulator that the flags keep, goes but for them."""
    folder = own / "runtime"
    manifest = [
        made(put(folder / "sub" / "mosaic_1.dat").parent, ArtefactKind.SCRATCH),
        made(folder / "sub" / "mosaic_1.dat", ArtefactKind.COADD_MEMMAP),
        made(put(folder / "report.json"), ArtefactKind.OUTPUT),
        made(put(folder / "sub" / "x.tmp").parents[1], ArtefactKind.SCRATCH),
    ]
    cleaned = clean(manifest, CleanupPolicy(coadd_cleanup_memmap=False), own, log)
    left = {path for path, kind in picture(own).items() if kind != "dir"}
    assert left == {str(folder / "report.json"), str(folder / "sub" / "mosaic_1.dat")}
    assert (cleaned.removed, cleaned.kept) == (0, 4)


def test_F18_a_file_outside_goes_only_if_it_is_the_very_one(tmp_path: Path, own: Path, log: Lines) -> None:
    """Outside the session's folder device and inode must be what was made; a file put in its place survives."""
    ours = made(put(tmp_path / "out" / "global_mosaic_wcs.fits"), ArtefactKind.GLOBAL_WCS)
    theirs = made(put(tmp_path / "out" / "global_mosaic_wcs.json"), ArtefactKind.GLOBAL_WCS)
    replacement = put(tmp_path / "out" / "edited")
    replacement.rename(theirs.path)
    unpinned = Artefact(path=str(put(tmp_path / "out" / "x_global_mosaic_wcs")), kind=ArtefactKind.GLOBAL_WCS)
    cleaned = clean([ours, theirs, unpinned], ON, own, log)
    assert (cleaned.removed, cleaned.refused) == (1, 2)
    assert Path(theirs.path).exists()
    assert Path(unpinned.path).exists()
    rules = {f["rule"] for _, event, f in log.seen if event == "run_warn_phase7_cleanup_refused"}
    assert rules == {"device_or_inode_differs", "outside_and_not_pinned"}


@pytest.mark.parametrize("where", ["parent", "leaf", "root"])
def test_F18_no_symlink_is_followed_inside_the_session_folder(
    tmp_path: Path, own: Path, log: Lines, where: str
) -> None:
    """A folder, a file, or the session folder itself swapped for a symlink: what it points at is untouched."""
    precious = put(tmp_path / "photos" / "caches" / "a.npy", "precious")
    line = made(put(own / "caches" / "a.npy"), ArtefactKind.CACHE)
    victim = {"parent": own / "caches", "leaf": own / "caches" / "a.npy", "root": own}[where]
    target = {"parent": precious.parent, "leaf": precious, "root": tmp_path / "photos"}[where]
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    victim.symlink_to(target)
    cleaned = clean([line], ON, own, log)
    assert (cleaned.removed, cleaned.refused) == (0, 1)
    assert precious.read_text() == "precious"
    assert victim.is_symlink()


def test_F18_a_symlink_inside_a_folder_that_goes_is_unlinked_not_followed(
    tmp_path: Path, own: Path, log: Lines
) -> None:
    """The link goes with the folder; the folder that it points at keeps all its files."""
    precious = put(tmp_path / "photos" / "a.fits", "precious")
    folder = put(own / "runtime" / "mosaic_first_1" / "x").parent
    (folder / "link").symlink_to(precious.parent)
    assert clean([made(folder, ArtefactKind.MOSAIC_FIRST)], ON, own, log).removed == 1
    assert precious.read_text() == "precious"
    assert not folder.exists()


@pytest.mark.parametrize("path", ["{own}/../../../photos/a.fits", "photos/a.fits", "{own}", "/", "{own}/.."])
def test_F18_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, own: Path, log: Lines, path: str) -> None:
    """Dots, relative paths, the session's folder itself and what holds it are never a line to remove."""
    precious = put(tmp_path / "photos" / "a.fits", "precious")
    put(own / "caches" / "a.npy")
    line = Artefact(path=path.format(own=own), kind=ArtefactKind.SCRATCH, directory=path != "photos/a.fits")
    assert clean([line], ON, own, log).refused == 1
    assert precious.exists()
    assert (own / "caches" / "a.npy").exists()


def test_F18_something_else_under_the_same_name_is_refused(own: Path, log: Lines) -> None:
    """A folder where the manifest says file, and a file where it says folder, are not what was made."""
    put(own / "caches" / "a.npy" / "inside")
    put(own / "runtime" / "mosaic_first_1")
    manifest = [
        Artefact(path=str(own / "caches" / "a.npy"), kind=ArtefactKind.CACHE),
        Artefact(path=str(own / "runtime" / "mosaic_first_1"), kind=ArtefactKind.MOSAIC_FIRST, directory=True),
    ]
    before = picture(own)
    assert clean(manifest, ON, own, log).refused == 2
    assert picture(own) == before


def test_P10_what_is_missing_is_done(own: Path, log: Lines) -> None:
    """A second run over the same manifest removes nothing, refuses nothing, fails nothing."""
    manifest = [made(put(own / "caches" / f"{i}.npy"), ArtefactKind.CACHE) for i in range(3)]
    assert clean(manifest, ON, own, log).removed == 3
    assert clean(manifest, ON, own, log) == Cleaned(removed=0, gone=3, kept=0, refused=0, failed=0, freed_bytes=0)


def test_F22_a_file_that_cannot_go_is_told_and_the_rest_goes(tmp_path: Path, own: Path, log: Lines) -> None:
    """An error of the file system is one warning with the known key, not the end of the cleanup."""
    name = "x" * 300  # no file system takes it: ENAMETOOLONG, for whoever runs this test
    manifest = [
        Artefact(path=str(own / "caches" / name), kind=ArtefactKind.CACHE),
        made(put(own / "caches" / "b.npy"), ArtefactKind.CACHE),
    ]
    cleaned = clean(manifest, ON, own, log)
    assert (cleaned.removed, cleaned.failed) == (1, 1)
    assert log.of("warning")["run_warn_phase7_cache_cleanup_failed"]["directory"] == str(own / "caches")


# --- P9 and P10 over random trees

PLACES = {
    ArtefactKind.CACHE: ("own/caches", "{}.npy", False),
    ArtefactKind.MASTER_TILE: ("own/master_tiles", "master_tile_{}.fits", False),
    ArtefactKind.SUPER_TILE: ("own/master_tiles", "super_tile_{}.fits", False),
    ArtefactKind.MEGA_TILE: ("own/master_tiles", "mega_tile_{}.fits", False),
    ArtefactKind.SDS_TILES: ("own/runtime", "sds_tiles_{}", True),
    ArtefactKind.COADD_MEMMAP: ("memmaps", "mosaic_{}.dat", False),
    ArtefactKind.MOSAIC_FIRST: ("memmaps", "mosaic_first_{}", True),
    ArtefactKind.GLOBAL_WCS: ("out", "global_mosaic_wcs_{}.fits", False),
    ArtefactKind.SCRATCH: ("own/runtime", "zemosaic_{}.dat", False),
    ArtefactKind.OUTPUT: ("out", "mosaic_{}.fits", False),
    ArtefactKind.LOG: ("own/logs", "{}.log", False),
}
FOLDERS = ("own/caches", "own/master_tiles", "own/runtime", "own", "memmaps", "out")
LOOK_ALIKES = (
    *("mosaic_user.dat", "coverage_user.dat", "zemosaic_user.dat", "mosaic_first_user/x", "my_global_mosaic_wcs.fits"),
    *("master_tile_999.fits", "user.npy", "sds_tiles_user/x", "user.log"),
)


@pytest.fixture(scope="module")
def arena() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cleanup-") as folder:
        yield Path(folder)


@settings(max_examples=80)
@given(
    chosen=st.lists(st.tuples(st.sampled_from(list(PLACES)), st.integers(0, 3), st.booleans()), max_size=10),
    aliens=st.sets(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(LOOK_ALIKES)), max_size=8),
    policy=st.builds(
        CleanupPolicy,
        cleanup_temp_artifacts=st.sampled_from([True, True, False, None]),
        cache_retention=st.sampled_from(["per_tile", "run_end", "keep"]),
        coadd_use_memmap=st.booleans(),
        coadd_cleanup_memmap=st.booleans(),
        coadd_memmap_dir=st.sampled_from(["", "memmaps"]),
        two_pass_enabled=st.booleans(),
    ),
    kills=st.lists(st.integers(0, 6), max_size=2),
)
def test_P9_nothing_outside_the_manifest_is_ever_touched(
    arena: Path,
    chosen: list[tuple[ArtefactKind, int, bool]],
    aliens: set[tuple[str, str]],
    policy: CleanupPolicy,
    kills: list[int],
) -> None:
    """Random trees with look-alikes, any policy, killed twice in the middle, run three times.

    What is not in the manifest, and what the policy keeps, is unchanged to the byte; what must go is gone.
    """
    root = Path(tempfile.mkdtemp(dir=arena))
    manifest = []
    for kind, number, in_runtime in chosen:
        folder, pattern, directory = PLACES[kind]
        if in_runtime and folder == "memmaps":
            folder = "own/runtime"
        path = root / folder / pattern.format(number)
        put(path / "inside" / "x" if directory else path, f"{kind}{number}")
        manifest.append(made(path, kind))
    for folder, name in aliens:
        put(root / folder / name, "the user's")
    if policy.coadd_memmap_dir:
        policy = CleanupPolicy(
            **{name: getattr(policy, name) for name in CleanupPolicy.__slots__}
            | {"coadd_memmap_dir": f"{root}/memmaps"}
        )
    remove, _ = doomed(manifest, policy)
    going = {line.path for line in remove}
    files_before = {path: is_ for path, is_ in picture(root, going).items() if is_ != "dir"}

    for kill in [*kills, -1, -1, -1]:
        try:
            last = clean(manifest, policy, root / "own", Lines(kill))
        except KeyboardInterrupt:
            continue

    assert {path: is_ for path, is_ in picture(root).items() if is_ != "dir"} == files_before
    assert not any(os.path.lexists(path) for path in going)
    assert (last.removed, last.refused, last.failed) == (0, 0, 0)
    shutil.rmtree(root)
