"""What the joint solution is worth: transforms between frames against truth, on made-up star lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.starlists import ListNight, MadeLists, Place, make, pair_errors
from zemosaicd import sphere
from zemosaicd.science.merging import FrameStars
from zemosaicd.science.registration import JointSolution, solve_session
from zemosaicd.science.stars import StarList

SEED = 101
CASES: dict[str, dict[str, Any]] = {
    "shifts": {},
    "rotation": {"turn_deg": 60.0},
    "all round": {"turn_deg": 350.0},
    "flip": {"flip": True},
    "scale": {"scale_step": 0.01},
    "distortion": {"corner_px": 1.5},
    "distortion and flip": {"corner_px": 1.5, "flip": True},
    "mirrored": {"corner_px": 1.5, "mirrored": True, "turn_deg": 60.0},
    "everything": {"corner_px": 1.5, "flip": True, "turn_deg": 60.0, "scale_step": 0.01},
}


def night(**changes: Any) -> MadeLists:
    return make(ListNight(**{"frames": 24, "seed": SEED, "field": SEED, **changes}))


def solved(made: MadeLists) -> JointSolution:
    return solve_session(made.frames, made.anchor_ra_deg, made.anchor_dec_deg)


def places(solution: JointSolution) -> list[Place | None]:
    return [Place(wcs=f.wcs, distortion=f.distortion) if f.wcs is not None else None for f in solution.frames]


def errors(made: MadeLists, solution: JointSolution) -> tuple[float, float]:
    """(median of the medians, worst point of all) px over the transforms of every frame to three of them."""
    pairs = pair_errors(made, places(solution), (0, len(made.frames) // 3, 2 * len(made.frames) // 3))
    assert len(pairs) == 3 * (len(made.frames) - 1)
    return float(np.median(pairs[:, 0])), float(pairs[:, 1].max())


def sky_errors(made: MadeLists, solution: JointSolution) -> np.ndarray:
    """Distances on the sky between true and found places of a grid, (frames, points), px."""
    w, h = made.night.width, made.night.height
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, w - 1, 9), np.linspace(0, h - 1, 15)))
    rows = []
    for true, place in zip(made.truth, places(solution), strict=True):
        assert place is not None
        rows.append(np.linalg.norm(true.sky(x, y) - place.sky(x, y), axis=1))
    return np.array(rows) / (made.night.scale_arcsec * sphere.ARCSEC_RAD)


def few(frame: FrameStars, count: int) -> FrameStars:
    """Only the brightest stars of its list."""
    names = ("x", "y", "flux", "snr", "fwhm_px", "ellipticity")
    return replace(frame, stars=StarList(**{n: getattr(frame.stars, n)[:count] for n in names}))


@pytest.mark.parametrize("case", CASES)
def test_phase2_two_hundred_stars_tie_frames_to_a_hundredth_of_a_pixel(case: str) -> None:
    """At most 0.01 px median and 0.03 px anywhere, whatever the frames do to each other."""
    made = night(stars=200, **CASES[case])
    median, worst = errors(made, solved(made))
    assert median < 0.01
    assert worst < 0.03


@pytest.mark.parametrize("case", CASES)
def test_phase2_twenty_five_rough_stars_tie_frames_to_a_twentieth(case: str) -> None:
    """With real scatter (0.1 px an axis on every star): at most 0.05 px median and 0.2 px anywhere."""
    made = night(stars=25, rough=True, **CASES[case])
    median, worst = errors(made, solved(made))
    assert median < 0.05
    assert worst < 0.2


def test_phase2_eight_stars_register_a_frame() -> None:
    """In a session of fuller frames those with 8 rough stars each are tied, to 0.15 px median and 0.5 px anywhere."""
    made = night(stars=25, rough=True, turn_deg=30.0)
    poor = set(range(2, 24, 4))
    frames = [few(f, 8) if i in poor else f for i, f in enumerate(made.frames)]
    solution = solve_session(frames, made.anchor_ra_deg, made.anchor_dec_deg)
    assert all(f.joint and f.reason is None for f in solution.frames)
    pairs = pair_errors(made, [p if i in poor | {0} else None for i, p in enumerate(places(solution))])
    assert len(pairs) == len(poor)
    assert np.median(pairs[:, 0]) < 0.15
    assert pairs[:, 1].max() < 0.5


def test_phase2_differential_refraction_leaves_no_trace() -> None:
    """From 20 to 60 degrees of zenith distance: similarities alone would be 0.4 px off."""
    made = night(stars=200, zenith_deg=(20.0, 60.0))
    median, worst = errors(made, solved(made))
    assert median < 0.01
    assert worst < 0.03


@pytest.mark.parametrize("zenith_deg", [(20.0, 50.0), (50.0, 65.0)])
def test_phase2_few_rough_stars_share_how_refraction_drifts(zenith_deg: tuple[float, float]) -> None:
    """25 stars tell no frame's stretch, a night of them tells how it changes: they are tied as if there were none."""
    made = night(stars=25, rough=True, frames=50, zenith_deg=zenith_deg)
    median, worst = errors(made, solved(made))
    assert median < 0.05
    assert worst < 0.2


def test_phase2_scales_are_told_apart_only_where_they_differ() -> None:
    """Frames of one scale share it to the last digit; two scales in a session keep to themselves."""
    alike = night(stars=25, rough=True)
    (scale,) = {round(sphere.scale_arcsec(f.wcs), 9) for f in solved(alike).frames if f.wcs}
    assert scale == pytest.approx(2.37, rel=1e-4)
    changed = [sphere.scale_arcsec(f.wcs) for f in solved(night(stars=25, rough=True, scale_step=0.01)).frames if f.wcs]
    assert np.ptp(changed[:12]) < 1e-9
    assert np.ptp(changed[12:]) < 1e-9
    assert changed[-1] / changed[0] == pytest.approx(1.01, rel=1e-4)


