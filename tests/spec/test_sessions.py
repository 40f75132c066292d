"""Which frames belong together, and when a session is complete (SPEC C3)."""

import math
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zemosaicd.core.sessions import (
    CloseCause,
    ClosingPolicy,
    SessionPolicy,
    SessionScope,
    closing,
    field_radius_deg,
    fold_target,
    night_of,
    position_name,
    session_for,
)
from zemosaicd.model import FrameFacts, Wcs

POLICY = SessionPolicy(longitude_deg=-75.0)
HOUR = 3600.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def facts(name: str = "M 94", when: str | None = "2025-03-27T01:20:32", **more: object) -> FrameFacts:
    given_facts = {"telescope": "S50_1d3fe189", "ra_deg": 192.7, "dec_deg": 41.1, "scale_arcsec": 2.37} | more
    return FrameFacts(width=1080, height=1920, object_name=name, observed_s=at(when) if when else None, **given_facts)  # type: ignore[arg-type]


def find(
    frame: FrameFacts, *known: SessionScope, policy: SessionPolicy = POLICY, folder: str = "", mtime_s: float = 0.0
) -> SessionScope:
    return session_for(frame, fallback_observed_s=mtime_s, known=known, policy=policy, folder=folder)


# ---- night ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instant", "longitude", "night"),
    [
        ("2025-03-27T01:20:32", -75.0, "2025-03-26"),
        ("2025-03-27T11:00:00", -75.0, "2025-03-26"),
        ("2025-03-27T17:00:01", -75.0, "2025-03-27"),
        ("2025-04-09T20:54:22", 10.0, "2025-04-09"),
        ("2025-04-10T03:00:00", 10.0, "2025-04-09"),
        ("2025-01-01T12:00:00", 170.0, "2025-01-01"),
        ("2025-01-01T12:00:00", -190.0, "2025-01-01"),
        ("2025-01-01T12:00:00", 360.0, "2025-01-01"),
        ("2024-12-31T23:59:00", 0.0, "2024-12-31"),
        ("1970-01-01T00:00:05", 0.0, "1969-12-31"),
    ],
)
def test_C3_night_is_the_date_of_local_solar_time_less_12h(instant: str, longitude: float, night: str) -> None:
    """An observing night keeps one date from noon to noon, wherever the telescope stands."""
    assert night_of(at(instant), longitude) == night


@given(st.floats(-180.0, 359.9), st.floats(0.0, 4e9))
def test_C3_one_date_from_noon_to_noon(longitude: float, instant: float) -> None:
    """Property: two frames of one solar night share its date; the same longitude written east or west is one place."""
    solar = instant + ((longitude + 180.0) % 360.0 - 180.0) * 240.0
    into_night = (solar - 12 * HOUR) % 86400.0
    first, last = instant - into_night + 1.0, instant - into_night + 86399.0
    assert night_of(first, longitude) == night_of(last, longitude) == night_of(first, longitude - 360.0)


def test_C3_longitude_comes_from_header_then_key_then_host() -> None:
    """SITELONG wins over `session.longitude_deg`, which wins over the host's UTC offset."""
    noonish = "2025-03-27T11:30:00"
    assert find(facts(when=noonish, site_longitude_deg=30.0)).night == "2025-03-27"
    assert find(facts(when=noonish)).night == "2025-03-26"
    assert find(facts(when=noonish), policy=SessionPolicy(host_offset_h=2.0)).night == "2025-03-27"
    assert find(facts(when=noonish, site_longitude_deg=math.nan)).night == "2025-03-26"


def test_C3_without_a_date_the_file_time_serves() -> None:
    """No DATE-OBS, or one outside all calendars: the fallback decides."""
    assert find(facts(when=None), mtime_s=at("2025-05-02T05:00:00")).night == "2025-05-01"
    broken = FrameFacts(width=1, height=1, object_name="M 94", observed_s=1e18)
    assert find(broken, mtime_s=at("2025-05-02T05:00:00")).night == "2025-05-01"


# ---- target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fold"),
    [("M 94", "m94"), (" m  94", "m94"), ("NGC-7023", "ngc-7023"), ("Unknown", ""), ("", ""), (" UNKNOWN ", "")],
)
def test_C3_targets_fold_case_and_spaces(name: str, fold: str) -> None:
    """Spelling does not split a session; what means unknown is no name."""
    assert fold_target(name) == fold


