"""The joint solution of a session, and the neighbour rung for frames that no catalogue solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.scenes import repair_hot_pixels
from zemosaicd import sphere
from zemosaicd.core.headers import facts as header_facts
from zemosaicd.model import Reason, Solution, Wcs
from zemosaicd.science.astrometry import Hint, locate, solve
from zemosaicd.science.merging import FrameStars, spread
from zemosaicd.science.registration import JointSolution, sky_vectors, solve_session
from zemosaicd.science.stars import StarList, find_stars
from zemosaicd.science.tie import Tie, tie, tie_session
from zemosaicd.simulate import Night, pixel_positions, plan_frame, render, sky_of
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.fitsio import read_frame

NONE = np.zeros(0)
NIGHT = Night(frames=6, rotation_deg_min=2.0)


def off(wcs: Wcs, rng: np.random.Generator) -> Wcs:
    """A frame's own solution: half a pixel and 3e-4 in scale and turn wrong."""
    cd = tuple(c * (1 + rng.normal(0, 3e-4)) for c in wcs.cd)
    return replace(wcs, x_px=wcs.x_px + rng.normal(0, 0.5), y_px=wcs.y_px + rng.normal(0, 0.5), cd=cd)


def lists_of(night: Night, noise: float = 0.05, limit: int = 60, seed: int = 1) -> tuple[list[FrameStars], list[Wcs]]:
    """Star lists made from the truth with Gaussian centroid noise, and the true solutions."""
    rng = np.random.default_rng(seed)
    sky = sky_of(night)
    order = np.argsort(sky.mag, kind="stable")[:1500]
    frames, truth = [], []
    for i in range(night.count):
        wcs = plan_frame(night, i, Path()).wcs
        x, y = pixel_positions(wcs, sky.ra_deg[order], sky.dec_deg[order])
        seen = np.flatnonzero((x > 5) & (y > 5) & (x < night.width - 5) & (y < night.height - 5))
        seen = seen[rng.random(len(seen)) < 0.9][:limit]
        x, y = x[seen] + rng.normal(0, noise, len(seen)), y[seen] + rng.normal(0, noise, len(seen))
        flux = (1e4 * 10 ** (-0.4 * (sky.mag[order][seen] - 10))).astype(np.float32)
        snr, shape = np.full(len(seen), 60.0, np.float32), np.full(len(seen), 3.0, np.float32)
        stars = StarList(x=x, y=y, flux=flux, snr=snr, fwhm_px=shape, ellipticity=shape * 0)
        frames.append(FrameStars(stars=stars, wcs=off(wcs, rng), width=night.width, height=night.height, camera="a"))
        truth.append(wcs)
    return frames, truth


def grid(night: Night) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.meshgrid(np.linspace(0, night.width - 1, 7), np.linspace(0, night.height - 1, 9))
    return x.ravel(), y.ravel()


def errors_px(night: Night, truth: Sequence[Wcs], found: Sequence[Wcs | None]) -> NDArray[np.float64]:
    """Distance between true and found place on the sky, (frames, grid points), px."""
    x, y = grid(night)
    rows = []
    for a, b in zip(truth, found, strict=True):
        assert b is not None
        miss = np.linalg.norm(sky_vectors(a, x, y) - sky_vectors(b, x, y), axis=1)
        rows.append(miss / (sphere.scale_arcsec(a) * sphere.ARCSEC_RAD))
    return np.array(rows)


def relative_px(night: Night, truth: Sequence[Wcs], found: Sequence[Wcs | None]) -> NDArray[np.float64]:
    """Error of each frame's homography to frame 0, (frames - 1, grid points), px."""
    x, y = grid(night)
    points = np.stack([x, y, np.ones_like(x)])
    rows = []
    for a, b in zip(truth[1:], found[1:], strict=True):
        places = []
        for source, target in ((a, truth[0]), (b, found[0])):
            assert source is not None
            assert target is not None
            v = np.array(sphere.homography(source, target)).reshape(3, 3) @ points
            places.append(v[:2] / v[2])
        rows.append(np.hypot(*(places[0] - places[1])))
    return np.array(rows)


