"""Tiles with no overlap (I6): islands of footprints, told apart on the sphere; one mosaic and a warning, or several."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strangers, values
from tests.nights import Place
from zemosaicd import sphere
from zemosaicd.core.cells import deal_cells
from zemosaicd.core.islands import islands, overlap
from zemosaicd.core.plan import Deal, PlanSettings, canonical, make_plan
from zemosaicd.core.sweeps import deal_sweeps
from zemosaicd.model import FramePlan, Grid

SIDE = 8
"""Frames lie on places of a raster of so many a side, a part of a frame apart."""
PLACES = st.sampled_from([(83.0, 20.0), (359.999, -5.0), (10.0, 90.0), (200.0, -89.99)])


def on_raster(place: tuple[float, float], cells: list[tuple[int, int]], gap: float) -> list[FramePlan]:
    """Frames of one tangent plane at cells of a raster, `gap` of a frame from one cell to the next."""
    base = values.wcs_at(*place, turn_deg=33.0)
    return [
        values.frame_plan(
            i, values.shifted(base, gap * values.WIDTH * (x - SIDE / 2), gap * values.HEIGHT * (y - SIDE / 2))
        )
        for i, (x, y) in enumerate(cells)
    ]


def touching(cells: list[tuple[int, int]], reach: int) -> set[frozenset[tuple[int, int]]]:
    """The islands of cells that are at most `reach` apart in x and in y, found by walking."""
    left, found = set(cells), set()
    while left:
        island, fresh = set(), {left.pop()}
        while fresh:
            island |= fresh
            fresh = {c for c in left if any(max(abs(c[0] - x), abs(c[1] - y)) <= reach for x, y in fresh)}
            left -= fresh
        found.add(frozenset(island))
    return found


CELLS = st.lists(st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1)), min_size=1, max_size=14, unique=True)


@given(PLACES, CELLS, st.sampled_from([(0.7, 1), (0.45, 2), (1.0, 0)]), st.randoms())
def test_islands_are_the_parts_that_hang_together_I6(
    place: tuple[float, float], cells: list[tuple[int, int]], spacing: tuple[float, int], chance: random.Random
) -> None:
    """Every frame is in one island; two frames are in one exactly if a chain of overlaps joins them (edges that only
    touch are none), at the poles and over the RA wrap too, in whatever order the frames come."""
    gap, reach = spacing
    frames = on_raster(place, cells, gap)
    cell_of = {f.frame: cell for f, cell in zip(frames, cells, strict=True)}
    found = islands([[f] for f in frames])
    assert sorted(f.frame for part in found for g in part for f in g) == sorted(f.frame for f in frames)
    assert {frozenset(cell_of[f.frame] for g in part for f in g) for part in found} == touching(cells, reach)
    chance.shuffle(frames)
    again = islands([[f] for f in frames])
    assert {frozenset(f.frame for g in part for f in g) for part in found} == {
        frozenset(f.frame for g in part for f in g) for part in again
    }


@given(
    st.floats(0, 360), st.floats(-90, 90), st.floats(0, 2.2), st.floats(0, 360), st.floats(0, 360), st.integers(1, 300)
)
def test_footprints_overlap_where_they_share_sky_I6(
    ra: float, dec: float, away: float, along_deg: float, turn_deg: float, scale: int
) -> None:
    """Two frames overlap exactly if a point of one is inside the other, whatever their turn, scale and place."""
    a = values.wcs_at(ra, dec, scale_arcsec=float(scale))
    reach, along = away * values.WIDTH, np.radians(along_deg)
    v = sphere.pixel_to_sky(a, a.x_px + reach * np.cos(along), a.y_px + reach * np.sin(along))
    b = values.wcs_at(*sphere.position(v), turn_deg=turn_deg, scale_arcsec=float(scale))
    first, second = values.frame_plan(1, a), values.frame_plan(2, b)
    u, w = np.meshgrid(np.linspace(-0.45, values.WIDTH - 0.55, 70), np.linspace(-0.45, values.HEIGHT - 0.55, 50))
    shared = False
    for one, other in ((a, b), (b, a)):
        m = np.array(sphere.homography(one, other)).reshape(3, 3)
        x, y, depth = m @ np.stack([u.ravel(), w.ravel(), np.ones(u.size)])
        inside = (
            (depth > 0)
            & (np.abs(x / depth - a.x_px) < values.WIDTH / 2)
            & (np.abs(y / depth - a.y_px) < values.HEIGHT / 2)
        )
        shared = shared or bool(inside.any())
    corners = [sphere.footprint(grid_of(f)) for f in (first, second)]
    said = overlap(*corners)
    assert said or not shared  # what shares a point overlaps
    if said and not shared:  # only a corner of less than a step of the raster
        grown = [sphere.footprint(grid_of(f, -3)) for f in (first, second)]
        assert not overlap(*grown)


def grid_of(frame: FramePlan, margin: int = 0) -> Grid:
    """The frame's pixels, some rows and columns more (or fewer) all round."""
    wcs = values.shifted(frame.wcs, -margin, -margin)
    return Grid(wcs=wcs, width=frame.facts.width + 2 * margin, height=frame.facts.height + 2 * margin)


