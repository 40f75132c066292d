"""What the sky and the lens did to each frame is told apart by what changes (SPEC M5, phases 2 and 3)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaicd.science.skylight import BlockMap, FrameSky, Illumination, SkyPlane, solve_skies

WIDTH, HEIGHT, ROWS, COLUMNS = 1080, 1920, 15, 8
BLACK, ADU_PER_ELECTRON = 500.0, 4.0
MIDDLE = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
HALF = math.hypot(WIDTH, HEIGHT) / 2


class Night:
    """Block maps of n frames of a nebula under a sky that grows, tilts and clouds over, through a lens that dims."""

    def __init__(self, n: int, *, dimming: float = 0.08, growth: float = 0.25, turn_deg: float = 0.0, seed: int = 1):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:ROWS, 0:COLUMNS]
        self.x = (x + 0.5) * WIDTH / COLUMNS - 0.5 - MIDDLE[0]
        self.y = (y + 0.5) * HEIGHT / ROWS - 0.5 - MIDDLE[1]
        r2 = (self.x**2 + self.y**2) / HALF**2
        self.f = 1.0 - dimming * r2
        self.light = 250.0 * (1.0 + growth * np.linspace(-0.5, 0.5, n) + 0.01 * rng.normal(size=n)) * ADU_PER_ELECTRON
        self.slope = 0.1 * np.stack([np.cos(np.arange(n) / 9.0), np.sin(np.arange(n) / 9.0)], axis=1)
        self.transparency = 1.0 - 0.2 * rng.random(n)
        self.frames = []
        for i in range(n):
            angle, shift = math.radians(turn_deg * i), rng.normal(0.0, 8.0, 2)
            c, s = math.cos(angle), math.sin(angle)
            matrix = (
                c,
                -s,
                MIDDLE[0] - c * MIDDLE[0] + s * MIDDLE[1] + shift[0],
                s,
                c,
                MIDDLE[1] - s * MIDDLE[0] - c * MIDDLE[1] + shift[1],
                0.0,
                0.0,
                1.0,
            )
            u = c * self.x - s * self.y + MIDDLE[0] + shift[0]
            v = s * self.x + c * self.y + MIDDLE[1] + shift[1]
            nebula = 300.0 * np.exp(-((u - 400.0) ** 2 + (v - 700.0) ** 2) / 2 / 350.0**2)
            colours = []
            for share in (0.8, 1.0, 0.7):
                plane = 1.0 + (self.x * self.slope[i, 0] + self.y * self.slope[i, 1]) / HALF
                light = self.f * (nebula * self.transparency[i] + share * self.light[i] * plane)
                noise = np.sqrt(light * ADU_PER_ELECTRON)
                colours.append(
                    (BLACK + light + rng.normal(0.0, noise / 30.0), noise * (1.0 + 0.02 * rng.normal(size=light.shape)))
                )
            blocks = BlockMap(
                level=np.array([level for level, _ in colours], np.float32),
                noise=np.array([noise for _, noise in colours], np.float32),
            )
            self.frames.append(
                FrameSky(
                    blocks=blocks,
                    to_common=matrix,
                    transparency=np.full(3, self.transparency[i]),
                    width=WIDTH,
                    height=HEIGHT,
                    camera="S50",
                )
            )

    def solved(self) -> tuple[list[SkyPlane], Illumination]:
        (planes,), light = solve_skies([self.frames])
        return planes, light["S50"]


@given(
    dimming=st.floats(0.03, 0.25),
    growth=st.floats(0.15, 0.6),
    turn=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 999),
)
@settings(max_examples=15)
def test_a_sky_that_grows_shows_the_illumination(dimming: float, growth: float, turn: float, seed: int) -> None:
    """Vignetting is measured to a fifth of itself, corners included, though a nebula lies over the field."""
    _, light = Night(24, dimming=dimming, growth=growth, turn_deg=turn, seed=seed).solved()
    assert light.used
    r2 = np.linspace(0.0, 0.9, 10)
    assert np.abs(light.at(r2) - (1.0 - dimming * r2)).max() < 0.2 * dimming
    assert light.dimming == pytest.approx(dimming * 0.235, rel=0.25)


@given(seed=st.integers(0, 999))
@settings(max_examples=15)
def test_no_illumination_is_claimed_where_there_is_none(seed: int) -> None:
    """A flat field stays flat: what is measured is below what would count."""
    _, light = Night(24, dimming=0.0, seed=seed).solved()
    assert not light.used


def test_a_frame_with_data_in_one_line_spoils_no_other() -> None:
    """All that is known of a frame lies in one column of blocks, which determines no plane: it gets its level, to 1 %,
    and no slope but the group's own; the others get what they would have had, to 1 ADU of 1,000.
    """
    night = Night(24)
    whole, _ = night.solved()
    blocks = night.frames[3].blocks
    beside = np.arange(COLUMNS) != 3
    level = np.where(beside, np.float32(np.nan), blocks.level)
    night.frames[3] = replace(night.frames[3], blocks=replace(blocks, level=level))
    planes, light = night.solved()
    assert light.used
    assert planes[3].level == pytest.approx(whole[3].level, rel=0.01)
    assert max(np.abs(planes[3].slope_x).max(), np.abs(planes[3].slope_y).max()) < 0.1
    others = [i for i in range(24) if i != 3]
    assert max(np.abs(planes[i].level - whole[i].level).max() for i in others) < 1.0


@pytest.mark.parametrize("seed", range(5))
def test_few_frames_show_no_illumination(seed: int) -> None:
    """Of seven frames the halves may agree by chance: the illumination is left alone rather than guessed."""
    _, light = Night(7, growth=0.0, seed=seed).solved()
    assert not light.used


@given(seed=st.integers(0, 999))
@settings(max_examples=15)
def test_what_cannot_be_told_from_a_nebula_is_not_used(seed: int) -> None:
    """Few frames, all alike: either the halves disagree and nothing is used, or what is used is right to a half."""
    _, light = Night(8, growth=0.0, seed=seed).solved()
    assert not light.used or light.dimming == pytest.approx(0.08 * 0.235, rel=0.5)


def test_planes_bring_the_frames_together() -> None:
    """Less their own planes (and bowls) all frames show the same sky, to a block's noise, whatever tilted them."""
    night = Night(24)
    planes, light = night.solved()
    x, y = night.x, night.y
    left = []
    for frame, plane, t in zip(night.frames, planes, night.transparency, strict=True):
        f = light.at((x**2 + y**2) / HALF**2)
        for k in range(3):
            sky = plane.level[k] + plane.slope_x[k] * x + plane.slope_y[k] * y + plane.light[k] * (f - 1.0)
            left.append((frame.blocks.level[k] - sky) / (f * t))
    apart = np.array(left).reshape(24, 3, -1)
    assert np.std(apart - apart.mean(axis=0), axis=(0, 2)).max() < 6.0
    assert abs(np.mean([p.slope_x for p in planes])) * HALF < 2.0
    assert abs(np.mean([p.slope_y for p in planes])) * HALF < 2.0


