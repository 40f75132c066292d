"""Phase 2: what the tile plan promises, whatever the frames and in whatever order they came."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import values
from zemosaicd import codec, sphere
from zemosaicd.core import plan as planner
from zemosaicd.core.canvas import box_of, lattice, union, window
from zemosaicd.core.plan import PlanSettings, batches, kind_of, make_plan, pointings
from zemosaicd.model import FramePlan, Grid, LeftOut, MountMode, Reason, TileSpec, Wcs
from zemosaicd.science import combine

Box = tuple[int, int, int, int]


@st.composite
def nights(draw: st.DrawFn) -> list[FramePlan]:
    """Up to 12 frames of mixed kinds round one place, which may be a pole or RA 0."""
    ra, dec = draw(st.sampled_from([(83.8, -5.4), (0.01, 0.0), (200.0, 89.99), (45.0, -89.95)]))
    centre = values.wcs_at(ra, dec)
    frames = []
    for number in range(draw(st.integers(1, 12))):
        v = sphere.pixel_to_sky(centre, draw(st.integers(-100, 200)), draw(st.integers(-100, 200)))
        wcs = values.wcs_at(*sphere.position(v), turn_deg=draw(st.sampled_from([0.0, 3.0, 90.0, 180.0, 45.0])))
        changes = {
            "mount_mode": draw(st.sampled_from(list(MountMode))),
            "filter_name": draw(st.sampled_from(["", "LP", "Ha"])),
            "camera": draw(st.sampled_from(["IMX", "ASI"])),
            "exposure_s": draw(st.sampled_from([10.0, 20.0])),
            "gain": draw(st.sampled_from(["80", "120"])),
            "binning": draw(st.sampled_from(["1x1", "2x2"])),
            "bayer": draw(st.sampled_from(["", "GRBG", "RGGB"])),
            "width": draw(st.sampled_from([96, 97])),
        }
        frames.append(values.frame_plan(number, wcs, stars=draw(st.integers(0, 200)), **changes))
    return frames


def seen(grid: Grid, frame: FramePlan) -> bool:
    """Whether the grid holds the centre of every pixel of the frame that the lattice's pixels can show."""
    places = values.centres(frame.facts.width, frame.facts.height)
    on_grid = [sphere.sky_to_pixel(grid.wcs, sphere.pixel_to_sky(frame.wcs, x, y)) for x, y in places]
    edge = 0.5 + 1e-6
    return all(p and -edge <= p[0] < grid.width - 1 + edge and -edge <= p[1] < grid.height - 1 + edge for p in on_grid)


# --- groups


@given(
    nights(), st.sampled_from([0, 1, 2, 3]), st.integers(0, 2), st.integers(1, 2), st.sampled_from(["auto", "north"])
)
@settings(max_examples=150)
def test_C3_C7_the_plan_keeps_its_promises(
    frames: list[FramePlan], cap: int, overlap: int, least: int, orientation: str
) -> None:
    """Any night: kinds never mix, the order of arrival leaves no trace, and every frame is planned or left out."""
    chosen = PlanSettings(batch_cap=cap, batch_overlap=overlap, min_frames=least, orientation=orientation)
    plan = make_plan(frames, (), chosen)
    shuffled = random.Random(1).sample(frames, len(frames))
    assert codec.dumps(make_plan(shuffled, (), chosen)) == codec.dumps(plan)
    for tile in plan.tiles:
        members = [plan.frames[f] for f in tile.frames]
        assert len({kind_of(f) for f in members}) == 1
        assert {tile.mount_mode} == {f.mount_mode for f in members}
        assert {tile.channels} == {f.facts.channels for f in members}
        assert len(set(tile.frames)) == len(tile.frames)
        assert tile.reference in tile.frames
        assert not cap or len(members) <= cap
        assert all(seen(tile.grid, f) for f in members)
    planned, left = {f for t in plan.tiles for f in t.frames}, [f.frame for f in plan.left_out]
    assert planned == set(plan.frames)
    assert sorted([*planned, *left]) == sorted(f.frame for f in frames)
    assert [t.tile for t in plan.tiles] == list(range(1, len(plan.tiles) + 1))
    assert [t for m in plan.mosaics for t in m.tiles] == [t.tile for t in plan.tiles]
    for mosaic in plan.mosaics:
        for tile in (t for t in plan.tiles if t.tile in mosaic.tiles):
            assert (tile.mosaic, tile.channels) == (mosaic.name, mosaic.channels)
            box = box_of(tile.grid, mosaic.lattice)
            assert planner.cut(mosaic.lattice, box) == tile.grid  # a window: whole pixels off, nothing turned