def anchors_of(night: Night, sigma_arcsec: float = 0.3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    known = read_cone(night.ra_deg, night.dec_deg, 2.0)
    rng = np.random.default_rng(9)
    east, north = rng.normal(0, sigma_arcsec / 3600, (2, len(known)))
    return known.ra_deg + east / np.cos(np.radians(known.dec_deg)), known.dec_deg + north


def places(solution: JointSolution) -> list[Wcs | None]:
    return [f.wcs for f in solution.frames]


@pytest.mark.parametrize("mirrored", [False, True])
def test_phase2_joint_solution_beats_each_frames_own(mirrored: bool) -> None:
    """With field rotation, either parity: frames agree to a few hundredths of a pixel and lie right on the sky."""
    night = replace(NIGHT, mirrored=mirrored)
    frames, truth = lists_of(night)
    solution = solve_session(frames, *anchors_of(night))
    assert np.median(errors_px(night, truth, [f.wcs for f in frames])) > 0.3
    assert np.median(errors_px(night, truth, places(solution))) < 0.05
    relative = relative_px(night, truth, places(solution))
    assert np.median(relative) < 0.025
    assert relative.max() < 0.08
    assert solution.chi == pytest.approx(1, abs=0.1)
    assert solution.floor_px == pytest.approx(0.05, rel=0.2)
    assert solution.anchor_rms_arcsec == pytest.approx(0.3, rel=0.4)


def test_phase2_joint_solution_works_without_anchors() -> None:
    """No catalogue at all: the frames still fit each other, near where they were placed."""
    frames, truth = lists_of(NIGHT)
    solution = solve_session(frames, NONE, NONE)
    assert solution.anchors == 0
    assert np.median(relative_px(NIGHT, truth, places(solution))) < 0.025
    assert errors_px(NIGHT, truth, places(solution)).max() < 5


def test_phase2_half_split_tells_the_true_error() -> None:
    """The half-split figure lies within a factor two of the error against truth, for quiet and for noisy lists."""
    for noise in (0.03, 0.15):
        frames, truth = lists_of(NIGHT, noise=noise)
        solution = solve_session(frames, *anchors_of(NIGHT, 0.01))
        told = np.median([f.half_split_px for f in solution.frames])
        true = np.median(errors_px(NIGHT, truth, places(solution)))
        assert 0.5 < told / true < 2


def test_phase2_a_panels_mosaic_hangs_together() -> None:
    """2 x 2 panels: every frame right to 0.06 px, those of other panels through shared stars and anchors."""
    night = Night(rows=2, cols=2, frames=2)
    frames, truth = lists_of(night)
    solution = solve_session(frames, *anchors_of(night, 0.2))
    assert np.median(errors_px(night, truth, places(solution))) < 0.06


def test_phase2_outliers_do_not_move_the_solution() -> None:
    """A tenth of all centroids thrown off by 1-2 px changes the result by hundredths."""
    frames, truth = lists_of(NIGHT)
    rng = np.random.default_rng(7)
    wild = []
    for f in frames:
        bad = rng.random(len(f.stars)) < 0.1
        wild.append(replace(f, stars=replace(f.stars, x=f.stars.x + bad * rng.uniform(1, 2, len(bad)))))
    solution = solve_session(wild, *anchors_of(NIGHT))
    assert np.median(relative_px(NIGHT, truth, places(solution))) < 0.035


def test_phase2_a_frame_of_few_stars_keeps_its_place() -> None:
    """Fewer than 4 shared stars: the frame's own solution stays, marked, with its reason; unsolved frames stay out."""
    frames, _ = lists_of(NIGHT)
    few = StarList(**{n: getattr(frames[2].stars, n)[:3] for n in ("x", "y", "flux", "snr", "fwhm_px", "ellipticity")})
    frames[2], frames[4] = replace(frames[2], stars=few), replace(frames[4], wcs=None)
    solution = solve_session(frames, *anchors_of(NIGHT))
    assert solution.frames[2].wcs == frames[2].wcs
    assert [f.joint for f in solution.frames] == [True, True, False, True, False, True]
    assert [f.reason.rule for f in solution.frames if f.reason] == ["registration.min_stars", "astrometry.unsolved"]


def test_C7_joint_solution_is_deterministic() -> None:
    """The same session gives the same bits."""
    frames, _ = lists_of(NIGHT)
    anchors = anchors_of(NIGHT)
    assert solve_session(frames, *anchors) == solve_session(frames, *anchors)


def test_phase2_nothing_to_solve() -> None:
    """No frames, or frames without solutions or stars, give an answer and no error."""
    frames, _ = lists_of(replace(NIGHT, frames=2))
    assert solve_session([], NONE, NONE).frames == ()
    assert solve_session([replace(f, wcs=None) for f in frames], NONE, NONE).stars == 0
    empty = StarList(x=NONE, y=NONE, flux=NONE, snr=NONE, fwhm_px=NONE, ellipticity=NONE)
    solution = solve_session([replace(f, stars=empty) for f in frames], NONE, NONE)
    assert [f.joint for f in solution.frames] == [False, False]


def test_spread_takes_the_brightest_of_every_part() -> None:
    """A crowded corner does not use up the quota: every cell's brightest comes first."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(0, 50, 500), rng.uniform(0, 500, 100)])
    y = np.concatenate([rng.uniform(0, 50, 500), rng.uniform(0, 500, 100)])
    same = np.ones(600, np.float32)
    stars = StarList(x=x, y=y, flux=same, snr=same, fwhm_px=same, ellipticity=same)
    chosen = spread(stars, 500, 500, 100)
    assert len(chosen) == 100
    assert (chosen >= 500).sum() > 70
    assert 0 in chosen


def test_neighbour_tie_finds_the_transform_and_always_the_same() -> None:
    """Two lists with 70 % of stars in common, turned and shifted, tie to 0.05 px; repeated runs give the same bits."""
    frames, truth = lists_of(replace(NIGHT, frames=2, rotation_deg_min=60.0, dither_px=40.0))
    found = [tie(frames[1], frames[0]) for _ in range(4)]
    assert isinstance(found[0], Tie)
    assert all(f == found[0] for f in found)
    x, y = grid(NIGHT)
    moved = found[0].shift + found[0].turn * (x + 1j * y)
    true = np.array(sphere.homography(truth[1], truth[0])).reshape(3, 3) @ np.stack([x, y, np.ones_like(x)])
    assert np.median(np.abs(moved - (true[0] + 1j * true[1]) / true[2])) < 0.05
    assert found[0].log_false_alarm < -20


def test_neighbour_tie_refuses_strangers() -> None:
    """Lists of unrelated stars, or of three stars, give a reason with figures and never a transform."""
    frames, _ = lists_of(replace(NIGHT, frames=1))
    rng = np.random.default_rng(2)
    for _ in range(5):
        stars = replace(frames[0].stars, x=rng.uniform(0, 480, 60), y=rng.uniform(0, 640, 60))
        assert isinstance(tie(replace(frames[0], stars=stars), frames[0]), Reason)
    few = StarList(**{n: getattr(frames[0].stars, n)[:3] for n in ("x", "y", "flux", "snr", "fwhm_px", "ellipticity")})
    reason = tie(replace(frames[0], stars=few), frames[0])
    assert isinstance(reason, Reason)
    assert (reason.rule, reason.value, reason.threshold) == ("tie.min_stars", 3, 4)


def test_neighbour_rung_solves_what_the_catalogue_did_not() -> None:
    """One solved frame is enough to place the others of the session; a stranger gets its reason."""
    frames, truth = lists_of(NIGHT)
    rng = np.random.default_rng(2)
    given = [replace(f, wcs=truth[i] if i == 1 else None) for i, f in enumerate(frames)]
    stranger = replace(given[4].stars, x=rng.uniform(0, 480, 60), y=rng.uniform(0, 640, 60))
    given[4] = replace(given[4], stars=stranger)
    found = tie_session(given)
    assert found[1] is None
    assert isinstance(found[4], Reason)
    for i in (0, 2, 3, 5):
        solution = found[i]
        assert isinstance(solution, Solution)
        assert solution.solver == "neighbour"
        assert errors_px(NIGHT, [truth[i]], [solution.wcs]).max() < 0.3


def test_neighbour_rung_places_an_unsolved_session_by_its_pointing() -> None:
    """No frame solved: the richest hangs on the pointing, the rest on it, under the name "pointing"; then they fit."""
    frames, truth = lists_of(NIGHT)
    found = tie_session([replace(f, wcs=None) for f in frames], pointing_deg=(305.5, 40.5), scale_arcsec=5.0)
    solutions = [s for s in found if isinstance(s, Solution)]
    assert len(solutions) == len(frames)
    assert {s.solver for s in solutions} == {"pointing"}
    assert any((s.wcs.ra_deg, s.wcs.dec_deg) == (305.5, 40.5) for s in solutions)
    joint = solve_session([replace(f, wcs=s.wcs) for f, s in zip(frames, solutions, strict=True)], NONE, NONE)
    assert np.median(relative_px(NIGHT, truth, places(joint))) < 0.03
    nowhere = tie_session([replace(frames[0], wcs=None)])[0]
    assert isinstance(nowhere, Solution)
    assert (nowhere.wcs.ra_deg, nowhere.wcs.dec_deg, nowhere.wcs.cd[0]) == (0.0, 0.0, 1 / 3600)


def test_phase2_simulated_frames_from_pixels_to_joint_solution() -> None:
    """From raw pixels: detection, catalogue solution, joint solution; frames agree to 0.03 px against the truth."""
    night = replace(NIGHT, frames=4)
    sky = sky_of(night)
    frames, truth = [], []
    for i in range(night.count):
        made = plan_frame(night, i, Path())
        clean, _ = repair_hot_pixels(render(night, sky, made, i), True)
        stars = find_stars(clean, night.bayer)
        hint = Hint(pointings=((night.ra_deg, night.dec_deg),), scale_arcsec=night.scale_arcsec * 1.008)
        solved = solve(stars, night.width, night.height, hint, read_cone)
        assert isinstance(solved, Solution)
        frames.append(FrameStars(stars=stars, wcs=solved.wcs, width=night.width, height=night.height))
        truth.append(made.wcs)
    known = read_cone(night.ra_deg, night.dec_deg, 1.0)
    solution = solve_session(frames, known.ra_deg, known.dec_deg)
    assert np.median(relative_px(night, truth, places(solution))) < 0.03
    assert np.median(errors_px(night, truth, places(solution))) < 0.05
    assert all(f.reason is None for f in solution.frames)


def frame_lists(folder: Path, names: Sequence[str]) -> list[FrameStars]:
    """Star lists and solutions of the frames in some folders, from their raw pixels."""
    frames = []
    for path in [p for name in names for p in sorted((folder / name).glob("*.fit*"))]:
        raw = read_frame(path)
        facts = header_facts(raw.cards, path.name)
        clean, _ = repair_hot_pixels(raw.pixels, True)
        stars = find_stars(clean, facts.bayer)
        solved = locate(stars, facts, 2025.23, read_cone)
        assert isinstance(solved, Solution)
        frames.append(
            FrameStars(stars=stars, wcs=solved.wcs, width=facts.width, height=facts.height, camera=facts.telescope)
        )
    return frames


@pytest.mark.frames
@pytest.mark.parametrize(
    ("names", "median_px", "worst_px"),
    [
        (("m94_night1",), 0.05, 0.08),
        (("m94_night1", "m94_night2", "m94_other_scope"), 0.05, 0.1),
        (("ngc7023_altaz",), 0.02, 0.03),
    ],
)
def test_phase2_real_frames_agree_to_hundredths_of_a_pixel(
    frames_dir: Path, names: Sequence[str], median_px: float, worst_px: float
) -> None:
    """Half-split error of real S50 frames: one night, two nights with another scope turned by 69.5 degrees, alt-az."""
    frames = frame_lists(frames_dir, names)
    middle = sphere.position(
        sphere.mean_direction(sphere.direction(f.wcs.ra_deg, f.wcs.dec_deg) for f in frames if f.wcs)
    )
    known = read_cone(*middle, 1.5)
    solution = solve_session(frames, known.ra_deg, known.dec_deg)
    assert all(f.joint and f.reason is None for f in solution.frames)
    split = [f.half_split_px for f in solution.frames]
    assert np.isfinite(split).all()
    assert np.median(split) < median_px
    assert max(split) < worst_px
    assert solution.anchor_rms_arcsec < 1
