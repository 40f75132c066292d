"""How far each phase is from what the machine can do: cycles and bytes a sample, and what the bytes alone would cost.

    python benchmarks/bench_limit.py [FRAMES]

A night of FRAMES (50) Bayer frames of 1080 x 1920 is processed once with everything kept; then the jobs of Phases 1, 3
and 5 run again in this process, on one thread, files in the page cache. A sample is a number that a phase has to look
at: a photosite of a frame (Phase 1), a pixel of a frame in a channel on the tile's grid (Phase 3), a pixel of a tile in
a channel (Phase 5). `bytes` is what must move through memory at least: what is read and written once, nothing between.
The limit is a copy of 256 MB by numpy on the same thread.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit

from zemosaicd.model import Plan
from zemosaicd.simulate import Night, simulate
from zemosaicd.work.fitsio import Budget
from zemosaicd.work.jobs import MakeMosaic, MosaicSettings, PrepareFrame, StackSettings, StackTile
from zemosaicd.work.planfiles import read_plan

WIDTH, HEIGHT = 1080, 1920
MEASURED_FRAMES = 20
COPIED_BYTES, STEPS = 256 << 20, 200_000_000
STEP_CYCLES = 4
"""Latency of an integer multiplication and an exclusive or on x86-64 and ARMv8 cores of the last ten years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one thread can do."""

    copied_bytes_s: float
    clock_hz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a phase took (CPU seconds), and what it had to look at and to move."""

    name: str
    cpu_s: float
    samples: float
    moved_bytes: float

    def line(self, machine: Machine) -> str:
        """One row of the table."""
        limit_s = self.moved_bytes / machine.copied_bytes_s
        return (
            f"{self.name:<28} {self.cpu_s:7.2f} CPU s  {1e9 * self.cpu_s / self.samples:6.1f} ns"
            f" {machine.clock_hz * self.cpu_s / self.samples:6.0f} cycles {self.moved_bytes / self.samples:5.1f} bytes"
            f" a sample;  bytes alone: {limit_s:6.3f} s, 1/{self.cpu_s / limit_s:.0f}"
        )


def best(work: Callable[[], object], runs: int = 3) -> float:
    """CPU seconds of the fastest run, after one that warms up."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@njit(cache=True)
def _chain(steps: int, factor: np.uint64) -> np.uint64:
    """Steps that each wait for the last."""
    value = factor
    for i in range(steps):
        value = (value * factor) ^ np.uint64(i)
    return value


def machine() -> Machine:
    """Measured now."""
    source = np.ones(COPIED_BYTES // 8)
    target = np.empty_like(source)
    copied = best(lambda: np.copyto(target, source))
    chained = best(lambda: _chain(STEPS, np.uint64(0x9E3779B97F4A7C15)))
    return Machine(copied_bytes_s=2 * COPIED_BYTES / copied, clock_hz=STEPS * STEP_CYCLES / chained)


def night(frames: int, folder: Path) -> tuple[Plan, Path]:
    """Processes a night and keeps all of it; the plan and its path."""
    simulate(Night(frames=frames, width=WIDTH, height=HEIGHT, scale_arcsec=2.37, nebula_e=20.0), folder / "lights")
    kept = ("paths.state=state", "cleanup.cleanup_temp_artifacts=false", "cleanup.cache_retention=keep")
    overrides = [part for text in kept for part in ("--set", text)]
    command = [sys.executable, "-m", "zemosaicd", "process", "lights", "--output", "out", *overrides]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 3):  # 3: published, but suspect
        raise SystemExit(f"zemosaicd process ended with {done.returncode}")
    path = next((folder / "state").glob("sessions/*/runtime/plan_r*.json"))
    return read_plan(path), path


def phases(frames: int, folder: Path) -> list[Work]:
    """Each phase's work."""
    plan, path = night(frames, folder)
    lights, tile = sorted((folder / "lights").iterdir())[:MEASURED_FRAMES], folder / "tile.fits"
    pixels = float(WIDTH * HEIGHT)

    def prepare() -> None:
        for light in lights:
            PrepareFrame(
                path=str(light), cache=str(folder / "cache.npy"), budget=Budget(max_pixels=10**9, max_bytes=10**10)
            ).run()

    settings = replace(StackSettings(), threads=1)
    stack = StackTile(plan_path=str(path), tile=1, without=(), output=str(tile), settings=settings)
    made = plan.tiles[0]
    area, channels, depth = float(made.grid.width * made.grid.height), made.channels, len(made.frames)
    mosaic = MakeMosaic(
        plan_path=str(path), name=plan.mosaics[0].name, tiles=((1, str(tile)),), without=(),
        mosaic=str(folder / "mosaic.fits"), preview=str(folder / "preview.png"), session="bench", revision=1,
        settings=replace(MosaicSettings(), threads=1),
    )  # fmt: skip
    written = area * (8 * channels + 8)  # picture and weight a channel; coverage, rejected, alpha
    return [
        Work(  # 16 bits come in and go out
            name=f"Phase 1, {len(lights)} frames", cpu_s=best(prepare), samples=len(lights) * pixels,
            moved_bytes=len(lights) * pixels * 4,
        ),
        Work(  # each cache once, and the tile
            name=f"Phase 3, {depth} frames", cpu_s=best(stack.run), samples=depth * area * channels,
            moved_bytes=depth * pixels * 2 + written,
        ),
        Work(name="Phase 5, 1 tile", cpu_s=best(mosaic.run), samples=area * channels, moved_bytes=2 * written),
    ]  # fmt: skip


def main() -> None:
    """Prints the table."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    here = machine()
    print(f"one thread: {here.clock_hz / 1e9:.2f} GHz, copies {here.copied_bytes_s / 1e9:.1f} GB/s (read and written)")
    with tempfile.TemporaryDirectory() as name:
        for work in phases(frames, Path(name)):
            print(work.line(here))


if __name__ == "__main__":
    main()