@pytest.mark.parametrize(
    ("name", "other"),
    [("camera", "ASI"), ("filter_name", "Ha"), ("exposure_s", 20.0), ("gain", "120"), ("binning", "2x2"),
     ("width", 98), ("bayer", "RGGB"), ("mount_mode", MountMode.EQ)],
)  # fmt: skip
def test_C3_each_difference_separates_groups(name: str, other: Any) -> None:
    """Camera, filter, exposure, gain, binning, size, Bayer pattern and mount mode: one at a time."""
    wcs = values.wcs_at(10.0, 20.0)
    plan = values.plan_of([values.frame_plan(1, wcs), values.frame_plan(2, wcs, **{name: other})])
    assert sorted(len(t.frames) for t in plan.tiles) == [1, 1]
    assert len({t.group for t in plan.tiles}) == 2


def test_C3_filters_make_mosaics_of_their_own() -> None:
    """Default policy: the same filter meets in one mosaic, and colour never meets mono."""
    wcs = values.wcs_at(10.0, 20.0)
    kinds: list[dict[str, Any]] = [{"filter_name": "Ha"}, {"filter_name": "LP"}, {"filter_name": "LP", "bayer": "GRBG"}]
    plan = values.plan_of([values.frame_plan(i, wcs, **kind) for i, kind in enumerate(kinds)])
    assert [m.name for m in plan.mosaics] == ["Ha-mono", "LP-mono", "LP-rgb"]
    assert [m.channels for m in plan.mosaics] == [1, 1, 3]


def test_orientation_splits_a_pointing() -> None:
    """Frames turned by more than `group_rotation_deg` are stacked apart: their corners do not share sky."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0, turn_deg=t)) for i, t in enumerate([0.0, 5.0, 40.0])]
    plan = values.plan_of(frames, group_rotation_deg=10.0)
    assert sorted(len(t.frames) for t in plan.tiles) == [1, 2]
    assert len(values.plan_of(frames).tiles) == 1  # by itself a pointing is one deep tile, however it is turned


def test_a_meridian_flip_stays_in_its_group() -> None:
    """Half a turn covers the same sky."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0, turn_deg=t)) for i, t in enumerate([2.0, 182.0, 358.0])]
    assert [len(t.frames) for t in values.plan_of(frames).tiles] == [3]


def test_orientation_is_measured_on_the_sky_at_the_pole_too() -> None:
    """Beside the pole north turns with RA: frames dithered round it are one pointing, crossed ones are not."""
    centre = values.wcs_at(0.0, 90.0)
    frames = []
    for number, (dx, dy) in enumerate([(0, -8), (8, 0), (0, 8), (-8, 0)]):
        ra, dec = sphere.position(sphere.pixel_to_sky(centre, centre.x_px + dx, centre.y_px + dy))
        frames.append(values.frame_plan(number, values.wcs_at(ra, dec, turn_deg=_parallel(centre, ra, dec))))
    assert [len(t.frames) for t in values.plan_of(frames, group_rotation_deg=10.0).tiles] == [4]
    ra, dec = sphere.position(sphere.pixel_to_sky(centre, centre.x_px + 4.0, centre.y_px + 4.0))
    crossed = values.frame_plan(9, values.wcs_at(ra, dec, turn_deg=_parallel(centre, ra, dec) + 45.0))
    assert sorted(len(t.frames) for t in values.plan_of([*frames, crossed], group_rotation_deg=10.0).tiles) == [1, 4]


def _parallel(base: Wcs, ra: float, dec: float) -> float:
    """The turn of a frame there whose y axis runs along that of `base`."""
    here, x0, y0 = values.wcs_at(ra, dec), (values.WIDTH - 1) / 2, (values.HEIGHT - 1) / 2
    m = sphere.homography(base, here)
    start = sphere.sky_to_pixel(base, sphere.direction(ra, dec))
    assert start is not None
    x, y = sphere.apply_plane(m, start[0], start[1] + 1.0)
    return -math.degrees(math.atan2(x - x0, y - y0))


