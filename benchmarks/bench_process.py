"""A night of one panel, raw frames to published mosaic: seconds, CPU, memory and disk, beside Siril where it is there.

    python benchmarks/bench_process.py [FRAMES ...]

For 20 frames, or for each number of them that is given, so that it shows how cost and memory grow. Both work on the
same simulated frames (1080 x 1920 Bayer), cold start included, one after the other in one run. Siril (siril-cli on the
PATH) debayers, registers and stacks with winsorised rejection; it solves nothing, grades nothing and publishes no
coverage, so the ratio flatters it. Above 300 frames it is left out: it asks for 25 MB of disk a frame. What it makes is
our master tile, so the seconds until that is there are told too, and the disk until then; the rest goes into mosaic,
certificate, preview and report. Ours runs twice where Siril is there, the second time with
`cleanup.cache_retention=per_tile`, which gives disk back tile by tile.
`bytes` is what must move at least: every frame read once, its cache written and read once, and what is published.
"""

from __future__ import annotations

import compileall
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import zemosaicd
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
    """What one program took; `disk_mb`: what it had allocated, at seconds since it began."""

    wall_s: float
    cpu_s: float
    disk_mb: tuple[tuple[float, float], ...]
    began_s: float

    @property
    def peak_disk_mb(self) -> float:
        """The most of it."""
        return self.peak_until(self.wall_s)

    def peak_until(self, seconds: float) -> float:
        """The most of it in the first seconds."""
        return max((mb for at, mb in self.disk_mb if at <= seconds), default=0.0)

    def line(self, name: str, frames: int) -> str:
        """One row of the table."""
        return (
            f"{name:<12} {self.wall_s:7.1f} s wall  {self.cpu_s:7.1f} s CPU ({self.cpu_s / frames:.3f} a frame)"
            f"  {self.peak_disk_mb:7.0f} MB of disk at most"
        )


def measured(command: Sequence[str], folder: Path) -> Cost:
    """Runs a command in `folder`; disk is sampled ten times a second, or as often as takes a twentieth of a core."""
    seen: list[tuple[float, float]] = []
    over, base = threading.Event(), disk_mb(folder)

    def watch() -> None:
        took = 0.0
        while not over.wait(max(0.1, 20.0 * took)):
            began = time.perf_counter()
            seen.append((began - started, disk_mb(folder) - base))
            took = time.perf_counter() - began

    watcher = threading.Thread(target=watch)
    before, began_s, started = cpu_s(), time.time(), time.perf_counter()
    watcher.start()
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        over.set()
        watcher.join()
    wall_s = time.perf_counter() - started
    return Cost(wall_s=wall_s, cpu_s=cpu_s() - before, disk_mb=tuple(seen), began_s=began_s)


def cpu_s() -> float:
    """CPU seconds of all children so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def disk_mb(folder: Path | str) -> float:
    """Megabytes allocated below a folder."""
    total = 0.0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # gone since it was seen
                inside = entry.is_dir(follow_symlinks=False)
                total += disk_mb(entry.path) if inside else entry.stat(follow_symlinks=False).st_blocks * 512 / 1e6
    return total


AGE_S = 3600.0
FEWEST_FOR_SIRIL, MOST_FOR_SIRIL = 3, 300


def main() -> None:
    """Prints the table."""
    for frames in [int(a) for a in sys.argv[1:]] or [20]:
        with tempfile.TemporaryDirectory() as name:
            compare(frames, Path(name))


def compare(frames: int, folder: Path) -> None:
    """One night of so many frames, through one program and the other."""
    night = Night(frames=frames, width=1080, height=1920, scale_arcsec=2.37, nebula_e=20.0)
    simulate(night, folder / "lights")
    for frame in (folder / "lights").iterdir():  # as if they had lain there: a file that is new has to settle first
        os.utime(frame, (time.time() - AGE_S, time.time() - AGE_S))
    print(f"{frames} frames")
    theirs = None
    if shutil.which("siril-cli") and FEWEST_FOR_SIRIL <= frames <= MOST_FOR_SIRIL:
        (folder / "stack.ssf").write_text(SIRIL_SCRIPT)
        theirs = measured(["siril-cli", "-d", str(folder), "-s", "stack.ssf"], folder)
        print(theirs.line("  Siril", frames))
        shutil.rmtree(folder / "process", ignore_errors=True)
    ours = process(folder, "run_end")
    print(ours.line("  zemosaicd", frames))
    (report,) = folder.glob("out_run_end/*/report.json")
    phases = json.loads(report.read_text())["phases"]
    told = ", ".join(f"{n}: {p['peak_rss_mb']:.0f} MB" for n, p in sorted(phases.items()) if p.get("peak_rss_mb"))
    print(f"  largest worker a phase: {told}")
    moved = frames * 3 * 2 * night.width * night.height + sum(f.stat().st_size for f in report.parent.iterdir())
    print(f"  bytes: {moved / 1e9:.2f} GB, {moved / 1e9 / ours.wall_s:.2f} GB/s")
    tile_s = tile_there(folder / "state_run_end" / "log") - ours.began_s
    tile_mb = ours.peak_until(tile_s)
    print(f"  master tile: there after {tile_s:.1f} s, {tile_mb:.0f} MB of disk until then")
    if theirs is not None:
        ratios = (getattr(theirs, key) / max(1e-9, getattr(ours, key)) for key in ("wall_s", "cpu_s", "peak_disk_mb"))
        print("  Siril takes {:.2f} of our wall time, {:.2f} of our CPU, {:.1f} of our disk".format(*ratios))
        tile = theirs.wall_s / tile_s, theirs.peak_disk_mb / max(1e-9, tile_mb)
        print("  and {:.2f} of the time until our master tile is there, {:.1f} of our disk until then".format(*tile))
        less = process(folder, "per_tile").peak_disk_mb
        print(f"  with caches given back by tile: {less:.0f} MB of disk, {theirs.peak_disk_mb / less:.1f}")


def process(folder: Path, retention: str) -> Cost:
    """Our command on what lies in `lights`. Its bytecode is there, as where pip has installed it."""
    compileall.compile_dir(Path(zemosaicd.__file__).parent, quiet=1)
    settings = [f"paths.state=state_{retention}", f"cleanup.cache_retention={retention}"]
    overrides = [part for text in settings for part in ("--set", text)]
    command = [sys.executable, "-m", "zemosaicd", "process", "lights", "--output", f"out_{retention}", *overrides]
    return measured(command, folder)


def tile_there(logs: Path) -> float:
    """When the last master tile had been written, seconds since 1970."""
    lines = (json.loads(line) for log in logs.iterdir() for line in log.read_text().splitlines())
    return max(datetime.fromisoformat(x["timestamp"]).timestamp() for x in lines if x["event"] == "tile_stacked")


if __name__ == "__main__":
    main()