# --- lenses


def test_phase2_a_lens_is_found_and_named() -> None:
    """1.5 px outward in the corners, about an axis beside the centre: found to a tenth of a pixel, of few terms."""
    made = night(stars=200, corner_px=1.5, turn_deg=60.0, catalogue_arcsec=0.1)
    solution = solved(made)
    (lens,) = solution.lenses
    assert lens.distortion is not None
    assert (lens.camera, lens.coefficients) == ("a", 3)
    assert lens.gain > 10 * lens.limit
    truth = made.truth[0].distortion
    assert truth is not None
    assert lens.distortion.x_px == pytest.approx(truth.x_px, abs=0.1)
    assert lens.distortion.y_px == pytest.approx(truth.y_px, abs=0.1)
    assert np.percentile(sky_errors(made, solution), 99) < 0.1
    assert all(f.distortion == lens.distortion for f in solution.frames)


@pytest.mark.parametrize("lists", [{"stars": 200}, {"stars": 25, "rough": True}])
@pytest.mark.parametrize("seed", [102, 103, 104])
def test_phase2_no_lens_is_fitted_to_the_catalogues_errors(lists: dict[str, Any], seed: int) -> None:
    """One pointing, small dithers, a catalogue that is 0.5 arcsec wrong: nothing is admitted, plain TAN stays."""
    solution = solved(night(**lists, seed=seed, field=seed))
    (lens,) = solution.lenses
    assert lens.distortion is None
    assert lens.gain <= lens.limit
    assert all(f.distortion is None for f in solution.frames)


def test_phase2_frames_stretched_differently_make_no_lens() -> None:
    """Refraction that changes through the night is the frames' own, not the camera's."""
    assert solved(night(stars=25, rough=True, zenith_deg=(50.0, 20.0))).lenses[0].distortion is None


def test_phase2_each_camera_has_its_own_lens() -> None:
    """Two cameras on one field, one bends outward, one inward, a third is straight: the frames still fit each other."""
    kinds = {"a": 1.5, "b": -1.2, "c": 0.0}
    made = [
        night(frames=10, camera=c, corner_px=k, turn_deg=40.0, seed=SEED + i) for i, (c, k) in enumerate(kinds.items())
    ]
    both = replace(made[0], frames=[f for m in made for f in m.frames], truth=[t for m in made for t in m.truth])
    solution = solved(both)
    lenses = {lens.camera: lens.distortion for lens in solution.lenses}
    for camera, corner_px in kinds.items():
        lens = lenses[camera]
        assert (lens.x_px[3] if lens else 0.0) == pytest.approx(corner_px, abs=0.15)
    pairs = pair_errors(both, places(solution), (0, 12, 24))
    assert np.median(pairs[:, 0]) < 0.01
    assert pairs[:, 1].max() < 0.03


def test_phase2_bent_stars_still_merge_and_meet_their_anchors() -> None:
    """Corners bent by 1.5 px and a flip: no star counts twice, none is lost, and each has its own catalogue star."""
    straight, bent = (solved(night(stars=200, flip=True, corner_px=k)) for k in (0.0, 1.5))
    assert bent.observations == pytest.approx(straight.observations, rel=0.01)
    assert bent.stars == pytest.approx(straight.stars, rel=0.05)
    assert bent.anchors == pytest.approx(straight.anchors, abs=3)
    assert bent.anchor_rms_arcsec == pytest.approx(straight.anchor_rms_arcsec, rel=0.15)


# --- when it fails


def test_phase2_a_frame_in_the_wrong_place_is_refused() -> None:
    """Its own solution is 40 px off, so none of its many stars is the session's: measured value and threshold."""
    made = night(stars=60, frames=8)
    wcs = made.frames[3].wcs
    assert wcs is not None
    frames = [replace(f, wcs=replace(wcs, x_px=wcs.x_px + 40.0)) if i == 3 else f for i, f in enumerate(made.frames)]
    found = solve_session(frames, made.anchor_ra_deg, made.anchor_dec_deg).frames[3]
    assert (found.joint, found.usable) == (False, False)
    assert found.reason is not None
    assert (found.reason.rule, found.reason.threshold) == ("registration.min_stars", 4)
    assert isinstance(found.reason.value, int)
    assert found.reason.value < 4


@pytest.mark.parametrize("off_px", [0.0, 2.0])
def test_phase2_a_transform_that_fails_falls_back_on_the_catalogues(off_px: float) -> None:
    """Stars 2 px off to all sides tell no transform: the frame's own serves if they lie round it, else none."""
    made = night(stars=60, frames=8)
    stars = made.frames[3].stars
    sides = np.array([2.0, 2.0j, -2.0, -2.0j] * 15)
    wild = replace(stars, x=stars.x + sides.real, y=stars.y + sides.imag)
    own = replace(made.truth[3].wcs, x_px=made.truth[3].wcs.x_px + off_px)
    frames = [replace(f, stars=wild, wcs=own) if i == 3 else f for i, f in enumerate(made.frames)]
    found = solve_session(frames, made.anchor_ra_deg, made.anchor_dec_deg).frames[3]
    assert found.joint is False
    assert found.reason is not None
    assert isinstance(found.reason.value, float)
    assert isinstance(found.reason.threshold, float)
    assert found.reason.value > found.reason.threshold
    assert found.usable is (off_px == 0.0)
    assert found.wcs == own
