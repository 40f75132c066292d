"""How cost and memory of a mosaic grow with its area: seconds, CPU and the largest worker, for more and more tiles.

    python benchmarks/bench_area.py [SIDE ...]

SIDE x SIDE tiles of 1080 x 1920 (18 of them make 465 Mpx; 20,000 x 20,000 px are 400) of noise on their own
tangent planes, with levels of their own, through mode `existing`. There is nothing to see on them, so that the mosaic
is published as suspect: only work is measured. 18 x 18 take 9 GB of disk.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_mosaic import AGE_S, HEIGHT, NOISE_E, OVERLAP, SCALE_DEG, SKY_E, WIDTH, plane_of, write_tile

from zemosaicd.work.fitswrite import FitsImage

SIDES = (4, 8, 18)
SUSPECT = 3


def write_tiles(folder: Path, side: int) -> None:
    """The same noise in each tile, rolled and raised."""
    rng = np.random.default_rng(1)
    noise = rng.normal(SKY_E, NOISE_E, (HEIGHT, WIDTH))
    step_x, step_y = (pixels * (1 - OVERLAP) * SCALE_DEG for pixels in (WIDTH, HEIGHT))
    folder.mkdir()
    for row in range(side):
        for column in range(side):
            path = folder / f"tile_{row:02d}_{column:02d}.fits"
            place = plane_of((column - (side - 1) / 2) * step_x, (row - (side - 1) / 2) * step_y)
            write_tile(path, np.roll(noise, 37 * row + 11 * column, axis=0) + rng.normal(0.0, 5.0), place)
            os.utime(path, (time.time() - AGE_S, time.time() - AGE_S))


def measure(folder: Path, side: int) -> None:
    """Makes one mosaic and prints its line."""
    write_tiles(folder / "in", side)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    settings = ["--set", "paths.state=state", "--set", "session.mode=existing"]
    command = [sys.executable, "-m", "zemosaicd", "process", "in", "--output", "out", *settings]
    code = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code not in (0, SUSPECT):
        raise RuntimeError(f"{side} x {side} tiles: exit code {code}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (report,) = folder.glob("out/*/report.json")
    made = json.loads(report.read_text())["phases"]["5"]
    with FitsImage(report.parent / "mosaic.fits") as mosaic:
        mpx = math.prod(mosaic.shape) / 1e6
    print(
        f"{side * side:4d} tiles {mpx:5.0f} Mpx {wall_s:6.1f} s wall {cpu_s:6.1f} s CPU; "
        f"Phase 5: {made['seconds']:6.2f} s, {1e3 * made['seconds'] / mpx:5.1f} ms/Mpx, {made['peak_rss_mb']:4.0f} MB"
    )


def main() -> None:
    """Prints the table."""
    for side in [int(a) for a in sys.argv[1:]] or SIDES:
        with tempfile.TemporaryDirectory() as name:
            measure(Path(name), side)


if __name__ == "__main__":
    main()
