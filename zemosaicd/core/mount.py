"""How the mount followed the sky, inferred from what is already in memory, and what follows from it (SPEC M1 to M4).

Rule 1: no file is opened here. Rule 2: EQ, ALT_AZ and UNKNOWN never share a group. Rule 3: the ALT-AZ clean-up is
decided for the session first and for a tile second, and a tile that is not ALT_AZ never gets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from zemosaicd.model import FrameFacts, LogNote, MountMode

_WORDS = {
    "EQ": MountMode.EQ,
    "EQUATORIAL": MountMode.EQ,
    "TRUE": MountMode.EQ,
    "ALTAZ": MountMode.ALT_AZ,
    "ALTAZIMUTH": MountMode.ALT_AZ,
    "AZ": MountMode.ALT_AZ,
    "FALSE": MountMode.ALT_AZ,
}
_NUMBERS = {1.0: MountMode.EQ, 0.0: MountMode.ALT_AZ}
_ENTRIES_LOOKED_AT = 5


def read_mode(value: object) -> MountMode | None:
    """The mount mode that a header or configuration value names, without regard to case, spaces, hyphens; else None."""
    if not isinstance(value, str | int | float):
        return None
    try:
        return _NUMBERS.get(float(value))  # 1, 1.0, "1", True; -1 is no hyphenated 1
    except (ValueError, OverflowError):
        return _WORDS.get("".join(c for c in str(value).upper() if c.isalnum()))


def entry_mode(entry: Mapping[str, object]) -> MountMode | None:
    """M1 for one entry: MOUNT_MODE if a string, else _eqmode_mode, else EQMODE, else the kept header's EQMODE."""
    named = entry.get("MOUNT_MODE")
    header = entry.get("header")
    candidates = [
        named if isinstance(named, str) else None,
        entry.get("_eqmode_mode"),
        entry.get("EQMODE"),
        header.get("EQMODE") if isinstance(header, Mapping) else None,
    ]
    return next((mode for mode in map(read_mode, candidates) if mode is not None), None)


def group_mode(entries: Sequence[Mapping[str, object]]) -> MountMode:
    """M1 for a group: the first entry, then a few more; UNKNOWN if none of them says."""
    modes = (entry_mode(entry) for entry in islice(entries, _ENTRIES_LOOKED_AT))
    return next((mode for mode in modes if mode is not None), MountMode.UNKNOWN)


def entry_of(facts: FrameFacts, configured: str) -> dict[str, object]:
    """The group entry of a frame: `session.mount_mode` other than auto fills MOUNT_MODE at the scan."""
    mode = configured if configured != "auto" else facts.mount_mode_card
    return {"MOUNT_MODE": mode or None, "EQMODE": facts.eqmode_card or None}


def frame_mode(facts: FrameFacts, configured: str) -> MountMode:
    """The mount mode of one frame."""
    return group_mode([entry_of(facts, configured)])


def summary(modes: Iterable[MountMode]) -> dict[MountMode, int]:
    """Counts of each mode (Phase 0's WORKER_EQMODE_SUMMARY)."""
    counts = dict.fromkeys(MountMode, 0)
    for mode in modes:
        counts[mode] += 1
    return counts


def global_cleanup(counts: Mapping[MountMode, int], requested: bool) -> tuple[bool, str]:
    """M2: (ALT-AZ clean-up on for the session, decision: "", "disabled" or "auto")."""
    if counts.get(MountMode.ALT_AZ, 0) == 0:
        return False, "disabled" if requested else ""
    return True, "" if requested else "auto"


def tile_cleanup(enabled: bool, mode: MountMode) -> bool:
    """M3: global and the group is ALT_AZ."""
    return enabled and mode is MountMode.ALT_AZ


def gating_note(tile: int, mode: MountMode, enabled: bool) -> LogNote:
    """M3's debug line."""
    fields: dict[str, object] = {
        "tile_id": tile,
        "eqmode": mode.value,
        "global_enabled": enabled,
        "tile_enabled": tile_cleanup(enabled, mode),
    }
    return LogNote(level="debug", event="P3_ALTaz_GATING", fields=fields)


def decision_notes(counts: Mapping[MountMode, int], decision: str) -> list[LogNote]:
    """Phase 0's and M2's lines: the summary, contains_altaz, and what was decided."""
    fields: dict[str, object] = {
        "eq": counts.get(MountMode.EQ, 0),
        "altaz": counts.get(MountMode.ALT_AZ, 0),
        "unknown": counts.get(MountMode.UNKNOWN, 0),
        "total": sum(counts.values()),
        "contains_altaz": counts.get(MountMode.ALT_AZ, 0) > 0,
    }
    notes = [LogNote(level="info", event="WORKER_EQMODE_SUMMARY", fields=fields)]
    if decision == "disabled":
        notes.append(LogNote(level="warning", event="ALTAZ_CLEANUP_DISABLED", fields={}))
    elif decision == "auto":
        notes.append(LogNote(level="info", event="AUTO_ALTaz_cleanup", fields={"altaz": fields["altaz"]}))
    return notes