def far_apart() -> list[FramePlan]:
    """Two pointings that overlap, and three degrees on another two."""
    return canonical(
        values.frame_plan(10 * k + i, values.wcs_at(50.0 + ra + 0.02 * i, 10.0))
        for k, ra in enumerate((0.0, 3.0))
        for i in range(2)
    )


def test_one_mosaic_holds_all_islands_and_says_so_I6() -> None:
    """The default: what lies too far off is left out as ever, what does not is in one mosaic of two parts."""
    plan = values.plan_of(far_apart(), sparse_limit=1e6, group_radius_fraction=0.1)
    (mosaic,) = plan.mosaics
    assert (mosaic.parts, len(mosaic.tiles)) == (2, 4)
    near = values.plan_of(far_apart()[:2])
    assert near.mosaics[0].parts == 1


def test_several_mosaics_are_one_an_island_I6() -> None:
    """Each island has a lattice, a name and tiles of its own, however far apart; nothing is left out. A single island
    keeps its plain name."""
    plan = values.plan_of(far_apart(), islands="several", group_radius_fraction=0.1)
    assert [m.name for m in plan.mosaics] == ["none-mono-part1", "none-mono-part2"]
    assert not plan.left_out
    assert [m.parts for m in plan.mosaics] == [1, 1]
    assert sorted(t for m in plan.mosaics for t in m.tiles) == [t.tile for t in plan.tiles] == [1, 2, 3, 4]
    assert {t.mosaic for t in plan.tiles} == {m.name for m in plan.mosaics}
    for m in plan.mosaics:
        middle = sphere.direction(m.lattice.ra_deg, m.lattice.dec_deg)
        for t in (t for t in plan.tiles if t.mosaic == m.name):
            assert sphere.separation_deg(middle, sphere.centre_of(t.grid)) < 0.1
    assert [m.name for m in values.plan_of(far_apart()[:2], islands="several").mosaics] == ["none-mono"]


@given(st.permutations(range(4)))
def test_C7_islands_have_the_same_names_in_whatever_order_frames_come_I6(order: list[int]) -> None:
    """Numbers follow the islands' first frames, not their arrival."""
    frames = far_apart()
    first = values.plan_of(frames, islands="several")
    assert values.plan_of([frames[i] for i in order], islands="several") == first


def test_D4_several_mosaics_of_existing_tiles_lie_beside_one_another_I6(tmp_path: Path) -> None:
    """`process`: two islands of tiles become two mosaics, each in a folder of its own with its report; by default one
    with a warning, or, too far apart, what is too far left out."""
    place = Place(tmp_path, ("session.mode=existing", "mosaic.islands=several"))
    pair = strangers.square()[:2]
    strangers.write(place.incoming, [*pair, *(replace(t, ra_deg=t.ra_deg + 3.0) for t in pair)])
    assert place.process() == 0
    reports = [json.loads(p.read_text()) for p in sorted(place.output.glob("*/report.json"))]
    assert sorted(r["mosaic"] for r in reports) == ["none-mono-part1", "none-mono-part2"]
    assert all(r["num_master_tiles"] == 2 for r in reports)
    assert all(r["seams"]["parts"] == 1 for r in reports)
    assert not place.events("mosaic_islands")
    assert len({p.parent for p in place.output.glob("*/mosaic.fits")}) == 2


def test_D4_islands_near_each_other_are_one_mosaic_with_a_warning_I6(tmp_path: Path) -> None:
    """The default policy through `process`."""
    place = Place(tmp_path, ("session.mode=existing", "mosaic.islands=one"))
    pair = strangers.square()[:2]
    strangers.write(place.incoming, [*pair, *(replace(t, ra_deg=t.ra_deg + 1.0) for t in pair)])
    assert place.process() == 0
    assert place.report()["islands"] == 2
    (line,) = place.events("mosaic_islands")
    assert (line["level"], line["parts"]) == ("warning", 2)


@pytest.mark.parametrize("deal", [deal_cells, lambda *said: deal_sweeps(*said)[0]], ids=["grid", "sds"])
def test_D3_D2_cells_and_mega_tiles_are_dealt_out_island_by_island_I6(deal: Deal) -> None:
    """In modes grid and SDS too each island is a mosaic of its own tiles, numbered on, with its own frames."""
    frames = far_apart()
    plan = make_plan(frames, (), PlanSettings(islands="several"), deal)
    assert [m.name for m in plan.mosaics] == ["none-mono-part1", "none-mono-part2"]
    assert sorted(t for m in plan.mosaics for t in m.tiles) == list(range(1, len(plan.tiles) + 1))
    for name, part in zip([m.name for m in plan.mosaics], (frames[:2], frames[2:]), strict=True):
        assert {f for t in plan.tiles if t.mosaic == name for f in t.frames} == {f.frame for f in part}
