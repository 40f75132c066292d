"""Phase 7: remove what a session made and no longer needs, from its manifest and from nothing else (P9, F18).

Every path is checked again right before it goes. Inside the session's own state folder the way to it is walked with
directory descriptors and no symlink is followed (M19); anywhere else the manifest's device and inode must still be
what lies there. What fails the check is refused, said and kept. What is missing is done already, so a cleanup that was
killed half-way is finished by simply running it again (P10, F2).
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from zemosaicd.core.cleaning import NEVER, CleanupPolicy, doomed
from zemosaicd.model import Artefact, ArtefactKind
from zemosaicd.shell.log import Logger

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINK = _FOLDER | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Kinds that are told of together: one line when they went, one when they stayed, one a failure."""

    kinds: tuple[ArtefactKind, ...]
    cleaned: str
    retained: str = "run_info_temp_artifacts_retained"
    failed: str = "run_warn_phase7_cleanup_failed"


_FAMILIES = (
    _Family(
        kinds=(ArtefactKind.CACHE,),
        cleaned="run_info_temp_preprocessed_cache_cleaned",
        retained="run_info_temp_preprocessed_cache_kept",
        failed="run_warn_phase7_cache_cleanup_failed",
    ),
    _Family(
        kinds=(ArtefactKind.MASTER_TILE, ArtefactKind.SUPER_TILE, ArtefactKind.MEGA_TILE),
        cleaned="run_info_temp_master_tiles_fits_cleaned",
        retained="run_info_temp_master_tiles_retained_cleanup_disabled",
        failed="run_warn_phase7_master_tiles_fits_cleanup_failed",
    ),
    _Family(kinds=(ArtefactKind.SDS_TILES,), cleaned="run_info_temp_sds_tiles_cleaned"),
    _Family(kinds=(ArtefactKind.COADD_MEMMAP,), cleaned="run_info_temp_coadd_memmap_cleaned"),
    _Family(kinds=(ArtefactKind.MOSAIC_FIRST,), cleaned="run_info_temp_mosaic_first_cleaned"),
    _Family(kinds=(ArtefactKind.GLOBAL_WCS,), cleaned="run_info_temp_global_wcs_cleaned"),
    _Family(kinds=(ArtefactKind.SCRATCH,), cleaned="run_info_temp_scratch_cleaned"),
)
_FAMILY = {kind: family for family in _FAMILIES for kind in family.kinds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What Phase 7 did, in lines of the manifest. `gone`: was missing already. `freed_bytes`: sizes of what went."""

    removed: int
    gone: int
    kept: int
    refused: int
    failed: int
    freed_bytes: int


class _Fate(Enum):
    REMOVED = auto()
    GONE = auto()
    KEPT = auto()
    REFUSED = auto()
    FAILED = auto()


class _NotOursError(Exception):
    """What lies there is not what the session made; the text is the rule that says so."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    artefact: Artefact
    fate: _Fate
    freed_bytes: int = 0


def clean(manifest: Iterable[Artefact], policy: CleanupPolicy, own_root: Path, log: Logger) -> Cleaned:
    """Run Phase 7 for one session, blocking. `own_root`: the absolute path of the session's state folder.

    A directory of the manifest goes with all that it holds, except lines of the manifest that stay. Folders of
    `own_root` that this leaves empty go too, `own_root` last; anything foreign in them keeps them. Errors of the file
    system are logged and counted (`failed`), not raised.
    """
    remove, keep = doomed(manifest, policy)
    sweep = _Sweep(own_root, frozenset(posixpath.normpath(line.path) for line in keep), log)
    deepest_first = sorted(dict.fromkeys(remove), key=lambda line: (-line.path.count("/"), line.path))
    outcomes = [sweep.remove(line) for line in deepest_first]
    sweep.tidy(line.path for line in remove)
    _tell(outcomes, keep, own_root, log)
    fates = [outcome.fate for outcome in outcomes]
    cleaned = Cleaned(
        removed=fates.count(_Fate.REMOVED),
        gone=fates.count(_Fate.GONE),
        kept=len(keep) + fates.count(_Fate.KEPT),
        refused=fates.count(_Fate.REFUSED),
        failed=fates.count(_Fate.FAILED),
        freed_bytes=sum(outcome.freed_bytes for outcome in outcomes),
    )
    log.info(
        "phase7_cleanup_complete",
        removed=cleaned.removed + cleaned.gone,
        kept=cleaned.kept,
        refused=cleaned.refused,
        failed=cleaned.failed,
        freed_bytes=cleaned.freed_bytes,
    )
    return cleaned


class _Sweep:
    """Removes single lines of one session's manifest."""

    def __init__(self, own_root: Path, spared: frozenset[str], log: Logger) -> None:
        self._root = posixpath.normpath(str(own_root))
        self._spared = spared
        self._log = log

    def remove(self, line: Artefact) -> _Outcome:
        try:
            with self._parent(line) as (folder, name):
                fate, freed = self._take(line, folder, name)
            return _Outcome(line, fate, freed)
        except FileNotFoundError:
            return _Outcome(line, _Fate.GONE)
        except _NotOursError as rule:
            self._log.warning("run_warn_phase7_cleanup_refused", path=line.path, kind=line.kind.value, rule=str(rule))
            return _Outcome(line, _Fate.REFUSED)
        except OSError as error:
            self._log.warning(_FAMILY[line.kind].failed, directory=_folder_of(line), error=str(error))
            return _Outcome(line, _Fate.FAILED)

    def tidy(self, paths: Iterable[str]) -> None:
        """Remove the folders of the session's own root that held these paths and are empty now, innermost first."""
        inside = {posixpath.normpath(path) for path in paths if self._inside(path)}
        folders = {parent for path in inside for parent in self._folders_above(path)} - self._spared
        for path in sorted(folders, key=lambda path: (-path.count("/"), path)):
            # Not empty: something stays in it. Not reachable without a link: not the session's.
            with suppress(OSError, _NotOursError), self._walk(path) as (folder, name):
                os.rmdir(name, dir_fd=folder)

    def _folders_above(self, path: str) -> Iterator[str]:
        while path != self._root:
            path = posixpath.dirname(path)
            yield path

    def _inside(self, path: str) -> bool:
        return posixpath.normpath(path).startswith(self._root + "/")

    @contextmanager
    def _parent(self, line: Artefact) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds the artefact, and its name there; closed at the end."""
        if not posixpath.isabs(line.path) or ".." in line.path.split("/"):
            raise _NotOursError("path_not_plain")
        path = posixpath.normpath(line.path)
        if path == self._root or self._root.startswith(path + "/"):
            raise _NotOursError("holds_the_state_folder")
        if self._inside(path):
            with self._walk(path) as place:
                yield place
            return
        if not line.inode:
            raise _NotOursError("outside_and_not_pinned")
        folder = os.open(posixpath.dirname(path), _FOLDER)
        try:
            yield folder, posixpath.basename(path)
        finally:
            os.close(folder)

    @contextmanager
    def _walk(self, path: str) -> Iterator[tuple[int, str]]:
        """As `_parent`, for the root itself or a path in it: from the root downwards, no symlink followed."""
        top, *rest = posixpath.relpath(path, posixpath.dirname(self._root)).split("/")
        folder = os.open(posixpath.dirname(self._root), _FOLDER)
        try:
            for part in rest:
                below = _open_folder(top, folder)
                os.close(folder)
                folder, top = below, part
            yield folder, top
        finally:
            os.close(folder)

    def _take(self, line: Artefact, folder: int, name: str) -> tuple[_Fate, int]:
        seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not self._inside(line.path) and (seen.st_dev, seen.st_ino) != (line.device, line.inode):
            raise _NotOursError("device_or_inode_differs")
        if not line.directory:
            if not stat.S_ISREG(seen.st_mode):
                raise _NotOursError("not_a_regular_file")
            self._unlink(name, folder, posixpath.normpath(line.path))
            return _Fate.REMOVED, seen.st_size
        if not stat.S_ISDIR(seen.st_mode):
            raise _NotOursError("not_a_directory")
        whole, freed = self._empty(name, folder, posixpath.normpath(line.path), seen.st_dev)
        return (_Fate.REMOVED if whole else _Fate.KEPT), freed

    def _empty(self, name: str, folder: int, path: str, device: int) -> tuple[bool, int]:
        """Remove a folder with what it holds, except spared paths and other file systems; (did it all go, bytes)."""
        if path in self._spared:
            return False, 0
        here = _open_folder(name, folder)
        try:
            if os.fstat(here).st_dev != device:
                return False, 0
            whole, freed = self._empty_out(here, path, device)
        finally:
            os.close(here)
        if whole:
            os.rmdir(name, dir_fd=folder)
            self._log.debug("phase7_removed", path=path)
        return whole, freed

    def _empty_out(self, here: int, path: str, device: int) -> tuple[bool, int]:
        with os.scandir(here) as entries:
            names = sorted(entry.name for entry in entries)
        whole, freed = True, 0
        for name in names:
            below = f"{path}/{name}"
            seen = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode):
                went, size = self._empty(name, here, below, device)
            elif below in self._spared:
                went, size = False, 0
            else:
                self._unlink(name, here, below)
                went, size = True, seen.st_size
            whole, freed = whole and went, freed + size
        return whole, freed

    def _unlink(self, name: str, folder: int, path: str) -> None:
        os.unlink(name, dir_fd=folder)
        self._log.debug("phase7_removed", path=path)


def _open_folder(name: str, folder: int) -> int:
    try:
        return os.open(name, _NO_LINK, dir_fd=folder)
    except NotADirectoryError:  # a symlink or a file stands where the session had a folder
        raise _NotOursError("not_reached_without_a_link") from None


def _folder_of(line: Artefact) -> str:
    return line.path if line.directory else posixpath.dirname(line.path)


def _tell(outcomes: list[_Outcome], keep: tuple[Artefact, ...], own_root: Path, log: Logger) -> None:
    """One line a family of kinds at INFO; files are named at DEBUG only (R6, P6)."""
    for family in _FAMILIES:
        went = [o for o in outcomes if o.artefact.kind in family.kinds and o.fate is _Fate.REMOVED]
        stayed = [line for line in keep if line.kind in family.kinds and line.kind not in NEVER]
        if went:
            folder = _common_folder([outcome.artefact for outcome in went], own_root)
            size = sum(outcome.freed_bytes for outcome in went)
            log.info(family.cleaned, directory=folder, removed=len(went), freed_bytes=size)
        if stayed:
            folder = _common_folder(stayed, own_root)
            log.info(family.retained, directory=folder, kind=family.kinds[0].value, kept=len(stayed))


def _common_folder(lines: list[Artefact], own_root: Path) -> str:
    """The folder that a line of the log names: of what lay in the session's own folder, if anything did."""
    folders = [_folder_of(line) for line in lines]
    own = [folder for folder in folders if posixpath.commonpath([folder, str(own_root)]) == str(own_root)]
    return posixpath.commonpath(own or folders)