def test_pointings_gather_round_their_first_frame() -> None:
    """A dither stays together; the next panel of a mosaic does not; a drift of many small steps is cut."""
    base = values.wcs_at(10.0, 20.0)
    steps = [0, 5, 9, 60, 65, 2]
    frames = [values.frame_plan(i, values.shifted(base, dx, 0.0)) for i, dx in enumerate(steps)]
    groups = pointings(frames, PlanSettings())
    assert [[f.frame for f in g] for g in groups] == [[frames[i].frame for i in g] for g in ([0, 1, 2, 5], [3, 4])]
    drift = [values.frame_plan(i, values.shifted(base, 4.0 * i, 0.0)) for i in range(20)]
    assert len(pointings(drift, PlanSettings())) == 4


def test_the_reference_is_the_best_frame() -> None:
    """Most stars, sharpest, least noise, clearest; equal frames: the first."""
    wcs = values.wcs_at(10.0, 20.0)
    base = values.frame_plan(1, wcs)
    better: list[dict[str, Any]] = [{"stars": 120}, {"fwhm_px": 2.5}, {"noise_adu": (8.0,)}, {"transparency": (1.1,)}]
    for change in better:
        assert planner.reference_of([base, values.frame_plan(2, wcs, **change)]) == f"{2:024x}"
    assert planner.reference_of([base, values.frame_plan(2, wcs)]) == base.frame


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_frame_without_measured_stars_is_never_the_reference(order: tuple[int, int]) -> None:
    """A FWHM that could not be measured is NaN; it must not look like perfect sharpness, nor win by coming first."""
    wcs = values.wcs_at(10.0, 20.0)
    pair = [values.frame_plan(1, wcs), values.frame_plan(2, wcs, fwhm_px=math.nan, stars=3)]
    assert planner.reference_of([pair[i] for i in order]) == pair[0].frame


# --- batches


@given(st.integers(1, 300), st.integers(0, 60), st.integers(0, 70))
@settings(max_examples=300)
def test_R8_batches_cover_and_overlap(count: int, cap: int, overlap: int) -> None:
    """Every frame is in a batch, none is over the cap, neighbours share the frames asked for, and sizes are even."""
    ranges = batches(count, cap, overlap)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == count
    sizes = [stop - start for start, stop in ranges]
    assert min(sizes) >= 1
    if cap <= 0 or count <= cap:
        assert ranges == [(0, count)]
        return
    shared = min(overlap, cap - 1)
    assert max(sizes) <= cap
    assert all(a[1] - b[0] == shared for a, b in pairwise(ranges))
    assert max(sizes) - min(sizes) <= len(ranges)
    least = math.ceil((count - shared) / (cap - shared))
    assert len(ranges) <= least


