"""A night of one panel, raw frames to published mosaic: seconds, CPU, memory and disk, beside Siril where it is there.

    python benchmarks/bench_process.py [FRAMES]

Both work on the same simulated frames (1080 x 1920 Bayer), cold start included, one after the other in one run. Siril
(siril-cli on the PATH) debayers, registers and stacks with winsorised rejection; it solves nothing, grades nothing and
publishes no coverage, so the ratio flatters it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zemosaicd.simulate import Night, simulate

SIRIL_SCRIPT = """requires 1.0.0
cd lights
convert light -debayer -out=../process
cd ../process
register light
stack r_light rej 3 3 -norm=addscale -out=../stack
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one program took."""

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    peak_disk_mb: float

    def line(self, name: str, frames: int) -> str:
        """One row of the table."""
        return (
            f"{name:<10} {self.wall_s:7.1f} s wall  {self.cpu_s:7.1f} s CPU ({self.cpu_s / frames:.3f} a frame)"
            f"  {self.peak_rss_mb:6.0f} MB (largest process)  {self.peak_disk_mb:7.0f} MB of disk at most"
        )


def measured(command: Sequence[str], folder: Path) -> Cost:
    """Runs a command in `folder`; disk is sampled ten times a second."""
    before, started, peak, over = cpu_s(), time.perf_counter(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, disk_mb(folder))

    watcher = threading.Thread(target=watch)
    base = disk_mb(folder)
    watcher.start()
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        over.set()
        watcher.join()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(
        wall_s=time.perf_counter() - started,
        cpu_s=cpu_s() - before,
        peak_rss_mb=usage.ru_maxrss / 1024,
        peak_disk_mb=max(0.0, peak - base),
    )


def cpu_s() -> float:
    """CPU seconds of all children so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def disk_mb(folder: Path) -> float:
    """Megabytes allocated below a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total / 1e6


def main() -> None:
    """Prints the table."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        night = Night(frames=frames, width=1080, height=1920, scale_arcsec=2.37, nebula_e=20.0)
        simulate(night, folder / "lights")
        theirs = None
        if shutil.which("siril-cli"):  # first: the system remembers the largest child so far, and ours is larger
            (folder / "stack.ssf").write_text(SIRIL_SCRIPT)
            theirs = measured(["siril-cli", "-d", str(folder), "-s", "stack.ssf"], folder)
            print(theirs.line("Siril", frames))
        settings = ["--set", "paths.state=state"]
        ours = measured([sys.executable, "-m", "zemosaicd", "process", "lights", "--output", "out", *settings], folder)
        print(ours.line("zemosaicd", frames))
        if theirs is not None:
            wall, cpu = ours.wall_s / theirs.wall_s, ours.cpu_s / theirs.cpu_s
            print(f"ratio      {wall:.2f} of Siril's wall time, {cpu:.2f} of its CPU")


if __name__ == "__main__":
    main()
