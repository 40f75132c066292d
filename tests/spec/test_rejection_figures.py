"""What the default rejection leaves of defects and takes of good samples, through the engine's own steps, in figures.

Dithered CFA frames of stars whose seeing varies by 12 %, one night with satellites and cosmic rays, and its twin of the
same noise without; frames are resampled with the default kernel, trails found on each frame, and combined (SPEC M6).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from tests import scenes
from zemosaicd.model import Trail
from zemosaicd.science.combine import Combined, Method, NoiseModel, Rule, combine
from zemosaicd.science.resample import NOISE_GAIN, Kernel, Source, resample
from zemosaicd.science.trails import find_trails

H, W, MARGIN = 288, 320, 16
SKY, SIGMA = 500.0, 10.0
TRAILS = {5: (1, 3), 10: (1, 3, 6, 8), 50: (3, 10, 17, 24, 31, 38, 45)}
"""Which frames of a night of so many a satellite crosses."""
Y, X = np.mgrid[0:H, 0:W].astype(float)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Shares: light left of trails and cosmic rays (1: as in a plain mean), by channel; good samples lost, of all and
    in the cores of stars.
    """

    trails: scenes.Array
    cosmics: scenes.Array
    lost: float
    lost_in_cores: float


def stars() -> scenes.Array:
    """(40, 3): x, y and flux in ADU of stars."""
    rng = np.random.default_rng(4)
    return np.stack([rng.uniform(20, W - 20, 40), rng.uniform(20, H - 20, 40), np.geomspace(2e3, 6e4, 40)], axis=1)


def starlight(dx: float, dy: float, fwhm_px: float) -> scenes.Array:
    """The stars in a frame moved by dx, dy: ADU over the sky, (H, W), without colour."""
    light, sigma = np.zeros((H, W)), fwhm_px / 2.3548
    for x, y, flux in stars():
        u, v = x + dx, y + dy
        left, top = max(0, int(u) - 12), max(0, int(v) - 12)
        box = slice(top, int(v) + 13), slice(left, int(u) + 13)
        r2 = (X[box] - u) ** 2 + (Y[box] - v) ** 2
        light[box] += flux / (2 * np.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)
    return light


@cache
def night(frames: int, brightness: float) -> tuple[scenes.Array, ...]:
    """(frames, H, W) each: exposures without defects, light of trails (peak in sigma), of cosmic rays; dithers."""
    rng = np.random.default_rng(frames)
    clean, trails, cosmics = np.zeros((3, frames, H, W), np.float32)
    dither = rng.normal(0.0, 4.0, (frames, 2)).clip(-10, 10)
    for i in range(frames):
        light = starlight(*dither[i], 2.9 * (1 + 0.12 * float(np.clip(rng.normal(), -2, 2))))
        clean[i] = SKY + light + rng.normal(0.0, 1.0, (H, W)) * np.sqrt(SIGMA**2 + light)
        if i in TRAILS[frames]:
            angle, reach = rng.uniform(0, np.pi), rng.uniform(-60, 60)
            across = (X - W / 2) * np.cos(angle) + (Y - H / 2) * np.sin(angle) - reach
            trails[i] = brightness * SIGMA * np.exp(-0.5 * (across / 1.4) ** 2)
        for _ in range(12):
            x, y = rng.integers(25, W - 25), rng.integers(25, H - 25)
            cosmics[i, y : y + rng.integers(1, 3), x : x + rng.integers(1, 3)] = rng.uniform(30, 300) * SIGMA
    return clean, trails, cosmics, dither


def stack(planes: scenes.Array, dither: scenes.Array, method: Method, *, find: bool) -> Combined:
    """The frames on the grid of the middle, combined by the rule; `find`: trails are looked for on each frame first."""
    n, (height, width) = len(planes), (H - 2 * MARGIN, W - 2 * MARGIN)
    samples, seen = np.empty((n, 3, height, width), np.float32), np.empty((n, height, width), np.bool_)
    lines = []
    for i, (plane, (dx, dy)) in enumerate(zip(planes, dither, strict=True)):
        way = (1.0, 0.0, MARGIN + dx, 0.0, 1.0, MARGIN + dy, 0.0, 0.0, 1.0)
        resample(Source(pixels=plane, bayer="GRBG"), way, (0, 0, width, height), into=(samples[i], seen[i]))
        lines += [(i, _line(t, MARGIN + dx, MARGIN + dy)) for t in (find_trails(plane) if find else ())]
    noise = NoiseModel(variance=np.full((n, 3), SIGMA**2), photon=np.ones((n, 3)), pedestal=np.full(3, SKY))
    rule = Rule(method=method, kernel_gain=NOISE_GAIN[Kernel.KRIGING])
    return combine(samples, seen, np.ones(n), rule, noise, lines=lines)


def _line(trail: Trail, dx: float, dy: float) -> scenes.Array:
    c = trail.a * dx + trail.b * dy + trail.c
    return np.array([trail.a, trail.b, c, trail.half_width_px, 0.0, 0.0, 1.0])


@cache
def figures(frames: int, brightness: float = 10.0, find: bool = True) -> Figures:
    """Of a night of so many frames."""
    clean, trails, cosmics, dither = night(frames, brightness)
    truth, good = (stack(clean, dither, m, find=find) for m in (Method.NONE, Method.AUTO))
    left = []
    for light in (trails, cosmics):
        plain, kept = (stack(clean + light, dither, m, find=find) for m in (Method.NONE, Method.AUTO))
        added = plain.mean - truth.mean
        hit = (np.abs(added) > 0.02 * SIGMA).any(axis=0)
        left.append((kept.mean - good.mean)[:, hit].sum(axis=1) / added[:, hit].sum(axis=1))
    core = starlight(-MARGIN, -MARGIN, 2.9)[: H - 2 * MARGIN, : W - 2 * MARGIN] > 300.0
    samples = int((frames * core).sum())
    lost = int((good.weight.shape[0] * frames - good.weight.sum(axis=0))[core].sum()) / (3 * samples)
    return Figures(
        trails=left[0], cosmics=left[1], lost=float(good.rejected.sum() / good.samples.sum()), lost_in_cores=lost
    )


@pytest.mark.parametrize("find", [True, False])
@pytest.mark.parametrize(("frames", "most"), [(5, 0.15), (10, 0.10), (50, 0.02)])
def test_M6_satellites_leave_little(frames: int, most: float, find: bool) -> None:
    """Of the light of trails of 10 sigma in 2 of 5, 4 of 10 and 7 of 50 frames, in every channel, found or not."""
    assert np.abs(figures(frames, find=find).trails).max() < most


@pytest.mark.parametrize(("frames", "most"), [(5, 0.05), (10, 0.10), (50, 0.05)])
def test_M6_faint_satellites_go_because_they_are_found(frames: int, most: float) -> None:
    """Trails of 3 sigma a pixel, of which the rule alone would leave a tenth to a third."""
    assert np.abs(figures(frames, 3.0).trails).max() < most
    assert figures(frames, 3.0, find=False).trails.min() > 0.08


@pytest.mark.parametrize("frames", [5, 10, 50])
def test_M6_cosmic_rays_leave_nothing(frames: int) -> None:
    """Of the light of a dozen hits a frame no hundredth is left, from five frames up."""
    assert np.abs(figures(frames).cosmics).max() < 0.01


@pytest.mark.parametrize("frames", [5, 10, 50])
def test_M6_good_samples_are_kept(frames: int) -> None:
    """Of a night without defects less than 0.6 % of all samples goes, and less than 1 % in the cores of stars."""
    assert figures(frames).lost < 0.006
    assert figures(frames).lost_in_cores < 0.01