def test_R8_batches_of_a_group_share_their_border_frames() -> None:
    """Seven frames, at most four in a tile, one shared: two tiles that both hold the frame between them."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0)) for i in range(7)]
    first, second = values.plan_of(frames, batch_cap=4, batch_overlap=1).tiles
    assert set(first.frames) & set(second.frames) == {frames[3].frame}
    assert first.group == second.group


# --- what does not belong


def test_a_frame_far_from_the_target_is_left_out() -> None:
    """A slew that was recorded 7 degrees off goes, with rule, value and threshold; the rest stays."""
    frames = values.field(3, 3)
    plan = values.plan_of([*frames, values.frame_plan(99, values.wcs_at(90.8, -5.4))])
    assert {f for t in plan.tiles for f in t.frames} == {f.frame for f in frames}
    (left,) = plan.left_out
    assert (left.frame, left.reason.rule, left.reason.threshold) == (f"{99:024x}", "far_from_target", 12.0)
    assert isinstance(left.reason.value, float)
    assert left.reason.value > 12.0
    assert "6.9" in left.reason.message


def test_a_frame_on_the_other_side_of_the_sky_is_left_out() -> None:
    """Even where no tangent plane holds both."""
    frames = values.field(2, 2)
    plan = values.plan_of([*frames, values.frame_plan(99, values.wcs_at(263.8, 5.4))])
    assert len(plan.frames) == 4
    assert [left.reason.rule for left in plan.left_out] == ["far_from_target"]
    assert plan.left_out[0].reason.threshold == 90.0


def test_a_mosaic_too_large_for_its_limit_loses_its_far_tiles() -> None:
    """`max_mosaic_pixels` is the threshold that is named then."""
    frames = values.field(1, 6)
    plan = values.plan_of(frames, max_mosaic_pixels=25_000)
    assert 0 < len(plan.frames) < 6
    for left in plan.left_out:
        assert left.reason.threshold == 25_000
        assert float(left.reason.value or 0) > 25_000


def test_a_long_oblique_strip_is_a_mosaic() -> None:
    """What counts as nearly empty is judged on the rectangle that will be made, not on one with north up."""
    frames = values.field(1, 40, turn_deg=45.0)
    assert len(values.plan_of(frames).frames) == 40
    assert len(values.plan_of(frames, orientation="north").frames) < 40


def test_pointings_of_too_few_frames_are_left_out_by_rule() -> None:
    """`plan.min_frames`, with the count and the limit."""
    frames = [*values.field(1, 2), values.frame_plan(9, values.field(1, 2)[0].wcs)]
    plan = values.plan_of(frames, min_frames=2)
    assert len(plan.frames) == 2
    (left,) = plan.left_out
    assert (left.reason.rule, left.reason.value, left.reason.threshold) == ("too_few_frames", 1, 2)


def test_F29_no_frames_no_tiles() -> None:
    """Nothing in, nothing out; what was left out before keeps its reason."""
    before = LeftOut(frame="a", path="/in/a", reason=Reason(rule="unsolved"))
    plan = make_plan([], [before], PlanSettings())
    assert (plan.tiles, plan.mosaics, plan.left_out) == ((), (), (before,))
    assert (plan.disk_bytes, plan.memory_bytes) == (0, 0)


def test_M2_the_plan_says_what_was_decided() -> None:
    """Counts of all modes, contains_altaz and the session's decision."""
    wcs = values.wcs_at(10.0, 20.0)
    eq, altaz = (values.frame_plan(i, wcs, mount_mode=m) for i, m in enumerate([MountMode.EQ, MountMode.ALT_AZ]))
    mixed, only_eq = values.plan_of([eq, altaz]), values.plan_of([eq], altaz_cleanup_requested=True)
    assert (mixed.contains_altaz, mixed.altaz_cleanup, mixed.altaz_decision) == (True, True, "auto")
    assert (only_eq.contains_altaz, only_eq.altaz_cleanup, only_eq.altaz_decision) == (False, False, "disabled")
    assert mixed.mount_modes == {MountMode.EQ: 1, MountMode.ALT_AZ: 1, MountMode.UNKNOWN: 0}


# --- the lattice


def bounds(frames: Sequence[FramePlan], base: Wcs) -> tuple[float, float]:
    """Width and height of the footprints on a lattice."""
    grids = [Grid(wcs=f.wcs, width=f.facts.width, height=f.facts.height) for f in frames]
    points = np.array([sphere.sky_to_pixel(base, v) for g in grids for v in sphere.footprint(g)])
    width, height = np.ptp(points, axis=0)
    return float(width), float(height)