def test_the_light_is_what_lies_over_the_black_level() -> None:
    """The camera's pedestal, which no lens dims, is found from how the noise grows with the light."""
    night = Night(24)
    planes, _ = night.solved()
    for k, share in enumerate((0.8, 1.0, 0.7)):
        measured = np.array([p.light[k] for p in planes])
        assert measured == pytest.approx(share * night.light, rel=0.12)


def test_a_frame_alone_keeps_its_level_and_no_slope_is_lost() -> None:
    """One frame has nothing to be compared with: its level is its own, its slope stays with it."""
    night = Night(1)
    (plane,), light = night.solved()
    assert not light.used
    assert plane.level == pytest.approx(np.nanmedian(night.frames[0].blocks.level, axis=(1, 2)), rel=0.03)
    assert (plane.slope_x, plane.slope_y) == (pytest.approx(np.zeros(3)), pytest.approx(np.zeros(3)))


def test_blocks_without_data_say_nothing() -> None:
    """NaN in a corner of every frame, and a frame without any: the others come out as without them."""
    night = Night(16)
    whole, light = night.solved()
    for frame in night.frames:
        frame.blocks.level[:, :3, :3] = np.nan
    nothing = np.full((3, ROWS, COLUMNS), np.nan, np.float32)
    blind = replace(night.frames[5], blocks=BlockMap(level=nothing, noise=nothing))
    night.frames[5] = blind
    holed, other = night.solved()
    assert other.terms[0] == pytest.approx(light.terms[0], abs=0.02)
    for i in (0, 8, 15):
        assert holed[i].level == pytest.approx(whole[i].level, abs=12.0)


def test_small_frames_keep_their_levels() -> None:
    """Frames of a block or two have no slope that could be told; nothing is solved, and nothing fails."""
    night = Night(5)
    small = [
        replace(f, blocks=BlockMap(level=f.blocks.level[:, :1, :2], noise=f.blocks.noise[:, :1, :2]))
        for f in night.frames
    ]
    (planes,), light = solve_skies([small])
    assert not light["S50"].used
    for frame, plane in zip(small, planes, strict=True):
        assert plane.level == pytest.approx(np.median(frame.blocks.level, axis=(1, 2)), rel=0.01)
        assert not plane.slope_x.any()


def test_block_maps_travel_as_bytes() -> None:
    """What is packed is unpacked; anything else is refused."""
    blocks = Night(1).frames[0].blocks
    again = BlockMap.from_bytes(blocks.to_bytes())
    assert np.array_equal(again.level, blocks.level)
    assert np.array_equal(again.noise, blocks.noise)
    for wrong in (b"", b"ZBM1", blocks.to_bytes()[:-1], b"XXXX" + blocks.to_bytes()[4:]):
        with pytest.raises(ValueError):
            BlockMap.from_bytes(wrong)
