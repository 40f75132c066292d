"""Detections that stay on the sensor while the sky moves never match as stars."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.starlists import ListNight, MadeLists, Place, make, pair_errors
from zemosaicd.science.fixed import fixed_pixels, fixed_places, without_fixed
from zemosaicd.science.registration import solve_session

HOT = 20


def night(**changes: Any) -> MadeLists:
    return make(ListNight(**{"frames": 16, "stars": 25, "rough": True, "seed": 7, "field": 7, **changes}))


def total(made: MadeLists) -> int:
    return sum(len(f.stars) for f in made.frames)


@pytest.mark.parametrize("moves", [{}, {"turn_deg": 60.0}, {"dither_px": 3.0}, {"frames": 4, "turn_deg": 20.0}])
@pytest.mark.parametrize("lists", [{"stars": 25, "rough": True}, {"stars": 200, "rough": False}])
def test_hot_pixels_are_dropped_and_stars_are_not(moves: dict[str, Any], lists: dict[str, Any]) -> None:
    """Twenty places that nine frames in ten detect, brighter than all stars: they go, and nothing else does."""
    clean, dirty = (night(hot=h, **moves, **lists) for h in (0, HOT))
    assert without_fixed(clean.frames)[1] == 0
    left, dropped = without_fixed(dirty.frames)
    hot = total(dirty) - total(clean)
    assert hot > 0.7 * HOT * len(dirty.frames)
    assert dropped == pytest.approx(hot, rel=0.12 if len(dirty.frames) < 5 else 0.01)
    assert sum(len(f.stars) for f in left) == total(dirty) - dropped


def test_hot_pixels_leave_no_trace_in_the_solution() -> None:
    """Almost as many of them as of stars: the frames lie as they do without."""
    clean, dirty = (night(hot=h, turn_deg=30.0) for h in (0, HOT))
    figures = []
    for made in (clean, dirty):
        solution = solve_session(made.frames, made.anchor_ra_deg, made.anchor_dec_deg)
        found = [Place(wcs=f.wcs, distortion=f.distortion) if f.wcs else None for f in solution.frames]
        figures.append(np.median(pair_errors(made, found)[:, 0]))
        assert all(f.joint for f in solution.frames)
        assert (solution.fixed > 0) is (made is dirty)
    assert figures[1] == pytest.approx(figures[0], abs=0.02)
    assert figures[1] < 0.06


def test_a_sky_that_stands_still_loses_nothing() -> None:
    """Perfect guiding: every star stays on the sensor too, and all are kept."""
    made = night(dither_px=0.05)
    frames = [replace(f, stars=made.frames[0].stars, wcs=made.frames[0].wcs) for f in made.frames]
    assert without_fixed(frames)[1] == 0
    assert without_fixed(made.frames)[1] == 0


def test_stars_about_the_pole_of_a_field_rotation_are_kept() -> None:
    """They hardly move on the sensor, but they are where the sky is."""
    made = night(frames=40, stars=200, rough=False, dither_px=0.3, turn_deg=4.0)
    assert without_fixed(made.frames)[1] == 0


def test_what_the_solved_frames_teach_holds_for_the_others() -> None:
    """A frame without a solution loses its hot pixels as well; without any solution nothing is known."""
    made = night(hot=HOT)
    frames = [replace(f, wcs=None) if i in (3, 8) else f for i, f in enumerate(made.frames)]
    left, _ = without_fixed(frames)
    clean, _ = without_fixed(made.frames)
    assert [len(f.stars) for f in left] == [len(f.stars) for f in clean]
    assert without_fixed([replace(f, wcs=None) for f in made.frames])[1] == 0
    assert len(fixed_places([])) == 0


def test_each_camera_has_its_own_bad_pixels() -> None:
    """Places of one sensor say nothing about another's."""
    made = night(hot=HOT)
    other = [replace(f, camera="b", wcs=None) for f in made.frames[:4]]
    left, _ = without_fixed([*made.frames, *other])
    assert [len(f.stars) for f in left[-4:]] == [len(f.stars) for f in other]


@pytest.mark.parametrize("moves", [{}, {"turn_deg": 60.0}, {"frames": 5}])
def test_pixels_that_stand_out_again_and_again_are_hot(moves: dict[str, Any]) -> None:
    """Suspects of single frames, mostly noise: those that many frames share while the sky moves are hot, no others."""
    made, rng = night(**moves), np.random.default_rng(1)
    size = made.frames[0].width * made.frames[0].height
    hot = np.sort(rng.choice(size, 300, replace=False))
    suspects = [np.union1d(hot[rng.random(300) < 0.8], rng.choice(size, 200)) for _ in made.frames]
    found = fixed_pixels(suspects, made.frames)
    assert set(found.tolist()) <= set(hot.tolist())
    assert len(found) > 0.8 * 300
    assert len(fixed_pixels(suspects, [replace(f, wcs=None) for f in made.frames])) == 0


def test_a_core_of_a_star_that_stands_still_is_no_hot_pixel() -> None:
    """Perfect guiding: what stands out in every frame at the same pixel may be the sky's."""
    made = night(dither_px=0.05)
    suspects = [np.array([5000, 70000, 123456])] * len(made.frames)
    assert len(fixed_pixels(suspects, made.frames)) == 0