def turned(base: Wcs, degrees: float) -> Wcs:
    """A lattice with its axes turned."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    c11, c12, c21, c22 = base.cd
    return replace(base, cd=(c11 * c + c12 * s, c12 * c - c11 * s, c21 * c + c22 * s, c22 * c - c21 * s))


@pytest.mark.parametrize("turn_deg", [0.0, 12.3, 44.0, 45.0, 80.0, 130.0])
@pytest.mark.parametrize("dec_deg", [-5.4, 60.0, 89.9])
def test_the_lattice_lies_along_the_least_rectangle(turn_deg: float, dec_deg: float) -> None:
    """No turn in steps of a tenth of a degree gives a smaller rectangle round all footprints."""
    frames = values.field(3, 2, turn_deg=turn_deg, dec_deg=dec_deg)
    base = lattice(frames, "auto")
    width, height = bounds(frames, base)
    north = lattice(frames, "north")
    least = min(math.prod(bounds(frames, turned(north, 0.1 * k))) for k in range(900))
    assert width * height <= least * 1.0001


@given(st.lists(st.tuples(st.integers(-300, 300), st.integers(-300, 300)), min_size=1, max_size=6), st.floats(0, 180))
@settings(max_examples=40)
def test_the_lattice_lies_along_the_least_rectangle_of_any_field(steps: list[tuple[int, int]], turn: float) -> None:
    """Random pointings and orientations, against brute force in steps of half a degree."""
    base = values.wcs_at(10.0, 40.0)
    places = [sphere.position(sphere.pixel_to_sky(base, x, y)) for x, y in steps]
    frames = [values.frame_plan(i, values.wcs_at(*p, turn_deg=turn + 7.0 * i)) for i, p in enumerate(places)]
    north = lattice(frames, "north")
    least = min(math.prod(bounds(frames, turned(north, 0.5 * k))) for k in range(180))
    assert math.prod(bounds(frames, lattice(frames, "auto"))) <= least * 1.0001


@pytest.mark.parametrize("turn_deg", [0.0, 12.3, 44.0, 80.0, 130.0, 200.0])
def test_the_lattice_keeps_north_nearest_to_up(turn_deg: float) -> None:
    """Of the four quarter turns, that with north within 45 degrees of up; east is left; the scale is the frames'."""
    base = lattice(values.field(2, 3, turn_deg=turn_deg), "auto")
    angle = sphere.position_angle_deg(base)
    assert min(angle, 360.0 - angle) <= 45.0 + 1e-6
    assert base.cd[0] * base.cd[3] - base.cd[1] * base.cd[2] < 0.0
    assert sphere.scale_arcsec(base) == pytest.approx(values.SCALE_ARCSEC)


def test_north_mode_puts_north_up_and_east_left() -> None:
    """Whatever the frames' orientation."""
    base = lattice(values.field(2, 3, turn_deg=33.0), "north")
    s = values.SCALE_ARCSEC / 3600.0
    assert base.cd == pytest.approx((-s, 0.0, 0.0, s))


@pytest.mark.parametrize(
    "place", [(83.8, -5.4), (0.0, 0.0), (359.99, 45.0), (123.0, 89.9), (10.0, -89.97), (0.0, 90.0)]
)
@pytest.mark.parametrize("orientation", ["auto", "north"])
def test_windows_hold_all_footprints_anywhere_on_the_sphere(place: tuple[float, float], orientation: str) -> None:
    """Phase 4 at the equator, across RA 0 and round both poles: every pixel centre is inside, and little else is."""
    frames = values.field(3, 4, ra_deg=place[0], dec_deg=place[1], turn_deg=20.0)
    plan = values.plan_of(frames, orientation=orientation)
    (mosaic,) = plan.mosaics
    assert len(plan.frames) == 12
    assert all(seen(t.grid, plan.frames[f]) for t in plan.tiles for f in t.frames)
    whole = union((t.grid for t in plan.tiles), mosaic.lattice)
    assert all(seen(whole, f) for f in frames)
    width, height = bounds(frames, mosaic.lattice)
    assert whole.width <= width + 1
    assert whole.height <= height + 1


@pytest.mark.parametrize("outward_px", [1.1, -1.1])
def test_a_window_holds_what_a_bent_frame_saw(outward_px: float) -> None:
    """Every pixel of its edge has a place in it, and a pixel more would be too much, however the lens bends."""
    frame = values.frame_plan(1, values.wcs_at(10.0, 20.0), distortion=values.radial(outward_px))
    assert window([replace(frame, distortion=None)], frame.wcs) == (0, 0, values.WIDTH, values.HEIGHT)
    x0, y0, x1, y1 = window([frame], frame.wcs) or (0, 0, 0, 0)
    rows, columns = range(values.HEIGHT), range(values.WIDTH)
    ring = [(x, y) for x in columns for y in (rows[0], rows[-1])] + [(x, y) for y in rows for x in (0, columns[-1])]
    assert frame.distortion is not None
    xs, ys = zip(*(sphere.ideal_pixel(frame.distortion, x, y) for x, y in ring), strict=True)
    assert (x0, y0) == pytest.approx((min(xs), min(ys)), abs=1.0)
    assert (x1 - 1, y1 - 1) == pytest.approx((max(xs), max(ys)), abs=1.0)
    assert (x0, y0, x1, y1) != (0, 0, values.WIDTH, values.HEIGHT) or outward_px > 0


def test_a_union_is_the_smallest_window_round_its_windows() -> None:
    """Its box is the outermost of all boxes."""
    base = values.wcs_at(10.0, 20.0)
    boxes: list[Box] = [(-30, 5, 10, 20), (0, 0, 7, 90), (3, 3, 4, 4)]
    grid = union([planner.cut(base, b) for b in boxes], base)
    assert box_of(grid, base) == (-30, 0, 10, 90)


