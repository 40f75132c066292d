"""Milliseconds of CPU that each stage of Phase 1 takes a frame, best of several, in a worker's settings.

    python benchmarks/bench_stars.py [RUNS]

Simulated frames (1080 x 1920 Bayer, dense and sparse) and, where the folder is there (ZEMOSAICD_FRAMES, else
../shared/frames), the first frame of each real set. What the stages do not hold of `prepare_frame`: headers, the
hand-over, and memory that is cold.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from zemosaicd.core import headers
from zemosaicd.science.astrometry import locate
from zemosaicd.science.centroids import measure_stars
from zemosaicd.science.detection import find_sources, measure_mesh, subtract_level
from zemosaicd.science.frame import binned_green, binned_mono, block_levels, find_hot_pixels, sky_and_noise
from zemosaicd.science.stars import aperture_flux, find_stars, shape
from zemosaicd.simulate import Night, simulate
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.entry import keep_freed_memory
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.fitsio import read_frame
from zemosaicd.work.jobs import PrepareFrame
from zemosaicd.work.prepare import SATURATED
from zemosaicd.work.store import write_npy

NIGHTS = {
    "simulated, dense": Night(frames=1, width=1080, height=1920, scale_arcsec=2.37, mag10_e=120000.0),
    "simulated, sparse": Night(
        frames=1,
        width=1080,
        height=1920,
        scale_arcsec=2.37,
        faintest_mag=12.5,
        ra_deg=192.7,
        dec_deg=41.1,
        nebula_e=5.0,
    ),
}
SETS = ("m94_night1", "ngc7023_altaz", "m27_osc")


def best_ms(work: Callable[[], object], runs: int) -> float:
    """CPU milliseconds of the fastest run, after one that compiles."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def stages(path: Path, folder: Path, runs: int) -> tuple[int, dict[str, float]]:
    """(stars, stage -> ms) of one frame."""
    raw = read_frame(path)
    facts = headers.facts(raw.cards, path.name)
    bayer = facts.bayer
    pixels = raw.pixels.copy()
    hot = find_hot_pixels(pixels, bool(bayer))
    places, medians = hot.place[hot.sure], hot.value[hot.sure]
    pixels.reshape(-1)[places] = medians
    small = binned_green(pixels, bayer) if bayer else binned_mono(pixels)
    mesh = measure_mesh(small)
    assert mesh is not None
    clean = small.copy()
    subtract_level(clean, mesh)
    found = find_sources(clean, mesh)
    stars = find_stars(pixels, bayer)
    fwhm = shape(stars)[0]
    x, y = stars.x.copy(), stars.y.copy()
    year = 2000.0 + (facts.observed_s - datetime(2000, 1, 1, 12, tzinfo=UTC).timestamp()) / 31557600.0 \
        if facts.observed_s is not None else None  # fmt: skip
    job = PrepareFrame(path=str(path), cache=str(folder / "cache.npy"), budget=Budget())
    work: dict[str, Callable[[], object]] = {
        "read, hash, scale": lambda: read_frame(path),
        "saturated": lambda: np.count_nonzero(raw.pixels >= SATURATED),
        "hot pixels": lambda: find_hot_pixels(raw.pixels, bool(bayer)),
        "sky and noise": lambda: sky_and_noise(*block_levels(pixels, bayer)),
        "find_stars": lambda: find_stars(pixels, bayer),
        "  binned": lambda: binned_green(pixels, bayer) if bayer else binned_mono(pixels),
        "  mesh": lambda: measure_mesh(small),
        "  sky off": lambda: subtract_level(small.copy(), mesh),
        f"  sources ({len(found)})": lambda: find_sources(clean, mesh),
        f"  centroids ({len(stars)})": lambda: measure_stars(pixels, bool(bayer), x, y, fwhm),
        "  fluxes": lambda: aperture_flux(clean, 0.5 * (x - 0.5), 0.5 * (y - 0.5), 0.5 * fwhm),
        "solve": lambda: locate(stars, facts, year, read_cone),
        "write cache": lambda: write_npy(folder / "cache.npy", pixels, overwrite=True),
        "prepare_frame": job.run,
    }
    return len(stars), {name: best_ms(function, runs) for name, function in work.items()}


def frames(folder: Path) -> dict[str, Path]:
    """What is measured: name -> file."""
    paths = {}
    for k, (name, night) in enumerate(NIGHTS.items()):
        paths[name] = simulate(night, folder / str(k))[0].path
    real = Path(os.environ.get("ZEMOSAICD_FRAMES", Path(__file__).parents[2] / "shared" / "frames"))
    for name in SETS:
        found = sorted((real / name).glob("*.fit*"))
        if found:
            paths[name] = found[0]
    return paths


def main() -> None:
    """Prints a table a frame."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        for title, path in frames(Path(name)).items():
            count, table = stages(path, Path(name), runs)
            print(f"{title}: {count} stars")
            for stage, ms in table.items():
                print(f"    {stage:22s} {ms:7.2f} ms")


if __name__ == "__main__":
    main()
