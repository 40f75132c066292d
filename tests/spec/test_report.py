"""report.json: every frame has a fate, every hole a reason, and nothing in it is beyond JSON (SPEC sections 9, 10)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from tests import values
from zemosaicd.core import events as ev
from zemosaicd.core.lifecycle import SessionState, fold
from zemosaicd.core.plan import PlanSettings, make_plan
from zemosaicd.core.report import GOOD, HOLES, SUSPECT, build_report, doubts, plain_numbers
from zemosaicd.model import FramePlan, LeftOut, Reason

S = "night"
UNSOLVED = Reason(rule="unsolved", value=3, threshold=8, message="3 stars")
NO_SKY = Reason(rule="no_sky", value=0.0, threshold=0.1, message="dark")
COST = {"seconds": 2.0, "peak_rss_mb": 300.0, "predicted_mb": 200.0}


def night(
    frames: list[FramePlan],
    *,
    failed: Iterable[int] = (),
    without: dict[int, list[str]] | None = None,
    injected: dict[int, dict[str, Any]] | None = None,
    **settings: Any,
) -> SessionState:
    """A session of these frames, one that was refused (/in/dark) and one that was not solved (/in/lost), stacked."""
    left = LeftOut(frame="lost", path="/in/lost", reason=UNSOLVED)
    plan = make_plan(frames, [left], PlanSettings(**settings))
    paths = [f.path for f in frames] + ["/in/lost", "/in/dark"]
    file = values.fingerprint()
    events: list[ev.Event] = [
        ev.FrameAssigned(session=S, path=p, fingerprint=file, facts=values.facts()) for p in paths
    ]
    events += [ev.FramePrepared(session=S, path=p, prepared=values.prepared(i)) for i, p in enumerate(paths[:-1])]
    events += [
        ev.FrameRejected(session=S, path="/in/dark", fingerprint=file, reason=NO_SKY),
        ev.SessionClosed(session=S, revision=1, cause="quiet"),
        ev.SessionPlanned(session=S, revision=1, plan=plan, key="k"),
    ]
    for tile in plan.tiles:
        if tile.tile in set(failed):
            reason = Reason(rule="empty_tile", value=0, threshold=1, message="no pixel was seen")
            events.append(ev.TileFailed(session=S, revision=1, tile=tile.tile, reason=reason))
            continue
        figures = {"without": (without or {}).get(tile.tile, []), "seconds": 1.5, "peak_rss_mb": 250.0}
        figures["injected"] = (injected or {}).get(tile.tile, {})
        events.append(ev.TileDone(session=S, revision=1, tile=tile.tile, path="/t", frames_used=1, figures=figures))
    return fold(S, events)


def report_of(state: SessionState, mosaic: int = 0, **figures: Any) -> dict[str, Any]:
    """The report of one of its mosaics."""
    assert state.plan is not None
    return build_report(state, state.plan.mosaics[mosaic], figures, COST)


def test_every_frame_is_used_or_rejected_with_rule_value_and_threshold() -> None:
    """In session, planned, refused or unsolved: each path has exactly one fate."""
    frames = values.field(2, 2)
    report = report_of(night(frames))
    told = report["frames"]
    assert (told["total"], told["used"], told["elsewhere"]) == (6, 4, 0)
    assert [f["path"] for f in told["list"]] == [f.path for f in frames]
    assert told["rejected"] == [
        {"path": "/in/dark", "reason": "no_sky", "value": 0.0, "threshold": 0.1, "message": "dark"},
        {"path": "/in/lost", "reason": "unsolved", "value": 3, "threshold": 8, "message": "3 stars"},
    ]
    assert report["solver"] == {f.path: "catalogue" for f in frames}


def test_F31_frames_of_a_failed_tile_are_not_used() -> None:
    """They are in no pixel; what they get is the tile's reason, and the hole is named."""
    frames = values.field(1, 3, step=0.9)
    state = night(frames, failed=[2])
    report = report_of(state)
    assert state.plan is not None
    hole = state.plan.frames[state.plan.tiles[1].frames[0]].path
    assert (report["tiles_total"], report["num_master_tiles"]) == (3, 2)
    assert [t["tile"] for t in report["tiles_failed"]] == [2]
    assert (report["frames"]["used"], report["frames"]["total"]) == (2, 5)
    assert [(r["path"], r["reason"]) for r in report["frames"]["rejected"]][2:] == [(hole, "empty_tile")]
    assert report["verdict"] == HOLES


