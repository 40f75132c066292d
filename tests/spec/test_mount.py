"""Mount modes: what is inferred, from where, and what follows from it (SPEC M1 to M4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import values
from zemosaicd.core import mount
from zemosaicd.core.headers import facts as facts_of
from zemosaicd.model import LogNote, MountMode
from zemosaicd.shell.language import load_catalogue

EQ, ALT_AZ, UNKNOWN = MountMode.EQ, MountMode.ALT_AZ, MountMode.UNKNOWN

WORDS: list[tuple[object, MountMode | None]] = [
    *[(word, EQ) for word in ("EQ", "eq", " Eq ", "EQUATORIAL", "equatorial", "1", 1, 1.0, True, "e-q", "TRUE", "1.0")],
    *[(word, ALT_AZ) for word in ("ALT_AZ", "ALTAZ", "alt-az", "Alt Az", "altazimuth", "0", 0, 0.0, False, "0.0")],
    *[
        (word, None)
        for word in (
            "",
            "  ",
            None,
            "2",
            2,
            0.5,
            "-1",
            -1,
            "equator",
            "auto",
            10**400,
            math.nan,
            math.inf,
            "UNKNOWN",
            [1],
        )
    ],
]


@pytest.mark.parametrize(("value", "expected"), WORDS, ids=lambda v: repr(v))
def test_M1_values_are_read_without_regard_to_case_spaces_and_hyphens(
    value: object, expected: MountMode | None
) -> None:
    """The whole table, numbers and logicals as headers give them included; anything else says nothing."""
    assert mount.read_mode(value) is expected


SOURCES: list[tuple[dict[str, Any], MountMode | None]] = [
    ({"MOUNT_MODE": "EQ", "_eqmode_mode": "ALT_AZ", "EQMODE": 0, "header": {"EQMODE": 0}}, EQ),
    ({"MOUNT_MODE": 1, "_eqmode_mode": "ALT_AZ"}, ALT_AZ),
    ({"MOUNT_MODE": "nonsense", "_eqmode_mode": "ALT_AZ", "EQMODE": 1}, ALT_AZ),
    ({"_eqmode_mode": "EQ", "EQMODE": 0}, EQ),
    ({"EQMODE": 1, "header": {"EQMODE": 0}}, EQ),
    ({"EQMODE": 0, "header": {"EQMODE": 1}}, ALT_AZ),
    ({"header": {"EQMODE": 1}}, EQ),
    ({"header": "not a header"}, None),
    ({"MOUNT_MODE": "", "EQMODE": None, "header": {}}, None),
    ({}, None),
]


@pytest.mark.parametrize(("entry", "expected"), SOURCES)
def test_M1_sources_have_their_order(entry: Mapping[str, object], expected: MountMode | None) -> None:
    """MOUNT_MODE if a string, else _eqmode_mode, else EQMODE (1 is EQ, 0 is ALT_AZ), else the kept header's EQMODE."""
    assert mount.entry_mode(entry) is expected


def test_M1_the_first_entry_decides_and_a_few_more_are_asked() -> None:
    """A group whose first entries say nothing follows the next that does; the far ones are not looked at."""
    silent: dict[str, object] = {}
    assert mount.group_mode([{"EQMODE": 1}, {"EQMODE": 0}]) is EQ
    assert mount.group_mode([silent, silent, {"EQMODE": 0}, {"EQMODE": 1}]) is ALT_AZ
    assert mount.group_mode([silent] * 50 + [{"EQMODE": 1}]) is UNKNOWN
    assert mount.group_mode([]) is UNKNOWN


CONFIGURED = [("auto", EQ), ("EQ", EQ), ("ALT_AZ", ALT_AZ)]


@pytest.mark.parametrize(("configured", "expected"), CONFIGURED)
def test_M1_session_mount_mode_fills_the_frames_at_the_scan(configured: str, expected: MountMode) -> None:
    """`session.mount_mode` other than auto stands before whatever the header says."""
    assert mount.frame_mode(values.facts(eqmode_card="1"), configured) is expected
    named = values.facts(mount_mode_card="equatorial", eqmode_card="0")
    assert mount.frame_mode(named, configured) is expected


def test_M1_a_frame_that_says_nothing_is_unknown() -> None:
    """As real Seestar frames are, unless equatorial."""
    assert mount.frame_mode(values.facts(), "auto") is UNKNOWN


@pytest.mark.parametrize(
    ("card", "expected"), [(1, EQ), (0, ALT_AZ), (1.0, EQ), (True, EQ), (False, ALT_AZ), ("0", ALT_AZ)]
)
def test_M1_the_card_is_understood_as_it_is_written(card: bool | int | float | str, expected: MountMode) -> None:
    """A number, a float, a logical or a text in the header come to the same mode."""
    cards: dict[str, Any] = {"NAXIS": 2, "NAXIS1": 100, "NAXIS2": 100, "BITPIX": 16, "EQMODE": card, "EXPTIME": 10.0}
    assert mount.frame_mode(facts_of(cards, "Light_1.fits"), "auto") is expected