def test_C3_same_night_and_target_is_the_same_session() -> None:
    """Another spelling, another hour: the very scope that was known."""
    scope = find(facts())
    assert find(facts("m94", "2025-03-27T05:43:00"), scope) is scope
    assert find(facts("M 51"), scope) is not scope
    assert find(facts(when="2025-03-28T01:00:00"), scope).night == "2025-03-27"


def test_C3_telescopes_are_separate_by_policy() -> None:
    """Two telescopes make two sessions, or one when `session.by_telescope` is off."""
    scope = find(facts())
    assert find(facts(telescope="S50_12d98769"), scope).id == "2025-03-26_M-94_S50-12d98769"
    together = SessionPolicy(longitude_deg=-75.0, by_telescope=False)
    both = find(facts(), policy=together)
    assert both.id == "2025-03-26_M-94"
    assert find(facts(telescope="S50_12d98769"), both, policy=together) is both


def test_C3_nameless_frames_join_by_position() -> None:
    """An empty or Unknown target goes to the nearest session of that night and telescope whose field it touches."""
    named = find(facts())
    near = find(facts("M 106", ra_deg=193.6), named)
    assert find(facts("", ra_deg=192.9), named, near) is named
    assert find(facts("Unknown", ra_deg=193.5), named, near) is near
    far = find(facts("Unknown", ra_deg=299.97, dec_deg=22.73), named, near)
    assert far.id == "2025-03-26_J1959+2243_S50-1d3fe189"
    assert find(facts("", ra_deg=300.1, dec_deg=22.6), named, far) is far
    assert find(facts("", ra_deg=192.7, telescope="other"), named).telescope == "other"


def test_C3_position_matching_wraps_at_zero_hours() -> None:
    """Right ascension 359.9 and 0.1 are neighbours."""
    scope = find(facts("", ra_deg=359.9, dec_deg=-5.0))
    assert scope.target == "J2359-0500"
    assert find(facts("", ra_deg=0.1, dec_deg=-5.0), scope) is scope


def test_C3_a_header_solution_is_a_position() -> None:
    """Without RA and DEC, the centre of the header's own WCS counts."""
    wcs = Wcs(ra_deg=10.0, dec_deg=20.0, x_px=539.5, y_px=959.5, cd=(-6.6e-4, 0.0, 0.0, 6.6e-4))
    scope = find(facts("", ra_deg=None, dec_deg=None, scale_arcsec=0.0, wcs=wcs))
    assert scope.target == "J0040+2000"
    assert scope.field_radius_deg == pytest.approx(0.727, abs=0.01)


def test_C3_neither_name_nor_position_is_one_unknown_session() -> None:
    """Such frames of one night and telescope still come together."""
    scope = find(facts("", ra_deg=None, dec_deg=None))
    assert scope.id == "2025-03-26_Unknown_S50-1d3fe189"
    assert find(facts("unknown", ra_deg=math.nan, dec_deg=1.0), scope) is scope


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (299.9, 22.72, "J1959+2243"),
        (0.0, -0.5, "J0000-0030"),
        (359.999, 90.0, "J2359+9000"),
        (360.0, 0.0, "J0000+0000"),
    ],
)
def test_C3_positions_have_readable_names(ra: float, dec: float, name: str) -> None:
    """Hours, minutes, degrees, minutes: as catalogues write it."""
    assert position_name(ra, dec) == name


def test_C3_field_without_scale_has_a_default() -> None:
    """A header without any scale still gives a reach."""
    assert field_radius_deg(FrameFacts(width=1000, height=1000)) == 0.5


# ---- whole folders and ids --------------------------------------------------------------------------------------


def test_C3_join_makes_one_session_of_a_folder() -> None:
    """Whatever the nights and telescopes; the id is the folder's name; another folder of that name gets its own."""
    join = SessionPolicy(join=True)
    scope = find(facts(), policy=join, folder="/data/M 94 all")
    assert (scope.id, scope.whole_folder) == ("M_94_all", "/data/M 94 all")
    late = facts("M 51", "2025-06-01T01:00:00", telescope="other")
    assert find(late, scope, policy=join, folder="/data/M 94 all") is scope
    other = find(late, scope, policy=join, folder="/nas/M 94 all")
    assert other.id.startswith("M_94_all-")
    assert find(facts(), scope, other).whole_folder == ""


