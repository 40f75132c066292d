"""What Phase 7 may remove: a decision over the session's own manifest (SPEC section 4).

Nothing is ever found by pattern. The patterns of P3 to P5 say what the *kinds* are called; what goes is a line of the
manifest or it does not go (P9).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from zemosaicd.model import Artefact, ArtefactKind

GIGABYTE = 10**9
GLOBAL_WCS_MARK = "global_mosaic_wcs"
COADD_PATTERNS = ("mosaic_*.dat", "coverage_*.dat", "zemosaic_*.dat", "mosaic_first_*")
NEVER = frozenset({ArtefactKind.OUTPUT, ArtefactKind.LOG})


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupPolicy:
    """The settings that decide (names as in zemosaicd.toml). `cleanup_temp_artifacts` None means absent: true (P1).

    `coadd_memmap_dir` "" means that the accumulators lie in the session's runtime directory.
    """

    cleanup_temp_artifacts: bool | None = True
    cache_retention: str = "run_end"
    coadd_use_memmap: bool = True
    coadd_cleanup_memmap: bool = True
    coadd_memmap_dir: str = ""
    two_pass_enabled: bool = False

    @property
    def on(self) -> bool:
        """The master switch (P1)."""
        return self.cleanup_temp_artifacts is not False

    @property
    def memmaps_go(self) -> bool:
        """Whether the two flags of P3 that can hold accumulators back are both set."""
        return self.coadd_use_memmap and self.coadd_cleanup_memmap


def doomed(manifest: Iterable[Artefact], policy: CleanupPolicy) -> tuple[tuple[Artefact, ...], tuple[Artefact, ...]]:
    """The manifest in two, each in manifest order: what is to be removed, and what stays."""
    lines = tuple(manifest)
    gone = tuple(_goes(line, policy) for line in lines)
    return (
        tuple(line for line, goes in zip(lines, gone, strict=True) if goes),
        tuple(line for line, goes in zip(lines, gone, strict=True) if not goes),
    )


def _goes(artefact: Artefact, policy: CleanupPolicy) -> bool:
    if artefact.kind in NEVER:
        return False
    if artefact.kind is ArtefactKind.CACHE:
        return policy.cache_retention != "keep"  # whatever the switch says (P8)
    if not policy.on:
        return False
    if _named_by_p3(artefact, policy):
        return policy.memmaps_go
    if artefact.kind is ArtefactKind.GLOBAL_WCS:
        return GLOBAL_WCS_MARK in posixpath.basename(artefact.path)  # under another name it is the user's (P5)
    return True  # P4, P6 (two_pass_enabled has no say), P7, and every other temporary kind (P2)


def _named_by_p3(artefact: Artefact, policy: CleanupPolicy) -> bool:
    """Accumulators wherever they lie, and whatever carries one of P3's names directly in `coadd_memmap_dir`."""
    if artefact.kind is ArtefactKind.COADD_MEMMAP:
        return True
    if not policy.coadd_memmap_dir:
        return False
    folder, name = posixpath.split(posixpath.normpath(artefact.path))
    if folder != posixpath.normpath(policy.coadd_memmap_dir):
        return False
    return any(fnmatchcase(name, pattern) for pattern in COADD_PATTERNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedSession:
    """A failed session whose files wait for a resume: how long since it failed, and what it holds."""

    session: str
    age_days: float
    size_bytes: int


def expired(failed: Iterable[FailedSession], keep_days: float, keep_gb: float) -> tuple[str, ...]:
    """The failed sessions whose files are to go, oldest first: those past their days, then by age until the rest fits.

    `keep_gb` is in units of 10^9 bytes (P10).
    """
    oldest_first = sorted(failed, key=lambda one: (-one.age_days, one.session))
    held_bytes = sum(one.size_bytes for one in oldest_first)
    drop: list[str] = []
    for one in oldest_first:
        if one.age_days <= keep_days and held_bytes <= keep_gb * GIGABYTE:
            break
        drop.append(one.session)
        held_bytes -= one.size_bytes
    return tuple(drop)
