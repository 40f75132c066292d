"""Phase 2 in a worker: star lists and first solutions of a closed set become the joint solution and the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import values
from zemosaicd import codec, sphere
from zemosaicd.core.plan import PlanSettings
from zemosaicd.model import Distortion, MountMode, Plan, PreparedFrame, Reason, Solution, Wcs
from zemosaicd.science.stars import StarList
from zemosaicd.work import planfiles
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.jobs import PhaseMade, PlanSession

W, H, SCALE = 1200, 1000, 4.0
PLACE = (83.8, -5.4)


@cache
def sky() -> tuple[tuple[float, float, float], ...]:
    """Catalogue stars round PLACE: ra, dec, flux."""
    stars = read_cone(*PLACE, 1.5)
    return tuple(
        (float(ra), float(dec), 10.0 ** (-0.4 * (float(mag) - 12.0)) * 2000.0)
        for ra, dec, mag in zip(stars.ra_deg, stars.dec_deg, stars.mag, strict=True)
    )


def stars_of(
    wcs: Wcs, *, scale: float = 1.0, seed: int = 1, jitter_px: float = 0.05, lens: Distortion | None = None
) -> StarList:
    """What a frame there detects: catalogue stars with centroids off a little, brightest first."""
    rng = np.random.default_rng(seed)
    rows = []
    for ra, dec, flux in sky():
        place = sphere.sky_to_pixel(wcs, sphere.direction(ra, dec))
        if place is not None and 5 < place[0] < W - 5 and 5 < place[1] < H - 5:
            place = sphere.recorded_pixel(lens, *place) if lens else place
            dx, dy = rng.normal(0.0, jitter_px, 2)
            rows.append((flux * scale, place[0] + dx, place[1] + dy))
    table = np.array(sorted(rows, reverse=True)).T
    flux = table[0].astype(np.float32)
    ones = np.ones(len(flux), np.float32)
    return StarList(x=table[1], y=table[2], flux=flux, snr=np.sqrt(flux), fwhm_px=3 * ones, ellipticity=0.1 * ones)


def frame(number: int, *, dx: float = 0.0, solved: bool = True, **changes: Any) -> PreparedFrame:
    """Frame `number`, `dx` px beside PLACE, its first solution a pixel off."""
    centre = values.wcs_at(*PLACE, scale_arcsec=SCALE, width=W, height=H)
    wcs = values.wcs_at(*sphere.position(sphere.pixel_to_sky(centre, centre.x_px + dx, centre.y_px + 3.0 * number)),
                        scale_arcsec=SCALE, width=W, height=H)  # fmt: skip
    stars = stars_of(
        wcs, seed=number, scale=changes.pop("scale", 1.0), jitter_px=changes.pop("jitter_px", 0.05),
        lens=changes.pop("lens", None),
    )  # fmt: skip
    guess = Solution(
        wcs=values.shifted(wcs, 0.6, -0.4), solver="catalogue", matches=40, log_false_alarm=-90.0, rms_arcsec=1.0
    )
    facts = values.facts(
        width=W, height=H, observed_s=1.7e9 + 10.0 * number, ra_deg=PLACE[0], dec_deg=PLACE[1], scale_arcsec=SCALE,
        **changes.pop("facts", {}),
    )  # fmt: skip
    base = values.prepared(number, facts=facts, stars=stars.to_bytes(), solution=guess if solved else None)
    unsolved = None if solved else Reason(rule="solve.no_match", value=3, threshold=8)
    return replace(base, **{"unsolved": unsolved, **changes})


def run(
    folder: Path, frames: Sequence[PreparedFrame], mount_mode: str = "auto", **settings: Any
) -> tuple[Plan, PhaseMade]:
    """Phase 2 as a worker runs it."""
    request, plan = folder / "runtime" / "frames.json", folder / "plan.json"
    asked = planfiles.PlanRequest(frames=tuple(frames), settings=PlanSettings(**settings), mount_mode=mount_mode)
    planfiles.write_request(asked, request)
    assert codec.loads(planfiles.PlanRequest, request.read_text()) == asked
    made = PlanSession(frames_path=str(request), plan_path=str(plan)).run()
    return planfiles.read_plan(plan), made


def bare(plan: Plan) -> Plan:
    """A plan without what the run itself cost."""
    return replace(plan, figures={k: v for k, v in plan.figures.items() if k not in ("seconds", "peak_rss_mb")})


def first_stars(one: PreparedFrame, count: int) -> bytes:
    """Only the brightest stars of its list."""
    stars = StarList.from_bytes(one.stars)
    names = ("x", "y", "flux", "snr", "fwhm_px", "ellipticity")
    return StarList(**{name: getattr(stars, name)[:count] for name in names}).to_bytes()


NIGHT = [frame(i, dx=600.0 * (i % 2)) for i in range(6)]


def test_C7_the_order_of_arrival_leaves_no_trace(tmp_path: Path) -> None:
    """The same frames in another order: the same plan, to the last digit of every solution."""
    first, _ = run(tmp_path, NIGHT)
    second, _ = run(tmp_path, [NIGHT[i] for i in (3, 5, 0, 4, 1, 2)])
    assert codec.dumps(bare(first)) == codec.dumps(bare(second))
    assert len(first.frames) == 6
    assert len(first.tiles) == 2


def test_the_joint_solution_places_frames_better_than_their_seeds(tmp_path: Path) -> None:
    """First solutions were 0.7 px off; after Phase 2 every frame lies within 0.1 px of the truth."""
    plan, made = run(tmp_path, NIGHT)
    for one in NIGHT:
        assert one.solution is not None
        truth = values.shifted(one.solution.wcs, -0.6, 0.4)
        found = plan.frames[one.frame].wcs
        for x, y in values.centres(W, H):
            place = sphere.sky_to_pixel(found, sphere.pixel_to_sky(truth, x, y))
            assert place == pytest.approx((x, y), abs=0.1)
    assert plan.figures["residual_px"] is not None
    assert plan.figures["residual_px"] < 0.1
    assert plan.figures["frames"] == 6
    assert (plan.figures["anchors"] or 0) > 20
    (note,) = made.notes
    assert (note.event, note.fields["frames"]) == ("session_registered", 6)


def test_the_cameras_distortion_reaches_the_plan(tmp_path: Path) -> None:
    """It stands in every frame of the camera and in the figures; frames are placed and fluxes matched through it."""
    lens = values.radial(1.5, W, H)
    night = [frame(i, dx=600.0 * (i % 2), lens=lens, scale=0.7 if i == 4 else 1.0) for i in range(6)]
    plan, made = run(tmp_path, night)
    assert plan.figures["lenses"] == 1
    assert plan.figures["distortion_px"] == pytest.approx(1.5, abs=0.15)
    assert made.notes[0].fields["distortion_px"] == plan.figures["distortion_px"]
    for one in night:
        assert one.solution is not None
        truth, found = values.shifted(one.solution.wcs, -0.6, 0.4), plan.frames[one.frame]
        assert found.distortion is not None
        for x, y in values.centres(W, H):
            v = sphere.pixel_to_sky(truth, *sphere.ideal_pixel(lens, x, y))
            ideal = sphere.sky_to_pixel(found.wcs, v)
            assert ideal is not None
            assert sphere.recorded_pixel(found.distortion, *ideal) == pytest.approx((x, y), abs=0.15)
    assert plan.frames[night[4].frame].transparency == pytest.approx((0.7,), rel=0.02)
    plain, _ = run(tmp_path, NIGHT)
    assert (plain.figures["lenses"], plain.figures["distortion_px"]) == (0, None)
    assert all(f.distortion is None for f in plain.frames.values())


def test_a_frame_whose_stars_are_nowhere_in_the_session_is_left_out(tmp_path: Path) -> None:
    """Its solution is 40 px off: it would smear the stack. The report has the count and the limit."""
    seed = NIGHT[4].solution
    assert seed is not None
    astray = replace(NIGHT[4], solution=replace(seed, wcs=values.shifted(seed.wcs, 40.0, 0.0)))
    plan, _ = run(tmp_path, [*NIGHT[:4], astray, NIGHT[5]])
    (left,) = plan.left_out
    assert (left.path, left.reason.rule, left.reason.threshold) == (astray.path, "registration.min_stars", 4)
    assert isinstance(left.reason.value, int)
    assert left.reason.value < 4


def test_hot_pixels_are_no_stars_of_the_plan(tmp_path: Path) -> None:
    """Bright detections that stay on the sensor are counted, and bear on nothing."""
    clean, _ = run(tmp_path, NIGHT[::2])
    dirty = []
    for one in NIGHT[::2]:
        stars = StarList.from_bytes(one.stars)
        x = np.concatenate([np.linspace(100, 1100, 8), stars.x])
        y = np.concatenate([np.linspace(90, 900, 8), stars.y])
        light = [np.concatenate([np.full(8, 1e6), c]).astype(np.float32) for c in (stars.flux, stars.snr)]
        shape = np.full(len(x), 3.0, np.float32)
        more = StarList(x=x, y=y, flux=light[0], snr=light[1], fwhm_px=shape, ellipticity=0 * shape)
        dirty.append(replace(one, stars=more.to_bytes()))
    plan, _ = run(tmp_path, dirty)
    assert plan.figures["fixed_detections"] == 8 * len(dirty)
    for one in dirty:
        assert plan.frames[one.frame].wcs.x_px == pytest.approx(clean.frames[one.frame].wcs.x_px, abs=0.01)
        assert plan.frames[one.frame].transparency == pytest.approx(clean.frames[one.frame].transparency, rel=1e-3)


def test_F27_the_same_pixels_under_two_names_count_once(tmp_path: Path) -> None:
    """The first name in order is used; the other is left out, and says of which frame it is the twin."""
    twin = replace(NIGHT[1], path="/in/0_copy.fits", cache="/state/copy.npy")
    for order in ([*NIGHT, twin], [twin, *NIGHT]):
        plan, _ = run(tmp_path, order)
        assert len(plan.frames) == 6
        (left,) = plan.left_out
        assert (left.path, left.reason.rule, left.reason.value) == ("/in/1.fits", "duplicate", "/in/0_copy.fits")
        assert plan.frames[twin.frame].path == "/in/0_copy.fits"


def test_an_unsolved_frame_is_tied_to_its_neighbours(tmp_path: Path) -> None:
    """Its star list against those of solved frames; it says so, and is placed as well as they are."""
    frames = [*NIGHT[:4], replace(NIGHT[4], solution=None, unsolved=Reason(rule="solve.no_match")), NIGHT[5]]
    plan, _ = run(tmp_path, frames)
    assert plan.frames[NIGHT[4].frame].solver == "neighbour"
    seed = NIGHT[4].solution
    assert seed is not None
    truth = values.shifted(seed.wcs, -0.6, 0.4)
    place = sphere.sky_to_pixel(plan.frames[NIGHT[4].frame].wcs, sphere.pixel_to_sky(truth, 600.0, 500.0))
    assert place == pytest.approx((600.0, 500.0), abs=0.2)


def test_a_frame_that_cannot_be_placed_keeps_its_reason(tmp_path: Path) -> None:
    """One unsolvable frame never holds a session up; what the solver measured is what the report says."""
    empty = first_stars(NIGHT[5], 0)
    reason = Reason(rule="solve.few_stars", value=0, threshold=8, message="no stars")
    clouded = replace(NIGHT[5], stars=empty, solution=None, unsolved=reason)
    plan, _ = run(tmp_path, [*NIGHT[:5], clouded])
    assert [(left.path, left.reason) for left in plan.left_out] == [(clouded.path, reason)]
    assert len(plan.frames) == 5


def test_a_night_that_no_catalogue_solves_is_placed_by_its_pointing(tmp_path: Path) -> None:
    """The frames are tied to each other, and every one of them is marked."""
    frames = [replace(f, solution=None, unsolved=Reason(rule="solve.no_match")) for f in NIGHT[::2]]
    plan, _ = run(tmp_path, frames)
    assert {f.solver for f in plan.frames.values()} == {"pointing"}
    centre = sphere.direction(*PLACE)
    for one in plan.frames.values():
        where = sphere.pixel_to_sky(one.wcs, (W - 1) / 2, (H - 1) / 2)
        assert sphere.separation_deg(where, centre) < 0.1


def test_transparency_is_measured_against_the_best_frame(tmp_path: Path) -> None:
    """A frame with 70 % of the light says 0.7; its pointing's reference says 1."""
    frames = [frame(i, scale=0.7 if i == 2 else 1.0) for i in range(4)]
    plan, _ = run(tmp_path, frames)
    assert plan.frames[frames[2].frame].transparency == pytest.approx((0.7,), rel=0.01)
    assert plan.frames[plan.tiles[0].reference].transparency == pytest.approx((1.0,), rel=1e-6)


