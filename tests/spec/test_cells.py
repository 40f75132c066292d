"""Cells (D3): butted windows that cover the mosaic, each with every frame that touches it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import values
from zemosaicd import codec, sphere
from zemosaicd.core.canvas import box_of, union
from zemosaicd.core.cells import SURE_PX, deal_cells, divide, meets
from zemosaicd.core.plan import PlanSettings, kind_of, make_plan
from zemosaicd.model import FramePlan, Plan


@st.composite
def nights(draw: st.DrawFn) -> list[FramePlan]:
    """Up to 10 frames of two kinds, turned and moved, round a place that may be a pole or RA 0."""
    centre = values.wcs_at(*draw(st.sampled_from([(83.8, -5.4), (0.01, 0.0), (200.0, 89.99)])))
    frames = []
    for number in range(draw(st.integers(1, 10))):
        v = sphere.pixel_to_sky(centre, draw(st.integers(-100, 200)), draw(st.integers(-100, 200)))
        wcs = values.wcs_at(*sphere.position(v), turn_deg=draw(st.sampled_from([0.0, 3.0, 90.0, 180.0, 45.0])))
        changes = {"exposure_s": draw(st.sampled_from([10.0, 20.0])), "bayer": draw(st.sampled_from(["", "GRBG"]))}
        frames.append(values.frame_plan(number, wcs, **changes))
    return frames


def cells_of(frames: list[FramePlan], **chosen: float) -> Plan:
    return make_plan(frames, (), PlanSettings(**chosen), deal_cells)  # type: ignore[arg-type]


def inside(frame: FramePlan, plan: Plan, mosaic: int, edge_px: float) -> tuple[np.ndarray, tuple[int, int]]:
    """(H, W) of the mosaic's pixels whose centres lie `edge_px` inside a frame, and where the mosaic begins."""
    spec = plan.mosaics[mosaic]
    grid = union((t.grid for t in plan.tiles if t.tile in spec.tiles), spec.lattice)
    m = np.array(sphere.homography(grid.wcs, frame.wcs)).reshape(3, 3)
    y, x = np.mgrid[0 : grid.height, 0 : grid.width]
    u, v, w = np.einsum("ij,jhw->ihw", m, np.stack([x, y, np.ones_like(x)]))
    u, v = u / w, v / w
    seen = (u >= edge_px) & (v >= edge_px)
    seen &= (u <= frame.facts.width - 1 - edge_px) & (v <= frame.facts.height - 1 - edge_px)
    return seen, box_of(grid, spec.lattice)[:2]


@given(nights(), st.sampled_from([0.3, 0.7, 1.0, 5.0]))
@settings(max_examples=60)
def test_D3_every_pixel_of_a_frame_is_in_one_cell_that_has_the_frame(frames: list[FramePlan], size: float) -> None:
    """Of a kind's cells no two share a pixel; each pixel that a frame sees lies in a cell, and the frame is in it."""
    plan = cells_of(frames, cell_size=size)
    for number, mosaic in enumerate(plan.mosaics):
        cells = [t for t in plan.tiles if t.tile in mosaic.tiles]
        for group in {t.group for t in cells}:
            mine = [t for t in cells if t.group == group]
            members = {f for t in mine for f in t.frames}
            assert len({kind_of(plan.frames[f]) for f in members}) == 1
            owner: np.ndarray | None = None
            for name in sorted(members):
                seen, (left, top) = inside(plan.frames[name], plan, number, SURE_PX)
                owner = np.zeros(seen.shape, np.int64) if owner is None else owner
                having = np.zeros(seen.shape, np.bool_)
                for t in mine:
                    x0, y0, x1, y1 = box_of(t.grid, mosaic.lattice)
                    here = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
                    owner[here] += name == min(members)
                    having[here] |= name in t.frames
                assert having[seen].all()
            assert owner is not None
            assert owner.max() == 1


@given(nights(), st.sampled_from([0.3, 1.0]))
@settings(max_examples=40)
def test_D3_no_cell_is_empty_and_none_has_a_frame_too_many(frames: list[FramePlan], size: float) -> None:
    """A frame of each cell surely sees a pixel of it; a frame in a cell comes within a pixel of it."""
    plan = cells_of(frames, cell_size=size)
    for number, mosaic in enumerate(plan.mosaics):
        sure = {f: inside(plan.frames[f], plan, number, SURE_PX - 1)[0] for f in plan.frames
                if any(f in t.frames for t in plan.tiles if t.tile in mosaic.tiles)}  # fmt: skip
        loose = {f: inside(plan.frames[f], plan, number, -1.5) for f in sure}
        for t in (t for t in plan.tiles if t.tile in mosaic.tiles):
            (left, top), (x0, y0, x1, y1) = loose[t.frames[0]][1], box_of(t.grid, mosaic.lattice)
            here = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
            assert any(sure[f][here].any() for f in t.frames)
            assert all(loose[f][0][here].any() for f in t.frames)


@given(nights())
@settings(max_examples=30)
def test_C7_arrival_leaves_no_trace_in_the_cells(frames: list[FramePlan]) -> None:
    """Shuffled frames give the same plan; cells are numbered from 1, and those of a kind have one reference."""
    plan = cells_of(frames)
    assert codec.dumps(cells_of(random.Random(1).sample(frames, len(frames)))) == codec.dumps(plan)
    assert [t.tile for t in plan.tiles] == list(range(1, len(plan.tiles) + 1))
    for group in {t.group for t in plan.tiles}:
        assert len({t.reference for t in plan.tiles if t.group == group}) == 1
    assert {t.reference for t in plan.tiles} <= set(plan.frames)


def test_R8_cells_share_frames_in_earnest() -> None:
    """Of two by two pointings in cells of half a frame, every frame is in several cells, and cells mix pointings."""
    plan = cells_of(values.field(2, 2), cell_size=0.5)
    users = [sum(f in t.frames for t in plan.tiles) for f in plan.frames]
    assert min(users) >= 4
    assert max(len(t.frames) for t in plan.tiles) == 4


@given(st.integers(-50, 50), st.integers(1, 300), st.integers(1, 200), st.floats(1.0, 120.0))
def test_D3_a_box_is_divided_evenly(low: int, width: int, height: int, side: float) -> None:
    """The parts tile the box, none is longer than asked for, and their sides differ by a pixel at most."""
    parts = divide((low, 0, low + width, height), side)
    assert sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in parts) == width * height
    sides = {x1 - x0 for x0, _, x1, _ in parts}
    assert max(sides) <= side + 1
    assert max(sides) - min(sides) <= 1


@pytest.mark.parametrize(
    ("cell", "expected"),
    [((0, 0, 5, 5), True), ((9, 4, 20, 7), True), ((10, 0, 20, 3), False), ((-9, -9, -1, -1), False)],
)
def test_D3_a_diamond_meets_what_it_reaches(cell: tuple[int, int, int, int], expected: bool) -> None:
    """Not what only its bounding box reaches."""
    assert meets([(0, 5), (5, 0), (10, 5), (5, 10)], cell) is expected