def test_P10_a_frame_whose_cache_was_lost_is_named() -> None:
    """It was planned and is in no pixel."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0)) for i in range(3)]
    report = report_of(night(frames, without={1: [frames[1].frame]}))
    assert report["frames"]["used"] == 2
    assert [(r["path"], r["reason"]) for r in report["frames"]["rejected"]][2:] == [(frames[1].path, "cache_lost")]


def test_R8_a_frame_lost_to_one_tile_and_kept_by_another_is_used() -> None:
    """Tiles share frames; one that is in the picture is not rejected."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0)) for i in range(7)]
    state = night(frames, without={1: [frames[3].frame]}, batch_cap=4, batch_overlap=1)
    report = report_of(state)
    assert report["frames"]["used"] == 7
    assert len(report["frames"]["rejected"]) == 2


def test_frames_of_another_filter_are_elsewhere() -> None:
    """A session of two filters has two mosaics and two reports; in each, total = used + elsewhere + rejected."""
    wcs = values.wcs_at(10.0, 20.0)
    frames = [values.frame_plan(i, wcs, filter_name="Ha" if i < 2 else "LP") for i in range(5)]
    state = night(frames)
    for mosaic, used in ((0, 2), (1, 3)):
        told = report_of(state, mosaic)["frames"]
        assert (told["used"], told["elsewhere"], told["total"]) == (used, 5 - used, 7)
        assert told["total"] == told["used"] + told["elsewhere"] + len(told["rejected"])


BAD: dict[str, dict[str, Any]] = {
    "seam": {"seams": {"worst_sigma": 3.01}},
    "tiles_disagree": {"seams": {"worst_sigma": 0.1, "gain_off_mag": 0.06}},
    "astrometry": {"scale_arcsec": 2.0, "certificate": {"astrometry": {"wanted": 30, "stars": 30, "rms_arcsec": 1.9}}},
    "stars_missing": {"scale_arcsec": 2.0, "certificate": {"astrometry": {"wanted": 30, "stars": 14}}},
    "noise": {"certificate": {"noise": {"ratio": [1.0, 2.1, 1.0]}}},
}


@pytest.mark.parametrize("rule", BAD)
def test_a_mosaic_out_of_its_limits_is_suspect_and_says_why(rule: str) -> None:
    """Each limit has a rule, the value, the threshold and words (SPEC section 9)."""
    report = report_of(night(values.field(1, 3)), **BAD[rule])
    assert report["verdict"] == SUSPECT
    (doubt,) = report["doubts"]
    assert doubt["reason"] == rule
    assert doubt["value"] > doubt["threshold"]
    assert doubt["message"]


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"seams": {"worst_sigma": 3.0, "gain_off_mag": 0.05}},
        {"seams": {"worst_sigma": math.nan, "gain_off_mag": None}},
        {"certificate": {"noise": {"ratio": None}, "astrometry": {"wanted": 9, "stars": 0}}},
        {"scale_arcsec": 2.0, "certificate": {"astrometry": {"wanted": 30, "stars": 15, "rms_arcsec": 1.8}}},
    ],
)
def test_what_was_not_measured_is_not_held_against_a_mosaic(figures: dict[str, Any]) -> None:
    """Nor what lies on its limit."""
    report = report_of(night(values.field(1, 3)), **figures)
    assert (report["verdict"], report["doubts"]) == (GOOD, [])