def test_C3_ids_are_unique_and_stable() -> None:
    """Targets that read alike as file names get ids of their own, by a hash, not by order of arrival."""
    first = find(facts("IC 1396/A"))
    second = find(facts("IC 1396 A"), first)
    third = find(facts("ic 1396:a"), first, second)
    ids = {first.id, second.id.casefold(), third.id.casefold()}
    assert len(ids) == 3
    assert find(facts("IC 1396 A"), first, third).id == second.id


@given(st.text(max_size=400), st.text(max_size=400))
def test_F19_ids_are_harmless_file_names(target: str, telescope: str) -> None:
    """Property: whatever a header says, an id has only `[A-Za-z0-9._+-]`, at most 100 characters, and no path in it."""
    scope = find(facts(target, telescope=telescope))
    again = find(facts(target + "\u00e9", telescope=telescope), scope)
    for name in (scope.id, again.id):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name)
    folder = find(facts(), policy=SessionPolicy(join=True), folder="/x/" + target.replace("/", ""))
    assert re.fullmatch(r"[A-Za-z0-9+][A-Za-z0-9._+-]{0,99}", folder.id)


# ---- closing ----------------------------------------------------------------------------------------------------

QUIET = ClosingPolicy(quiet_s=HOUR)
MORNING = ClosingPolicy(quiet_s=12 * HOUR, close_at="07:30")


def test_C3_closes_after_quiet_time_and_says_until_when() -> None:
    """Quiet time counts from the last arrival; before, the answer names what is waited for and until when."""
    waits = closing(QUIET, now_s=500.0, last_arrival_s=100.0, local_s=0.0)
    assert (waits.cause, waits.waits_for, waits.due_s) == (None, CloseCause.QUIET, 3700.0)
    assert closing(QUIET, now_s=3700.0, last_arrival_s=100.0, local_s=0.0).cause is CloseCause.QUIET


def test_C3_closes_at_the_hour() -> None:
    """`session.close_at` is the first such local time after the last arrival, if that comes before quiet time ends."""
    arrival_local = at("2025-03-27T04:00:00")
    waits = closing(MORNING, now_s=60.0, last_arrival_s=0.0, local_s=arrival_local + 60.0)
    assert (waits.cause, waits.waits_for, waits.due_s) == (None, CloseCause.TIME, 3.5 * HOUR)
    due = closing(MORNING, now_s=3.5 * HOUR, last_arrival_s=0.0, local_s=at("2025-03-27T07:30:00"))
    assert due.cause is CloseCause.TIME
    evening = closing(MORNING, now_s=0.0, last_arrival_s=0.0, local_s=at("2025-03-27T18:00:00"))
    assert evening.waits_for is CloseCause.QUIET


def test_C3_an_arrival_on_the_hour_waits_for_the_next_day() -> None:
    """A late frame just after the session was closed at 07:30 is not closed by the same 07:30 again."""
    policy = ClosingPolicy(quiet_s=48 * HOUR, close_at="07:30")
    waits = closing(policy, now_s=0.0, last_arrival_s=0.0, local_s=at("2025-03-27T07:30:00"))
    assert (waits.cause, waits.due_s) == (None, 24 * HOUR)


@pytest.mark.parametrize("jump_s", [-86400.0, -3600.0, 3600.0, 86400.0, 55 * 365.25 * 86400.0])
def test_F20_a_jump_of_the_wall_clock_closes_nothing_early(jump_s: float) -> None:
    """Set by a day, by DST, or from 1970 to now: quiet time is untouched, and morning is where the clock says."""
    local = at("2025-03-27T02:00:00")
    assert closing(QUIET, now_s=60.0, last_arrival_s=0.0, local_s=local + jump_s).cause is None
    after = closing(MORNING, now_s=60.0, last_arrival_s=0.0, local_s=local + jump_s)
    assert after.cause is None
    local_at_close = local + jump_s + after.due_s - 60.0
    assert local_at_close % 86400.0 == pytest.approx(7.5 * HOUR)