def test_one_small_frame_makes_a_mosaic_of_its_own_size() -> None:
    """There is no minimum size (Phase 4)."""
    frame = values.frame_plan(1, values.wcs_at(10.0, 20.0, width=17, height=16), width=17, height=16)
    (tile,) = values.plan_of([frame]).tiles
    assert (tile.grid.width, tile.grid.height) == (17, 16)


def test_a_window_is_refused_beyond_the_tangent_plane() -> None:
    """None where a footprint lies on the far side of the sky, and for no frames."""
    assert window([values.frame_plan(1, values.wcs_at(190.0, -20.0))], values.wcs_at(10.0, 20.0)) is None
    assert window([], values.wcs_at(10.0, 20.0)) is None


# --- what it will cost


def deep(count: int, bayer: str = "") -> TileSpec:
    """A tile of many frames."""
    (tile,) = values.plan_of([values.frame_plan(1, values.wcs_at(10.0, 20.0), bayer=bayer)]).tiles
    return replace(tile, frames=tuple(str(i) for i in range(count)))


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=25)
def test_M5_estimates_grow_with_the_work(few: int, more: int, colour: bool) -> None:
    """Disk and memory are positive, and do not shrink when frames are added or planes are."""
    few, more = min(few, more), max(few, more)
    wcs, bayer = values.wcs_at(10.0, 20.0), "GRBG" if colour else ""
    small, large = (values.plan_of([values.frame_plan(i, wcs, bayer=bayer) for i in range(n)]) for n in (few, more))
    mono = values.plan_of([values.frame_plan(i, wcs) for i in range(few)])
    assert 0 < mono.disk_bytes <= small.disk_bytes <= large.disk_bytes
    assert 0 < mono.memory_bytes <= small.memory_bytes <= large.memory_bytes


def test_M5_disk_grows_with_batches() -> None:
    """Every tile of a batch costs its place, and the mosaic once."""
    frames = [values.frame_plan(i, values.wcs_at(10.0, 20.0)) for i in range(12)]
    one, three = values.plan_of(frames), values.plan_of(frames, batch_cap=4)
    assert three.disk_bytes == 2 * one.disk_bytes


@given(st.integers(1, 10_000), st.integers(0, 200_000_000), st.sampled_from(["", "GRBG"]))
@settings(max_examples=150)
def test_M5_a_window_with_its_halo_stays_within_the_budget(count: int, budget: int, bayer: str) -> None:
    """Samples and codes of a window, and of the halo that goes with it, fit, down to the least window there is."""
    tile = deep(count, bayer)
    rows, columns = planner.window_of(tile, budget)
    assert 1 <= rows <= tile.grid.height
    assert 1 <= columns <= tile.grid.width
    small = max(rows, columns) <= planner.LEAST_SIDE
    filled = rows * tile.grid.width * (8 * tile.channels + 4)
    assert small or planner.window_bytes(tile, (rows, columns)) <= budget + filled
    assert planner.HALO == 2 * (combine.HALO + 1)


def test_M5_windows_go_from_small_and_broad_to_the_whole_tile() -> None:
    """Caches are read by whole rows, so windows of many frames are broader than high, and no stripes either: what a
    window carries for its neighbours is computed twice."""
    tile = deep(2000, "GRBG")
    rows, columns = planner.window_of(tile, 50_000_000)
    assert 2.0 < columns / rows < 8.0
    assert planner.window_of(tile, 10**12) == (tile.grid.height, tile.grid.width)


@given(st.integers(1, 300), st.integers(1, 8), st.integers(4_000_000, 500_000_000))
@settings(max_examples=100)
def test_M5_windows_of_whole_rows_are_dealt_evenly_to_threads(count: int, threads: int, budget: int) -> None:
    """As many windows as the threads can share, so that none waits while another makes the last."""
    tile = deep(count, "GRBG")
    rows, columns = planner.window_of(tile, budget, threads)
    alone, _ = planner.window_of(tile, budget)
    assert rows <= alone
    if columns == tile.grid.width and rows > planner.LOW_ROWS:
        assert -(-tile.grid.height // rows) % threads == 0
