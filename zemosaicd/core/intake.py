"""When a file becomes a frame: observations of paths in, settled paths out (SPEC C2).

Knows names, fingerprints and numbers for time (monotonic seconds); knows no disk and no clock. A path is *settling*
until its size and mtime have been quiet for `settle_s`, then it is handed over once. Who looks inside may say that it
is not whole yet (`hold`): it is handed over again when it changes, and at growing intervals until `give_up_s` have
passed without a change. Whatever was handed over rests until its fingerprint changes; what is gone is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from zemosaicd.model import Fingerprint, Reason

FRAME_SUFFIXES = tuple(stem + packed for stem in (".fit", ".fits", ".fts") for packed in ("", ".gz", ".fz"))
IGNORED_FOLDERS = frozenset(
    {"@eadir", "lost+found", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
)
RELOOK_MIN_S = 1.0
RELOOK_MAX_S = 600.0


class NameKind(StrEnum):
    """What a file's name alone says."""

    FRAME = "frame"
    MARKER = "marker"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeRules:
    """The keys of `[watch]` that decide over files, and the name of the marker file ("": none)."""

    settle_s: float = 10.0
    give_up_s: float = 3600.0
    ignore: tuple[str, ...] = ()
    marker: str = ".done"


def name_kind(name: str, rules: IntakeRules) -> NameKind:
    """Whether a file of this name can be a frame, is the marker, or is none of our business.

    Hidden files (also `.nfsXXXX` and rsync's temporaries), `~` names and thumbnails (`*_thn*`) never count; `.part`,
    `.tmp`, `.filepart`, `.crdownload`, pictures, videos and text fall out because only FITS suffixes are accepted.
    """
    if name == rules.marker and name:
        return NameKind.MARKER
    folded = name.casefold()
    if not folded.endswith(FRAME_SUFFIXES) or folded.startswith((".", "~")) or "_thn" in folded:
        return NameKind.OTHER
    return NameKind.OTHER if _ignored(folded, rules) else NameKind.FRAME


def enters_folder(name: str, rules: IntakeRules) -> bool:
    """Whether a folder of this name is searched: not hidden ones, not those that NAS boxes and systems keep."""
    folded = name.casefold()
    return not (folded.startswith((".", "~")) or folded in IGNORED_FOLDERS or _ignored(folded, rules))


def _ignored(folded: str, rules: IntakeRules) -> bool:
    return any(fnmatchcase(folded, pattern.casefold()) for pattern in rules.ignore)


def _told(reason: Reason) -> str:
    """What a look found missing, with its figures."""
    figures = (("found", reason.value), ("needed", reason.threshold))
    measured = ", ".join(f"{word} {figure}" for word, figure in figures if figure is not None)
    return f"{reason.message or 'not whole'} ({reason.rule}{': ' if measured else ''}{measured})"


