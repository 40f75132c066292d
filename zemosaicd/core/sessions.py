"""Which frames belong together, and when a session is complete (SPEC C3).

Knows headers' facts and numbers for time; knows no disk and no clock. A session is one observing night and one target
(and one telescope, by policy), or one whole folder. Reopening by a late frame is the life cycle's business
(core.lifecycle): a frame that falls into a closed scope gets that scope, and the session a new revision.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256

from zemosaicd import sphere
from zemosaicd.core.cards import slug
from zemosaicd.model import FrameFacts, Grid

DEFAULT_RADIUS_DEG = 0.5  # of a field whose scale the header does not give
UNNAMED = frozenset({"", "unknown", "none", "n/a"})
MAX_NAME = 100  # F19
DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionScope:
    """What a session takes in. `target` and `telescope` are as first spelled; `whole_folder` "" is night and target.

    `ra_deg, dec_deg, field_radius_deg`: centre and half diagonal of the first frame, None or 0 when unknown.
    """

    id: str
    night: str
    target: str
    telescope: str = ""
    ra_deg: float | None = None
    dec_deg: float | None = None
    field_radius_deg: float = 0.0
    whole_folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPolicy:
    """`longitude_deg` (east positive) and then `host_offset_h` (hours ahead of UTC) serve frames without SITELONG."""

    longitude_deg: float | None = None
    host_offset_h: float = 0.0
    by_telescope: bool = True
    join: bool = False


def night_of(observed_s: float, longitude_deg: float) -> str:
    """The observing night (ISO date) of an instant: the date of its local mean solar time less 12 h (C3).

    Errors: OverflowError, OSError or ValueError for instants outside the years 1 to 9999.
    """
    east_deg = (longitude_deg + 180.0) % 360.0 - 180.0
    local = datetime.fromtimestamp(observed_s, tz=UTC) + timedelta(hours=east_deg / 15.0 - 12.0)
    return local.date().isoformat()


def fold_target(name: str) -> str:
    """A target's name without regard to case, spaces and Unicode spelling; "" for what means unknown."""
    folded = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return "" if folded in UNNAMED else folded


def position_name(ra_deg: float, dec_deg: float) -> str:
    """A target's name by its position, e.g. `J1959+2243`: hours and minutes, degrees and minutes, truncated."""
    ra_min = int(ra_deg % 360.0 * 4.0)
    dec_min = int(abs(dec_deg) * 60.0)
    sign = "-" if dec_deg < 0 else "+"
    return f"J{ra_min // 60:02d}{ra_min % 60:02d}{sign}{dec_min // 60:02d}{dec_min % 60:02d}"


def name_part(text: str, limit: int) -> str:
    """`text` as one part of a session's id: `cards.slug` with dashes, because `_` separates the parts."""
    return re.sub(r"-{2,}", "-", slug(text).replace("_", "-"))[:limit].rstrip("-.")


def session_for(
    facts: FrameFacts,
    *,
    fallback_observed_s: float,
    known: Iterable[SessionScope],
    policy: SessionPolicy,
    folder: str = "",
) -> SessionScope:
    """The session that a frame belongs to: one of `known` (that very object), or a new scope.

    `fallback_observed_s` (Unix seconds; the file's mtime) serves frames without DATE-OBS. With `policy.join` the frame
    belongs to `folder` whatever its night; else `folder` is not looked at. `known` must hold all scopes that were ever
    opened, closed ones too, so that ids stay unique and a late frame finds its session.
    """
    scopes = list(known)
    night = _night(facts, fallback_observed_s, policy)
    centre = _centre(facts)
    radius_deg = field_radius_deg(facts)
    if policy.join:
        found = next((s for s in scopes if s.whole_folder == folder), None)
        name = folder.rstrip("/").rpartition("/")[2]
        stem, identity, target, telescope = slug(name), folder, " ".join(facts.object_name.split()) or name, ""
    else:
        telescope = " ".join(facts.telescope.split()) if policy.by_telescope else ""
        tonight = [s for s in scopes if not s.whole_folder and s.night == night and _same(s.telescope, telescope)]
        found = _by_target(facts, centre, radius_deg, tonight)
        target = _target(facts, centre)
        stem = _stem(night, target, telescope)
        identity = "\0".join((night, fold_target(target), _fold(telescope)))
    return found or SessionScope(
        id=_unique(stem, identity, scopes),
        night=night,
        target=target,
        telescope=telescope,
        ra_deg=centre[0] if centre else None,
        dec_deg=centre[1] if centre else None,
        field_radius_deg=radius_deg,
        whole_folder=folder if policy.join else "",
    )


def field_radius_deg(facts: FrameFacts) -> float:
    """Half the diagonal of a frame's field; `DEFAULT_RADIUS_DEG` when the header gives no scale."""
    scale = facts.scale_arcsec
    if not (math.isfinite(scale) and scale > 0):
        scale = sphere.scale_arcsec(facts.wcs) if facts.wcs else 0.0
    radius = math.hypot(facts.width, facts.height) / 2 * scale / 3600
    return radius if math.isfinite(radius) and radius > 0 else DEFAULT_RADIUS_DEG