def test_photon_noise_follows_egain_or_the_sky(tmp_path: Path) -> None:
    """1/EGAIN where the header has it, else what the sky shows; never below zero."""
    plan, _ = run(tmp_path, [frame(0, facts={"electrons_per_adu": 4.0}), frame(1)])
    first, second = plan.frames.values()
    assert first.photon_adu == (0.25,)
    assert second.photon_adu == (10.0**2 / 1000.0,)


def test_M1_the_configured_mount_mode_reaches_the_plan(tmp_path: Path) -> None:
    """`session.mount_mode` fills what the headers leave open."""
    plan, _ = run(tmp_path, NIGHT[:2], mount_mode="ALT_AZ")
    assert plan.mount_modes == {MountMode.EQ: 0, MountMode.ALT_AZ: 2, MountMode.UNKNOWN: 0}
    assert (plan.altaz_cleanup, plan.altaz_decision) == (True, "auto")
    assert all(t.mount_mode is MountMode.ALT_AZ for t in plan.tiles)


def test_F29_one_frame_alone_is_planned(tmp_path: Path) -> None:
    """Nothing to tie it to but the catalogue."""
    plan, _ = run(tmp_path, NIGHT[:1])
    assert [t.frames for t in plan.tiles] == [(NIGHT[0].frame,)]


def test_what_could_not_be_measured_is_not_said_to_be_zero(tmp_path: Path) -> None:
    """A solved frame with too few stars for the joint solution keeps its place; its residual is unknown."""
    poor = replace(NIGHT[4], stars=first_stars(NIGHT[4], 2))
    plan, _ = run(tmp_path, [*NIGHT[:4], poor])
    assert math.isnan(plan.frames[poor.frame].residual_px)
    assert not any(math.isnan(plan.frames[f.frame].residual_px) for f in NIGHT[:4])


def test_frames_of_different_filters_share_the_solution_and_not_the_tiles(tmp_path: Path) -> None:
    """One joint solution a session, one mosaic a filter."""
    frames = [frame(i, facts={"filter_name": "Ha" if i % 2 else "LP"}) for i in range(4)]
    plan, _ = run(tmp_path, frames)
    assert [m.name for m in plan.mosaics] == ["Ha-mono", "LP-mono"]
    assert plan.figures["frames"] == 4