def same_state(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two fingerprints mean unchanged content: size and mtime (C2), the quick check that rsync relies on.

    Device and inode are left out: they change over a reboot or a remount, and on some FUSE systems at every look.
    """
    return a.size == b.size and a.mtime_ns == b.mtime_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A path that has been quiet for long enough to be looked into."""

    path: str
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why a path has not been taken yet, for status and `why`: `reason` None is still settling, else it is held.

    `quiet_s`: seconds since its last change; `look_at_s`: monotonic time of the next look.
    """

    path: str
    quiet_s: float
    look_at_s: float
    reason: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """`look_at_s` None: handed over, rests until it changes. `held`: what the last look inside found missing."""

    fingerprint: Fingerprint
    quiet_since_s: float
    look_at_s: float | None
    looks: int = 0
    held: Reason | None = None


class Intake:
    """All paths under the watched folders. Every operation is a dict operation a path (20,000 files at once, F38)."""

    def __init__(self, rules: IntakeRules) -> None:
        self.rules = rules
        self.markers_wait = False
        self._entries: dict[str, _Entry] = {}
        self._pending: set[str] = set()
        self._markers: dict[str, Fingerprint] = {}

    def unknown(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that were never observed: worth asking the journal about."""
        return [path for path in paths if path not in self._entries]

    def recall(self, known: Mapping[str, Fingerprint], now_s: float) -> None:
        """Take paths as already handed over in an earlier life, in the state that was judged then."""
        for path, fingerprint in known.items():
            self._entries[path] = _Entry(fingerprint=fingerprint, quiet_since_s=now_s, look_at_s=None)

    def observe(self, seen: Mapping[str, Fingerprint], now_s: float, *, wall_s: float | None = None) -> list[Settled]:
        """Take note of what lies there, and return what has settled, in path order.

        With `wall_s` (Unix time) a path seen for the first time counts as quiet since its mtime: for `process DIR`,
        where what lies there is old. Without it, quiet is only what was seen to be quiet (F20).
        """
        settled: list[Settled] = []
        for path, fingerprint in seen.items():
            entry = self._entries.get(path)
            if entry is None:
                age_s = 0.0 if wall_s is None else max(0.0, wall_s - fingerprint.mtime_ns / 1e9)
                entry = self._begin(path, fingerprint, now_s - age_s)
            elif not same_state(entry.fingerprint, fingerprint):
                entry = self._begin(path, fingerprint, now_s)
            if entry.look_at_s is not None and now_s >= entry.look_at_s:
                settled.append(Settled(path=path, fingerprint=fingerprint))
                self._entries[path] = replace(entry, look_at_s=None, looks=entry.looks + 1)
                self._pending.discard(path)
        return sorted(settled, key=lambda s: s.path)

    def _begin(self, path: str, fingerprint: Fingerprint, quiet_since_s: float) -> _Entry:
        look_at_s = quiet_since_s + self.rules.settle_s
        entry = _Entry(fingerprint=fingerprint, quiet_since_s=quiet_since_s, look_at_s=look_at_s)
        self._entries[path] = entry
        self._pending.add(path)
        return entry

    def hold(self, path: str, fingerprint: Fingerprint, reason: Reason, now_s: float) -> Reason | None:
        """A look inside says: not whole yet (F6). Returns the reason for rejecting it once `give_up_s` have passed.

        The rejection always rests on a look made after `give_up_s`, never on the clock alone. None: it waits; also
        when the path has changed or gone meanwhile, for then the verdict is about a state that is no more.
        """
        entry = self._entries.get(path)
        if entry is None or entry.look_at_s is not None or not same_state(entry.fingerprint, fingerprint):
            return None
        quiet_s = now_s - entry.quiet_since_s
        if quiet_s >= self.rules.give_up_s:
            message = f"still not whole after {quiet_s:.0f} s without a change: {_told(reason)}"
            return Reason(rule="incomplete", value=round(quiet_s, 1), threshold=self.rules.give_up_s, message=message)
        pause_s = min(max(self.rules.settle_s, RELOOK_MIN_S) * 2.0 ** min(entry.looks - 1, 16), RELOOK_MAX_S)
        look_at_s = min(now_s + pause_s, entry.quiet_since_s + self.rules.give_up_s)
        self._entries[path] = replace(entry, look_at_s=look_at_s, held=reason)
        self._pending.add(path)
        return None

    def missing(self, seen: Mapping[str, Fingerprint]) -> list[str]:
        """Paths that were observed before and are not among `seen`."""
        return [path for path in (*self._entries, *self._markers) if path not in seen]

    def forget(self, paths: Iterable[str]) -> None:
        """These are gone; should they come back, they start anew."""
        for path in paths:
            self._entries.pop(path, None)
            self._markers.pop(path, None)
            self._pending.discard(path)

    def markers(self, seen: Mapping[str, Fingerprint]) -> list[str]:
        """Markers to act on now: new or touched, and no frame beneath their folder is still settling.

        A user writes the marker when the copy is done; the frames need `settle_s` more, and must get in first:
        `markers_wait` says whether some were put off for that.
        """
        fresh = {path: fp for path, fp in seen.items() if not self._marker_known(path, fp)}
        busy = self._settling_folders() if fresh else set()
        due = {path: fp for path, fp in fresh.items() if path.rpartition("/")[0] not in busy}
        self.markers_wait = len(due) < len(fresh)
        self._markers.update(due)
        return sorted(due)

    def _marker_known(self, path: str, fingerprint: Fingerprint) -> bool:
        known = self._markers.get(path)
        return known is not None and same_state(known, fingerprint)

    def _settling_folders(self) -> set[str]:
        """Folders with a settling frame somewhere beneath them."""
        busy: set[str] = set()
        for path in self._pending:
            if self._entries[path].held is not None:
                continue
            folder = path.rpartition("/")[0]
            while folder not in busy:
                busy.add(folder)
                folder = folder.rpartition("/")[0]
        return busy

    def due_s(self, after_s: float) -> float | None:
        """Monotonic time, later than `after_s`, at which the next path wants to be looked at; None: nothing waits."""
        due = (self._entries[path].look_at_s for path in self._pending)
        return min((at for at in due if at is not None and at > after_s), default=None)

    def pending(self) -> list[str]:
        """Paths that are settling or held."""
        return list(self._pending)

    def waiting(self, now_s: float) -> list[Waiting]:
        """Every path that was not taken yet, and what it waits for, in path order."""
        entries = ((path, self._entries[path]) for path in sorted(self._pending))
        return [
            Waiting(path=path, quiet_s=now_s - entry.quiet_since_s, look_at_s=entry.look_at_s, reason=entry.held)
            for path, entry in entries
            if entry.look_at_s is not None
        ]