def _night(facts: FrameFacts, fallback_observed_s: float, policy: SessionPolicy) -> str:
    longitude = facts.site_longitude_deg
    if longitude is None or not math.isfinite(longitude):
        longitude = policy.longitude_deg if policy.longitude_deg is not None else policy.host_offset_h * 15.0
    for observed_s in (facts.observed_s, fallback_observed_s):
        if observed_s is not None and math.isfinite(observed_s):
            try:
                return night_of(observed_s, longitude)
            except (OverflowError, OSError, ValueError):
                continue  # a date outside all calendars is no date
    return night_of(0.0, longitude)


def _centre(facts: FrameFacts) -> tuple[float, float] | None:
    ra, dec = facts.ra_deg, facts.dec_deg
    if ra is not None and dec is not None and math.isfinite(ra) and math.isfinite(dec):
        return ra % 360.0, dec
    if facts.wcs is not None:
        return sphere.position(sphere.centre_of(Grid(wcs=facts.wcs, width=facts.width, height=facts.height)))
    return None


def _by_target(
    facts: FrameFacts, centre: tuple[float, float] | None, radius_deg: float, tonight: list[SessionScope]
) -> SessionScope | None:
    """By name; a frame without one goes to the nearest session whose field it touches."""
    name = fold_target(facts.object_name)
    if name or centre is None:
        return next((s for s in tonight if fold_target(s.target) == name), None)
    here = sphere.direction(*centre)
    reachable: list[tuple[float, str, SessionScope]] = []
    for scope in tonight:
        if scope.ra_deg is None or scope.dec_deg is None:
            continue
        distance = sphere.separation_deg(here, sphere.direction(scope.ra_deg, scope.dec_deg))
        if distance <= radius_deg + (scope.field_radius_deg or radius_deg):
            reachable.append((distance, scope.id, scope))
    return min(reachable, key=lambda r: r[:2])[2] if reachable else None


def _target(facts: FrameFacts, centre: tuple[float, float] | None) -> str:
    if fold_target(facts.object_name):
        return " ".join(facts.object_name.split())
    return position_name(*centre) if centre else "Unknown"


def _fold(name: str) -> str:
    return "".join(name.casefold().split())


def _same(a: str, b: str) -> bool:
    return _fold(a) == _fold(b)


def _stem(night: str, target: str, telescope: str) -> str:
    parts = [night, name_part(target, 40)]
    return "_".join(parts + [name_part(telescope, 30)] if telescope else parts)


def _unique(stem: str, identity: str, scopes: list[SessionScope]) -> str:
    """`stem`, with a few digits of its identity's hash if another session has that name already.

    Compared without case, because output folders may lie on a share that knows none.
    """
    taken = {s.id.casefold() for s in scopes}
    stem = stem[:MAX_NAME]
    digest = sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    length = 0
    while (name := f"{stem[: MAX_NAME - 1 - length]}-{digest[:length]}" if length else stem).casefold() in taken:
        length += 6
    return name


class CloseCause(StrEnum):
    """Why a session is closed (`SessionClosed.cause`)."""

    QUIET = "quiet"
    MARKER = "marker"
    TIME = "time"
    COMMAND = "command"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosingPolicy:
    """`session.quiet_min` in seconds, and `session.close_at` as "HH:MM" ("": never)."""

    quiet_s: float = 3600.0
    close_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """`cause`: close now, for this. Else `waits_for` says what will close the session, and `due_s` (monotonic) when."""

    cause: CloseCause | None
    waits_for: CloseCause
    due_s: float


def closing(
    policy: ClosingPolicy,
    *,
    now_s: float,
    last_arrival_s: float,
    local_s: float,
) -> Closing:
    """Whether an open session closes now, and if not, what it waits for and until when.

    `now_s, last_arrival_s`: monotonic; `local_s`: Unix time plus the current UTC offset. Quiet time is counted by the
    monotonic clock alone. The arrival's local time is reckoned back from the present one, so a wall clock that jumps
    (NTP at boot, DST) neither closes a session early nor leaves it open for a day (F20).
    """
    quiet_at_s = last_arrival_s + policy.quiet_s
    waits_for, due_s = CloseCause.QUIET, quiet_at_s
    if policy.close_at:
        arrival_local_s = local_s - (now_s - last_arrival_s)
        at_s = last_arrival_s + _until_time_of_day(policy.close_at, arrival_local_s)
        if at_s < quiet_at_s:
            waits_for, due_s = CloseCause.TIME, at_s
    return Closing(cause=waits_for if now_s >= due_s else None, waits_for=waits_for, due_s=due_s)


def _until_time_of_day(close_at: str, local_s: float) -> float:
    """Seconds from local time `local_s` to the next `close_at`; a whole day when it is that time right now."""
    hours, minutes = close_at.split(":")
    target_s = int(hours) * 3600.0 + int(minutes) * 60.0
    return DAY_S - (local_s - target_s) % DAY_S
