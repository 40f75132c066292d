"""Haze and low altitude redden the light of a frame: what they take from each colour is given back to that colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import scenes, values
from zemosaicd.model import FramePlan
from zemosaicd.science.photometry import frame_scales
from zemosaicd.science.stars import StarList, find_stars, with_colours

W, H, NOISE, FRAMES = 420, 360, 6.0, 6
BASE = values.wcs_at(83.0, -5.0, width=W, height=H)
THIN, THICK = (1.0, 1.0, 1.0), (1.0, 0.9, 0.8)
Night = tuple[list[FramePlan], list[StarList]]


def field() -> list[scenes.Star]:
    """72 stars apart from each other, none near the rim."""
    rng = np.random.default_rng(8)
    places = [(42.0 * i + 42.0, 38.0 * j + 38.0) for j in range(8) for i in range(9)]
    return [
        (x + float(rng.uniform(-4, 4)), y + float(rng.uniform(-4, 4)), float(f))
        for (x, y), f in zip(places, np.geomspace(1.5e4, 2e5, len(places))[rng.permutation(len(places))], strict=True)
    ]


def night(folder: Path, thickest: tuple[float, float, float]) -> Night:
    """Frames a few pixels apart, the haze growing from none to `thickest` (R, G, B)."""
    rng = np.random.default_rng(5)
    frames, pixels, lists = [], [], []
    for i in range(FRAMES):
        wcs = values.shifted(BASE, *rng.uniform(-6, 6, 2))
        frames.append(values.frame_plan(i, wcs, bayer="GRBG", width=W, height=H, noise_adu=(NOISE,) * 3))
        light = scenes.render(wcs, W, H, BASE, field(), "GRBG") - scenes.SKY
        for colour, (x, y) in zip((0, 1, 1, 2), scenes.SITES["GRBG"], strict=True):
            light[y::2, x::2] *= 1.0 - (1.0 - thickest[colour]) * i / (FRAMES - 1)
        plane = (light + scenes.SKY + rng.normal(0.0, NOISE, light.shape)).astype(np.float32)
        pixels.append(plane)
        lists.append(with_colours(find_stars(plane, "GRBG"), plane, "GRBG"))
    return scenes.caches(folder, frames, lambda i, _: pixels[i]), lists


def colours(folder: Path, thickest: tuple[float, float, float]) -> scenes.Array:
    """(stars, 2): red and blue over green of each star on the tile of such a night."""
    folder.mkdir()
    frames, lists = night(folder / "c", thickest)
    scales = frame_scales(lists, [f.wcs for f in frames], 0)
    frames = [replace(f, transparency=s.transparency) for f, s in zip(frames, scales, strict=True)]
    plan = scenes.on_grid(values.plan_of(frames), scenes.Grid(wcs=BASE, width=W, height=H))
    picture = scenes.planes(scenes.stack(folder, plan)[0])[""]
    inside = [s for s in field() if 25 < s[0] < W - 25 and 25 < s[1] < H - 25]
    light = np.array([[scenes.flux(plane, x, y) for plane in picture] for x, y, _ in inside])
    return np.asarray(light[:, ::2] / light[:, 1:2])


def test_stars_keep_their_colour_through_haze_that_reddens(tmp_path: Path) -> None:
    """Of frames of which the last has lost 10 % of green and 20 % of blue, they are as of a clear night (0.5 %)."""
    clear = colours(tmp_path / "clear", THIN)
    hazy = colours(tmp_path / "hazy", THICK)
    assert np.median(hazy / clear, axis=0) == pytest.approx([1.0, 1.0], abs=0.005)


def test_each_frames_haze_is_told_a_channel(tmp_path: Path) -> None:
    """Within half a percent of what each frame lost, in each colour."""
    frames, lists = night(tmp_path / "c", THICK)
    scales = frame_scales(lists, [f.wcs for f in frames], 0)
    for i, scale in enumerate(scales):
        truth = [1.0 - (1.0 - t) * i / (FRAMES - 1) for t in THICK]
        assert scale.transparency == pytest.approx(truth, rel=0.005)
