"""A newcomer's first minutes: a simulated night is dropped into a real daemon, which makes a mosaic of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zemosaicd.shell.supervisor import read_status
from zemosaicd.simulate import Night, SimulatedFrame, simulate

Progress = Callable[[int, int], None]

PATIENCE_S = 600.0
WATCH_S = 0.2


def make_night(folder: Path, panels: int, frames: int, progress: Progress) -> list[SimulatedFrame]:
    """Raw frames of a small colour camera: `panels` side by side, `frames` each, of a field in Cygnus."""
    night = Night(
        rows=1,
        cols=panels,
        frames=frames,
        width=720,
        height=1080,
        scale_arcsec=3.6,
        overlap=0.25,
        fwhm_px=3.0,
        trail_every=5,
    )
    return simulate(night, folder, progress)


def run(folder: Path, overrides: Sequence[str], say: Callable[[str], None], progress: Callable[[str], Progress]) -> int:
    """The whole demonstration; returns an exit code."""
    started = time.monotonic()
    number = 1
    while (night := folder / f"night{number}").exists():  # an earlier demonstration is somebody's result
        number += 1
    incoming, output, state = night / "incoming", night / "output", night / "state"
    incoming.mkdir(parents=True)
    settings = [
        f"paths.incoming={json.dumps([str(incoming)])}",
        f"paths.output={output}",
        f"paths.state={state}",
        "watch.settle_s=1",
        "watch.scan_s=2",
        "session.by_telescope=true",
        "log.format=json",
        *overrides,
    ]
    arguments = [part for text in settings for part in ("--set", text)]
    say(f"a small night of raw frames, as a smart telescope takes them, goes into {incoming}")
    command = [sys.executable, "-m", "zemosaicd", "run", *arguments]
    with (night / "daemon.out").open("wb") as sink:
        daemon = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            make_night(incoming, 2, 6, progress("frames"))
            (incoming / ".done").touch()
            say("the daemon measures, solves, stacks and joins them; its log: " + str(state / "log" / "zemosaicd.log"))
            made = _wait(daemon, output, state / "status.json", say)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=60)
    if made is None:
        say(f"no mosaic was made; see {night / 'daemon.out'}")
        return 1
    say(f"mosaic:  {made}")
    say(f"preview: {made.with_name('preview.png')}")
    say(f"report:  {made.with_name('report.json')}")
    say(f"{time.monotonic() - started:.0f} s in all")
    return 0


def _wait(daemon: subprocess.Popen[bytes], output: Path, status_file: Path, say: Callable[[str], None]) -> Path | None:
    """The mosaic's path once its session rests; None if the daemon ends or nothing comes."""
    deadline, last = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < deadline and daemon.poll() is None:
        status = read_status(status_file)
        line = status.line if status else ""
        if line and line != last:
            say(f"  {line}")
            last = line
        made = next(output.glob("*/mosaic.fits"), None)
        if made is not None and status is not None and not status.sessions:
            return made
        time.sleep(WATCH_S)
    return None