@given(st.lists(st.sampled_from(list(MountMode)), max_size=30))
def test_M2_the_summary_counts_every_frame(modes: list[MountMode]) -> None:
    """All three modes are named, also with none of them; the counts add up."""
    counts = mount.summary(modes)
    assert set(counts) == set(MountMode)
    assert sum(counts.values()) == len(modes)
    fields = mount.decision_notes(counts, "")[0].fields
    assert fields["total"] == len(modes)
    assert fields["contains_altaz"] == (ALT_AZ in modes)


def sentence(note: LogNote) -> str:
    """The note's line in English."""
    return load_catalogue("en").sentence(note.event, note.fields)


BRANCHES = [
    ({EQ: 5, UNKNOWN: 2}, False, (False, ""), []),
    ({EQ: 5, UNKNOWN: 2}, True, (False, "disabled"), ["warning"]),
    ({}, True, (False, "disabled"), ["warning"]),
    ({EQ: 5, ALT_AZ: 1}, True, (True, ""), []),
    ({ALT_AZ: 3}, False, (True, "auto"), ["info"]),
]


@pytest.mark.parametrize(("counts", "asked", "expected", "levels"), BRANCHES)
def test_M2_the_session_decides(
    counts: dict[MountMode, int], asked: bool, expected: tuple[bool, str], levels: list[str]
) -> None:
    """Without an ALT_AZ frame never; with one always, by itself if nobody asked; at most one line says so."""
    assert mount.global_cleanup(counts, asked) == expected
    notes = mount.decision_notes(counts, expected[1])
    assert [n.level for n in notes[1:]] == levels


def test_M2_the_lines_are_those_of_the_contract() -> None:
    """The WARN word for word, the INFO by its key, the summary with its counts."""
    summary, disabled = mount.decision_notes({EQ: 4, UNKNOWN: 1}, "disabled")
    assert sentence(disabled) == "ALTaz cleanup requested but no ALT_AZ frames detected -> disabled (EQ-only run)."
    assert sentence(summary) == "WORKER_EQMODE_SUMMARY: eq=4 altaz=0 unknown=1 total=5 contains_altaz=False"
    assert summary.level == "info"
    auto = mount.decision_notes({ALT_AZ: 2}, "auto")[1]
    assert "AUTO_ALTaz_cleanup" in sentence(auto)


GATES = [(ALT_AZ, True, True), (ALT_AZ, False, False), (EQ, True, False), (EQ, False, False), (UNKNOWN, True, False)]


@pytest.mark.parametrize(("mode", "enabled", "expected"), GATES)
def test_M3_a_tile_is_gated_by_the_session_and_its_own_mode(mode: MountMode, enabled: bool, expected: bool) -> None:
    """Global and ALT_AZ; never EQ, never UNKNOWN."""
    assert mount.tile_cleanup(enabled, mode) is expected


def test_M3_the_gating_line_is_that_of_the_contract() -> None:
    """One debug line a tile, word for word."""
    note = mount.gating_note(7, ALT_AZ, True)
    assert note.level == "debug"
    assert sentence(note) == "P3_ALTaz_GATING: tile_id=7 eqmode=ALT_AZ global_enabled=True => tile_enabled=True"
    off = "P3_ALTaz_GATING: tile_id=8 eqmode=EQ global_enabled=True => tile_enabled=False"
    assert sentence(mount.gating_note(8, EQ, True)) == off


def test_M4_a_mixed_session_gates_only_its_altaz_tiles() -> None:
    """EQ, ALT_AZ and UNKNOWN of one pointing become three tiles; the clean-up that came on by itself takes one."""
    wcs = values.wcs_at(10.0, 20.0)
    plan = values.plan_of([values.frame_plan(i, wcs, mount_mode=list(MountMode)[i % 3]) for i in range(9)])
    gates = {t.mount_mode: mount.tile_cleanup(plan.altaz_cleanup, t.mount_mode) for t in plan.tiles}
    assert gates == {EQ: False, ALT_AZ: True, UNKNOWN: False}
    assert all(len(t.frames) == 3 for t in plan.tiles)


def test_M4_no_tile_of_an_eq_only_session_is_gated() -> None:
    """Also when the clean-up was asked for."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0), mount_mode=EQ) for i in range(4)]
    plan = values.plan_of(frames, altaz_cleanup_requested=True)
    assert not any(mount.tile_cleanup(plan.altaz_cleanup, t.mount_mode) for t in plan.tiles)
