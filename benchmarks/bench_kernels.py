"""CPU seconds of the pixel kernels, best of 3, and what the default rule does to few frames.

Run: python benchmarks/bench_kernels.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from zemosaicd.model import Distortion
from zemosaicd.science.combine import HALO, Method, NoiseModel, Rule, combine
from zemosaicd.science.coverage import edge_weight
from zemosaicd.science.resample import Kernel, Source, resample
from zemosaicd.sphere import Matrix

HEIGHT, WIDTH, SIGMA, SKY = 1080, 1920, 10.0, 500.0


def best(work: Callable[[], object], runs: int = 3) -> float:
    """CPU seconds of the fastest run, after one that compiles."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def turn(degrees: float) -> Matrix:
    """Rotation about the middle of the frame with a small shift."""
    a = math.radians(degrees)
    cx, cy, c, s = WIDTH / 2, HEIGHT / 2, math.cos(a), math.sin(a)
    return c, -s, cx - c * cx + s * cy + 3.3, s, c, cy - s * cx - c * cy - 2.7, 1e-8, -1e-8, 1.0


def time_resampling(rng: np.random.Generator) -> None:
    """One frame of 1080x1920, plain and through a lens that distorts by 1.5 px in the corner."""
    radial = ((0.0, 0.0, 0.0, 1.5, 0.0, 1.5, 0.0), (0.0, 0.0, 0.0, 0.0, 1.5, 0.0, 1.5))
    lens = Distortion(width=WIDTH, height=HEIGHT, x_px=radial[0], y_px=radial[1])
    plane = rng.normal(SKY, SIGMA, (HEIGHT, WIDTH)).astype(np.uint16)
    sources = {
        "Bayer": Source(pixels=plane, bayer="GRBG"),
        "mono": Source(pixels=plane),
        "3 channels": Source(pixels=np.repeat(plane[np.newaxis], 3, axis=0)),
    }
    whole = (0, 0, WIDTH, HEIGHT)
    for name, source in sources.items():
        for kernel in Kernel:
            for degrees in (0.3, 30.0):
                bent = replace(source, distortion=lens)
                seconds, more = (
                    best(lambda s=s, d=degrees, k=kernel: resample(s, turn(d), whole, kernel=k)) for s in (source, bent)
                )
                print(
                    f"resample {name:10s} {kernel:12s} {degrees:5.1f} deg   {seconds:.3f} s a frame, {more:.3f} unbent"
                )


def time_combining(rng: np.random.Generator) -> None:
    """One band of few and of many frames, as seconds a frame of 1080x1920x3."""
    for n in (5, 50, 200, 1000):
        rows = 64 if n <= 200 else 16
        samples = rng.normal(SKY, SIGMA, (n, 3, rows + 2 * HALO, WIDTH)).astype(np.float32)
        seen = np.ones((n, *samples.shape[2:]), bool)
        noise = NoiseModel(variance=np.full((n, 3), SIGMA**2 / 0.7), photon=np.ones((n, 3)), pedestal=np.full(3, SKY))
        for method in (Method.AUTO, Method.KAPPA_SIGMA, Method.NONE):
            rule, halo = Rule(method=method), (HALO, HALO)
            seconds = best(
                lambda s=samples, m=seen, x=noise, r=rule, h=halo: combine(s, m, np.ones(len(s)), r, x, halo=h)
            )
            print(
                f"combine {n:3d} frames {method:12s} {seconds / n * HEIGHT / rows:.4f} s a frame (halo rows included)"
            )


def leaks(rng: np.random.Generator) -> None:
    """Share of trail light that is left, share of good samples lost: CFA and mono, 2 trails in 5 frames of 10 sigma."""
    height, width = 300, 400
    y, x = np.mgrid[0:height, 0:width]
    for bayer in ("GRBG", ""):
        channels = 3 if bayer else 1
        for n in (5, 10, 20):
            both = [np.zeros((n, channels, height, width), np.float32) for _ in range(2)]
            seen = np.zeros((n, height, width), bool)
            for i in range(n):
                clean, move = rng.normal(SKY, SIGMA, (height, width)), rng.uniform(-8.0, 8.0, 2)
                away = (y - height * rng.random() - rng.normal(0.0, 0.6) * (x - width / 2)) / 1.3
                trail = 10.0 * SIGMA * np.exp(-(away**2) / 2) * (i % 5 in (1, 3))
                matrix = (1.0, 0.0, move[0], 0.0, 1.0, move[1], 0.0, 0.0, 1.0)
                for samples, plane in zip(both, (clean, clean + trail), strict=True):
                    source = Source(pixels=plane.astype(np.float32), bayer=bayer)
                    resample(source, matrix, (0, 0, width, height), into=(samples[i], seen[i]))
            noise = NoiseModel(
                variance=np.full((n, channels), SIGMA**2),
                photon=np.zeros((n, channels)),
                pedestal=np.full(channels, SKY),
            )
            clean, auto, plain = (
                combine(s, seen, np.ones(n), Rule(method=m), noise)
                for s, m in ((both[0], Method.NONE), (both[1], Method.AUTO), (both[1], Method.NONE))
            )
            lost = combine(both[0], seen, np.ones(n), Rule(), noise).rejected_pct
            leak = float((auto.mean - clean.mean).sum() / (plain.mean - clean.mean).sum())
            print(
                f"auto, {bayer or 'mono'}, {n:2d} frames: trail light left {leak:.3f}, good samples lost {lost:.3f} %"
            )


def main() -> None:
    """Print the figures."""
    rng = np.random.default_rng(1)
    time_resampling(rng)
    time_combining(rng)
    valid = np.ones((HEIGHT, WIDTH), bool)
    print(f"edge_weight 1080x1920                {best(lambda: edge_weight(valid, 100.0)):.3f} s")
    leaks(rng)


if __name__ == "__main__":
    main()
