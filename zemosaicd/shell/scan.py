"""What lies in the watched folders right now: the reconciling scan, which is the truth (M1), and single looks.

Knows directories and stat; opens no file. The tree is walked by directory descriptors, each opened relative to its
parent without following links, so that a link swapped in for a folder leads nowhere (F17, M19). Names are bytes to the
kernel and `str` with surrogate escapes here, so that a name with byte 0xFF is a name like any other (M2). What cannot
be read is an outage, not a deletion: it is listed in `unreadable`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zemosaicd.core.intake import IntakeRules, NameKind, enters_folder, name_kind
from zemosaicd.model import Fingerprint

MAX_DEPTH = 24  # one descriptor a level; deeper is a loop of mounts or an accident
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
# fmt: off
NETWORK_TYPES = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gfs2", "ocfs2", "glusterfs", "davfs",
    "vboxsf", "virtiofs", "prl_fs", "fuse",
})
# fmt: on
Identity = tuple[int, int]
"""(device, inode) of a folder."""


@dataclass(slots=True)
class Scan:
    """One pass over all roots. `roots`: those that were there, and which folder they were.

    `unreadable`: path -> why; nothing under such a path may be taken for gone. `specials`: links, FIFOs, devices and
    sockets that were passed by.
    """

    frames: dict[str, Fingerprint] = field(default_factory=dict)
    markers: dict[str, Fingerprint] = field(default_factory=dict)
    roots: dict[str, Identity] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    specials: int = 0

    def hides(self, path: str) -> bool:
        """Whether `path` may still lie under something that could not be read."""
        while path not in self.unreadable:
            parent = path.rpartition("/")[0]
            if parent == path or not parent:
                return "/" in self.unreadable
            path = parent
        return True


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """The fingerprint of a stat result."""
    return Fingerprint(device=status.st_dev, inode=status.st_ino, size=status.st_size, mtime_ns=status.st_mtime_ns)


def scan_tree(roots: Iterable[str], rules: IntakeRules, prune: Iterable[str] = ()) -> Scan:
    """Every frame and marker under `roots` (absolute). Folders in `prune` (output, state) are not entered.

    They are known by device and inode, so that no other spelling or bind mount of them is entered either (F18).
    """
    scan = Scan()
    pruned = {identity for path in prune if (identity := _identity(path)) is not None}
    for root in roots:
        try:
            folder = os.open(root, FOLDER_FLAGS)
        except OSError as error:
            scan.unreadable[root] = error.strerror or str(error)
            continue
        try:
            status = os.fstat(folder)
            scan.roots[root] = (status.st_dev, status.st_ino)
            _walk(folder, root.rstrip("/"), scan, rules, pruned, MAX_DEPTH)
        finally:
            os.close(folder)
    return scan


def _identity(path: str) -> Identity | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None  # not made yet: nothing can lie in it
    return status.st_dev, status.st_ino


def _walk(folder: int, path: str, scan: Scan, rules: IntakeRules, pruned: set[Identity], depth: int) -> None:
    below: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if enters_folder(entry.name, rules):
                        below.append(entry.name)
                else:
                    _take(entry, f"{path}/{entry.name}", scan, rules)
    except OSError as error:  # ESTALE, EIO: the listing broke off (F39)
        scan.unreadable[path or "/"] = error.strerror or str(error)
    for name in below:
        _enter(folder, name, f"{path}/{name}", scan, rules, pruned, depth)


def _enter(
    parent: int, name: str, path: str, scan: Scan, rules: IntakeRules, pruned: set[Identity], depth: int
) -> None:
    if depth == 0:
        scan.unreadable[path] = f"more than {MAX_DEPTH} folders deep"
        return
    try:
        folder = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            scan.specials += 1  # swapped for a link while we looked
        else:
            scan.unreadable[path] = error.strerror or str(error)
        return
    try:
        status = os.fstat(folder)
        if (status.st_dev, status.st_ino) not in pruned:
            _walk(folder, path, scan, rules, pruned, depth - 1)
    finally:
        os.close(folder)


def _take(entry: os.DirEntry[str], path: str, scan: Scan, rules: IntakeRules) -> None:
    kind = name_kind(entry.name, rules)
    if kind is NameKind.OTHER:
        return
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        scan.unreadable[path] = error.strerror or str(error)
        return
    if not stat.S_ISREG(status.st_mode):
        scan.specials += 1
    elif kind is NameKind.FRAME:
        scan.frames[path] = fingerprint_of(status)
    else:
        scan.markers[path] = fingerprint_of(status)


def probe(paths: Iterable[str]) -> dict[str, Fingerprint]:
    """The fingerprints of those of `paths` that are regular files and can be looked at now."""
    found: dict[str, Fingerprint] = {}
    for path in paths:
        try:
            status = os.lstat(path)
        except OSError:
            continue  # whether it is gone or hidden, the next full scan says
        if stat.S_ISREG(status.st_mode):
            found[path] = fingerprint_of(status)
    return found


def filesystem_of(path: str, mounts: str) -> str:
    """The type of the file system that absolute `path` lies on, by the text of /proc/self/mounts ("": not listed)."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1]).rstrip("/")
        if (path == point or path.startswith(point + "/")) and len(point) >= best:
            best, kind = len(point), fields[2]  # of two on one point the later lies on top
    return kind


def network_filesystem(path: str) -> str:
    """The type of file system when it is one whose changes the kernel may not tell us of (F39), else ""."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    kind = filesystem_of(os.path.realpath(path), mounts)
    return kind if kind in NETWORK_TYPES or kind.startswith("fuse.") else ""