def test_frames_that_do_not_lie_on_each_other_make_it_suspect() -> None:
    """The joint solution's residual is in the plan's figures."""
    assert doubts({}, {"residual_px": 0.5}) == []
    (doubt,) = doubts({}, {"residual_px": 0.51})
    assert (doubt.rule, doubt.value, doubt.threshold) == ("registration", 0.51, 0.5)


def test_injected_stars_are_told_of_all_tiles_together() -> None:
    """The median tile's flux a channel, and the worst star of all; lost light makes the mosaic suspect."""
    told = {"stars": 9, "flux_ratio": [1.0, 0.99], "flux_worst": 0.97, "offset_px": 0.01, "offset_max_px": 0.05}
    other = {"stars": 4, "flux_ratio": [0.88, 0.87], "flux_worst": 0.8, "offset_px": 0.03, "offset_max_px": 0.04}
    frames = values.field(1, 3, step=0.9)
    report = report_of(night(frames, injected={1: told, 3: other}))
    assert report["certificate"]["injected"] == {
        "stars": 13, "flux_ratio": [0.94, 0.93], "flux_worst": 0.8, "offset_px": 0.02, "offset_max_px": 0.05
    }  # fmt: skip
    assert [d["reason"] for d in report["doubts"]] == ["flux_lost"]


def test_missing_tiles_are_holes_whatever_else_is_wrong() -> None:
    """And what else is wrong is told beside it."""
    report = report_of(night(values.field(1, 3, step=0.9), failed=[2]), seams={"worst_sigma": 9.0})
    assert (report["verdict"], [d["reason"] for d in report["doubts"]]) == (HOLES, ["seam"])


def test_a_mosaic_placed_by_the_pointing_alone_is_suspect() -> None:
    """It is marked as such (DESIGN, "Astrometry without the network")."""
    frames = values.field(1, 2, solver="pointing")
    assert report_of(night(frames))["verdict"] == SUSPECT


def test_nan_becomes_null_and_the_report_is_json() -> None:
    """Whatever the phases measured."""
    frames = values.field(1, 3, residual_px=math.nan)
    report = report_of(night(frames), seams={"worst_sigma": math.nan, "pairs": [{"after_sigma": (math.inf, 1.0)}]})
    text = json.dumps(report, allow_nan=False)
    back = json.loads(text)
    assert back["frames"]["list"][0]["residual_px"] is None
    assert back["seams"] == {"worst_sigma": None, "pairs": [{"after_sigma": [None, 1.0]}]}
    assert back["verdict"] == GOOD


def test_numbers_are_plain_and_short() -> None:
    """Six digits, keys as texts, tuples as lists; integers, logicals, texts and None stay."""
    given = {1: np.float64(1.23456789), "t": (1, True, None, "x"), "inf": -math.inf}
    assert plain_numbers(given) == {"1": 1.23457, "t": [1, True, None, "x"], "inf": None}


def test_phases_tell_their_cost() -> None:
    """Seconds add up over frames and tiles, peaks are the highest, predictions stand beside them."""
    report = report_of(night(values.field(1, 2)))
    assert report["phases"]["1"] == {"seconds": 1.5, "peak_rss_mb": 100.0, "predicted_mb": None}
    assert report["phases"]["3"] == {"seconds": 3.0, "peak_rss_mb": 250.0, "predicted_mb": 0.0}
    assert report["phases"]["5"] == COST
    assert set(report["phases"]) == {"1", "2", "3", "5"}


def test_a_report_needs_a_plan() -> None:
    """Without one there is nothing to report on, and that is said."""
    state = night(values.field(1, 1))
    assert state.plan is not None
    with pytest.raises(ValueError, match="nothing planned"):
        build_report(SessionState(S), state.plan.mosaics[0], {}, COST)


def test_a_mosaic_of_less_than_half_of_the_night_is_suspect() -> None:
    """Nine frames of ten that no catalogue could place are not a good night, whatever the tenth looks like."""
    assert report_of(night(values.field(1, 1)))["verdict"] == SUSPECT  # one of three
    assert report_of(night(values.field(1, 2)))["verdict"] == GOOD  # two of four
